"""Whatever happens to a rank or to the parent: the job ends soon, with one line, no half-written file and no process left.

Most cases run on stand-in pipelines (tests/standin), which start in 0.2 s; the rank program, its channel and its supervisor are the real ones.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dit_usp import supervise
from dit_usp.engine import Engine, RankError

STAND_IN = Path(__file__).parent / "standin"
JOB_LIMIT_S, CTRL_C_LIMIT_S = 30, 5  # promised to users


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path_factory):
    monkeypatch.syspath_prepend(str(STAND_IN))  # what the parent can import, ranks can
    logs = tmp_path_factory.mktemp("logs")
    monkeypatch.setenv("TMPDIR", str(logs))
    monkeypatch.setattr("tempfile.tempdir", str(logs))


@pytest.fixture
def wish(monkeypatch):
    """wish(stage, what, ranks): what stand-in ranks do from now on."""
    return lambda *words: monkeypatch.setenv("STAND_IN_WISH", json.dumps(words))


def state(pid):
    """The kernel's letter for a process: S sleeping, T stopped, Z ended but not collected, X gone ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def runs(pid):
    return state(pid) not in "ZX"


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def record(folder, rank=0):
    return supervise.Status(supervise.status_path(folder, rank))


def doing(folder, rank=0):
    return str(record(folder, rank).doing)


class Job:
    """`dit-usp generate` on two ranks, writing heart.png into a folder."""

    def __init__(self, folder, *options):
        self.process = subprocess.Popen(
            [sys.executable, str(STAND_IN / "job.py"), str(folder), *options],
            env={name: value for name, value in os.environ.items() if name != "DIT_USP_DEBUG"} | {"PYTHONPATH": str(STAND_IN)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell starts background jobs deaf to Ctrl-C, and children inherit it: the tests may be such a job
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        told = [self.process.stdout.readline().split() for _ in range(2)]
        self.pids, self.folder = [int(pid) for pid, _ in told], told[0][1]

    def wait_for(self, stage):
        until(lambda: doing(self.folder).split()[0] == stage, 20)
        if stage == "load":  # also what a process does before it can tell
            until(lambda: min(record(self.folder, rank).beats for rank in (0, 1)) > 1, 20)

    def end(self, seconds):
        """Its exit code and what it wrote on stderr."""
        return self.process.wait(seconds), self.process.stderr.read()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", ["load", "encode", "denoise", "decode", "save"])
def test_kill_9_of_a_rank_in_every_stage(tmp_path, wish, stage, rank):
    wish(stage, 60, [0, 1])
    job = Job(tmp_path)
    job.wait_for(stage)
    if stage == "save":
        until(lambda: list(tmp_path.iterdir()), 5)  # the file is half written
    if stage == "denoise":
        until(lambda: doing(job.folder, rank) == "denoise step 2/3", 5)
    os.kill(job.pids[rank], signal.SIGKILL)
    code, text = job.end(JOB_LIMIT_S)
    assert code == 1
    assert re.fullmatch(
        rf"dit-usp: rank {rank} was killed \(SIGKILL; out of memory\?\) during {stage}( step 2/3)?; its log is \S+rank{rank}.log\n", text
    )
    assert not list(tmp_path.iterdir())
    assert not any(map(runs, job.pids))


@pytest.mark.parametrize("stage", ["load", "denoise", "save"])
def test_kill_9_of_the_parent_takes_the_ranks_along(tmp_path, wish, stage):
    wish(stage, 60, [0, 1])
    job = Job(tmp_path)
    job.wait_for(stage)
    os.kill(job.process.pid, signal.SIGKILL)
    until(lambda: not any(map(runs, job.pids)), JOB_LIMIT_S)
    assert not list(tmp_path.iterdir())
    assert not os.path.exists(job.folder)


def test_kill_9_of_the_parent_before_the_ranks_have_started(tmp_path):
    job = Job(tmp_path)
    os.kill(job.process.pid, signal.SIGKILL)
    assert until(lambda: not any(map(runs, job.pids)), JOB_LIMIT_S)


def test_kill_9_of_the_parent_ends_stopped_and_hanging_ranks_too(tmp_path, wish):
    wish("denoise", "hang", [0])
    job = Job(tmp_path)
    job.wait_for("denoise")
    os.kill(job.pids[1], signal.SIGSTOP)
    until(lambda: state(job.pids[1]) == "T", 5)
    os.kill(job.process.pid, signal.SIGKILL)
    assert until(lambda: not any(map(runs, job.pids)), JOB_LIMIT_S)


@pytest.mark.parametrize("to_all", [True, False])
@pytest.mark.parametrize("stage", ["load", "denoise", "save"])
def test_ctrl_c(tmp_path, wish, stage, to_all):
    wish(stage, 60, [0, 1])
    job = Job(tmp_path)
    job.wait_for(stage)
    (os.killpg if to_all else os.kill)(job.process.pid, signal.SIGINT)
    code, text = job.end(CTRL_C_LIMIT_S)
    assert (code, text.strip()) == (130, "dit-usp: interrupted.")  # click ends the line that ^C is on
    assert not list(tmp_path.iterdir())
    assert not any(map(runs, job.pids))
    assert not os.path.exists(job.folder)


def test_an_undisturbed_job_writes_its_file_and_leaves_nothing_else(tmp_path):
    job = Job(tmp_path)
    code, text = job.end(JOB_LIMIT_S)
    assert code == 0, text
    assert [path.name for path in tmp_path.iterdir()] == ["heart.png"]
    assert not any(map(runs, job.pids))
    assert not os.path.exists(job.folder)


def signal_soon(engine, rank, number):
    until(lambda: str(engine._ranks.members[rank].status.doing) == "denoise step 2/3", 20)
    os.kill(engine._ranks.members[rank].process.pid, number)


def silent_case(rank, what):
    """The error of an engine one of whose ranks stops (SIGSTOP) or holds Python's lock for good."""
    with Engine("stand-in", nproc=2) as engine:
        pids = [member.process.pid for member in engine._ranks.members]
        stopper = threading.Thread(target=signal_soon, args=(engine, rank, signal.SIGSTOP))
        if what == "stop":
            stopper.start()
        try:
            engine.generate("a red heart", wish=["denoise", 60 if what == "stop" else "hang", [0, 1] if what == "stop" else [rank]])
        except RankError as error:
            return str(error), any(map(runs, pids))
    return "no error", False


def slow_case():
    with Engine("stand-in", nproc=2) as engine:
        return len(engine.generate("a red heart", wish=["denoise", supervise.SILENT_S + 2, [0, 1]]).images)


def test_a_rank_may_be_silent_for_less_than_a_job_may_last():
    assert supervise.SILENT_S <= JOB_LIMIT_S / 2


def test_a_silent_rank_ends_the_job_but_a_long_step_does_not(monkeypatch):
    """All at once, since each takes as long as a rank may be silent, here less than it is."""
    monkeypatch.setattr(supervise, "SILENT_S", 8.0)
    results = {}

    def case(name, function, *args):
        results[name] = (function(*args), time.monotonic())

    cases = {"stop 0": (silent_case, 0, "stop"), "stop 1": (silent_case, 1, "stop"), "hang 1": (silent_case, 1, "hang"), "slow": (slow_case,)}
    threads = [threading.Thread(target=case, args=(name, *work), daemon=True) for name, work in cases.items()]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results["slow"][0] == 1
    for name in ("stop 0", "stop 1", "hang 1"):
        (text, left), end = results[name]
        assert re.fullmatch(rf"rank {name[-1]} has not answered for 8 s during denoise( step 2/3)?; its log is \S+", text)
        assert not left
        assert end - start < JOB_LIMIT_S


def test_an_exception_on_one_rank_ends_the_job_with_one_line():
    with Engine("stand-in", nproc=2) as engine:
        with pytest.raises(RankError, match=r"^rank 1 failed \(RuntimeError: no luck on rank 1\) during denoise step 2/3; its log is \S+$") as caught:
            engine.generate("a red heart", wish=["denoise", "raise", [1]])
        assert (caught.value.rank, caught.value.stage) == (1, "denoise step 2/3")
        assert "Traceback" in Path(str(caught.value).split()[-1]).read_text()
        with pytest.raises(ValueError, match="closed"):
            engine.generate("a red heart")


def test_a_refusal_on_one_rank_alone_ends_the_job(monkeypatch):
    monkeypatch.setattr(supervise, "REFUSAL_S", 0.5)
    with (
        Engine("stand-in", nproc=2) as engine,
        pytest.raises(RankError, match=r"rank 0 failed \(ValueError: height=100 is not a multiple of 16; try 96\.\) during decode"),
    ):
        engine.generate("a red heart", wish=["decode", "refuse", [0]])


def test_the_same_refusal_on_all_ranks_leaves_the_engine_usable():
    with Engine("stand-in", nproc=2) as engine:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^height=100 is not a multiple of 16; try 96\.$"):
                engine.generate("a red heart", wish=["encode", "refuse", [0, 1]])
        assert engine.generate("a red heart").images[0].size == (8, 8)


def test_a_rank_that_leaves_by_itself():
    with Engine("stand-in", nproc=2) as engine, pytest.raises(RankError, match="rank 0 ended with exit code 3 during encode"):
        engine.generate("a red heart", wish=["encode", "exit", [0]])


def test_debug_shows_the_traceback_and_nothing_else_does(tmp_path, wish):
    wish("denoise", "raise", [0, 1])
    line = r"dit-usp: rank (\d) failed \(RuntimeError: no luck on rank \1\) during denoise step 2/3; its log is \S+\n"
    code, text = Job(tmp_path).end(JOB_LIMIT_S)
    assert code == 1
    assert re.fullmatch(line, text)
    code, text = Job(tmp_path, "--debug").end(JOB_LIMIT_S)
    assert code == 1
    assert "RuntimeError: no luck\non rank " in text
    assert re.search(line, text)


def test_a_rank_that_died_between_two_prompts_is_noticed_at_the_next():
    with Engine("stand-in", nproc=2) as engine:
        os.kill(engine._ranks.members[1].process.pid, signal.SIGKILL)
        with pytest.raises(RankError, match="rank 1 was killed"):
            engine.generate("a red heart")

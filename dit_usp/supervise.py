"""Ranks: the processes of one job on this machine, started, asked and watched by their parent, which loads no torch.

Why not torch.distributed.elastic's start_processes: importing it costs 1.9 s before the first rank can start (2 cores, torch 2.13; this module
0.04 s), and its start() replaces the process's handlers of SIGINT, SIGTERM, SIGHUP and SIGQUIT for good, in a user's notebook too. What is left
of it is subprocess.Popen, used here directly.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from dit_usp.errors import RankError
from dit_usp.launch import STORE, num_threads
from dit_usp.rank import REFUSALS, Failure
from dit_usp.status import Doing, Status, status_path

TICK_S = 0.1
SILENT_S = 15.0  # a rank without a sign of life for so long has stopped; each beats twice a second, whatever it does
UNWIND_S = 2.0  # for a rank that is saving: time to remove the unfinished file
# After a first exception the other ranks' answers are waited for: a refusal is raised by all (some may still be importing), any other error is not,
# but it may follow from the death of a rank, which is then about to be noticed.
REFUSAL_S, ERROR_S = 10.0, 1.0


@dataclass
class Member:
    """One rank as its parent sees it."""

    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection
    status: Status
    log: Path
    pulse: tuple[Any, ...] = ()
    silence: float = 0.0

    def listen(self, seconds: float) -> None:
        """Count the time without a sign of life: neither a beat nor work by the processor (a beat waits while a library is loaded)."""
        pulse = (self.status.beats, _work(self.process.pid))
        self.silence = 0.0 if pulse != self.pulse else self.silence + seconds
        self.pulse = pulse

    @property
    def trouble(self) -> str | None:
        """What is wrong with the process, if it has ended or is silent."""
        if (code := self.process.poll()) is not None:
            return _cause_of_death(code, self.log)
        return f"has not answered for {SILENT_S:.0f} s" if self.silence > SILENT_S else None


def _work(pid: int) -> tuple[int, int]:
    """Pages read from disk and seconds computed so far, where /proc tells (Linux): they change while a library is loaded.

    Whole seconds: threads that only wait for Python's lock wake up 200 times a second, which is not work.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0
    return int(fields[9]), (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")


def _cause_of_death(code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL; out of memory?)"
    if code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"ended with exit code {code}{f' ({last.strip()})' if last else ''}"


@dataclass
class Ranks:
    """`world_size` rank processes that carry out messages together until closed; they die with this process, however it ends.

    They run in a process group of their own: Ctrl-C reaches this process alone, which then ends them.

    Raises (from `ask`):
        RankError: a rank died, failed or stopped answering; all are ended.
        ValueError, TypeError, OSError, UnsupportedError: every rank refused the message with the same words; they stay ready for the next.
    """

    world_size: int
    folder: Path = field(init=False)
    members: list[Member] = field(init=False, default_factory=list)
    messages: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dit-usp-"))
        self._end = weakref.finalize(self, _end, self.members, self.folder, os.getpid())
        try:
            for rank in range(self.world_size):
                self.members.append(self._start(rank))
        except BaseException:
            self.close()
            raise

    def _start(self, rank: int) -> Member:
        ours, theirs = socket.socketpair()
        status, log = Status(status_path(self.folder, rank)), self.folder / f"rank{rank}.log"
        with theirs, log.open("wb") as output:
            process = subprocess.Popen(
                # -P: a file in the working folder, say random.py, must not hide a module of that name.
                [sys.executable, "-P", "-m", "dit_usp.rank", str(theirs.fileno()), str(self.folder), str(os.getpid())],
                env=self._environment(rank),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                process_group=self.members[0].process.pid if self.members else 0,
            )
        return Member(rank, process, Connection(ours.detach()), status, log)

    def _environment(self, rank: int) -> dict[str, str]:
        size = str(self.world_size)
        return {
            "OMP_NUM_THREADS": str(num_threads(self.world_size)),
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin starve the others' work: 53 s a picture instead of 2 s on 2 busy cores
            "TOKENIZERS_PARALLELISM": "false",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),  # what this process can import, ranks can
            "PYTHONUNBUFFERED": "1",
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, STORE: str(self.folder / "store")},
        }

    @property
    def closed(self) -> bool:
        """Whether the processes have been ended."""
        return not self._end.alive

    def ask(self, name: str, arguments: dict[str, Any], on_doing: Callable[[Doing], None] = lambda doing: None) -> list[Any]:
        """Have every rank call its worker's method `name` and return the results in rank order.

        Args:
            name: a method of dit_usp.worker.Worker.
            arguments: its keyword arguments; must pickle.
            on_doing: called ten times a second with what rank 0 is doing.
        """
        message = self._write(name, arguments)
        try:
            for member in self.members:
                with suppress(BrokenPipeError):  # it is dead: noticed in a moment, with its cause
                    member.connection.send_bytes(str(message).encode())
            answers = self._answers(message, on_doing)
            failures = {rank: answer for rank, answer in answers.items() if isinstance(answer, Failure)}
            if failures and (len(failures) < self.world_size or not _alike(failures)):
                rank, failure = next(iter(failures.items()))
                raise self._error(rank, f"failed ({failure.kind}: {failure.text})")
        except RankError as error:
            self.close(keep_logs=True)
            _debug(self.members[error.rank].log)
            raise
        except BaseException:
            self.close()
            raise
        if failures:
            raise REFUSALS[failures[0].kind](failures[0].text)
        return [answers[rank] for rank in range(self.world_size)]

    def _write(self, name: str, arguments: dict[str, Any]) -> Path:
        for key, value in arguments.items():
            _check_travels(key, value)
        self.messages += 1
        message = self.folder / f"message{self.messages}"
        message.write_bytes(pickle.dumps((name, arguments)))
        return message

    def _answers(self, message: Path, on_doing: Callable[[Doing], None]) -> dict[int, Any]:
        """Each rank's answer, in the order they came; after a Failure only those that come soon."""
        answers: dict[int, Any] = {}
        waiting = {member.connection: member for member in self.members}
        before, limit = time.monotonic(), float("inf")
        while waiting and before < limit:
            for connection in wait(list(waiting), TICK_S):
                member = waiting.pop(connection)  # type: ignore[call-overload]
                answers[member.rank] = answer = self._receive(member, message)
                if isinstance(answer, Failure):
                    limit = min(limit, time.monotonic() + (REFUSAL_S if answer.kind in REFUSALS else ERROR_S))
            now = time.monotonic()
            for member in self.members:
                member.listen(min(now - before, 1.0))  # this process may itself have been stopped: that is no rank's silence
            self._check()
            before = now
            on_doing(self.members[0].status.doing)
        return answers

    def _receive(self, member: Member, message: Path) -> Any:
        try:
            member.connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            member.process.wait(UNWIND_S)
            self._check()
        answer = Path(f"{message}.{member.rank}")
        try:
            return pickle.loads(answer.read_bytes())
        finally:
            answer.unlink()

    def _check(self) -> None:
        for member in self.members:
            if member.trouble is not None:
                raise self._error(member.rank, member.trouble)

    def _error(self, rank: int, cause: str) -> RankError:
        """Names the rank's stage; the first rank's if this one waits for it to decode or save."""
        doing = self.members[rank].status.doing
        if doing.stage == "idle":
            doing = self.members[0].status.doing
        return RankError(rank, str(doing), cause, str(self.members[rank].log))

    def close(self, keep_logs: bool = False) -> None:
        """End the processes and remove their folder (with keep_logs all of it but their logs). Safe to call again."""
        if self._end.detach() is not None:
            _end(self.members, self.folder, os.getpid(), keep_logs)


def _debug(log: Path) -> None:
    """With DIT_USP_DEBUG=1: what the failed rank wrote, its traceback too."""
    if os.environ.get("DIT_USP_DEBUG") == "1":
        sys.stderr.write(log.read_text(errors="replace"))


def _check_travels(name: str, value: Any) -> None:
    try:
        pickle.dumps(value)
    except Exception as error:
        raise ValueError(
            f"{name}={value!r} cannot be sent to the ranks; pass values (seed= for a generator), not functions or open things."
        ) from error


def _alike(failures: dict[int, Failure]) -> bool:
    return len(set(failures.values())) == 1 and next(iter(failures.values())).kind in REFUSALS


def _end(members: Sequence[Member], folder: Path, owner: int, keep_logs: bool = False) -> None:
    """End all ranks at once; one that is saving gets a moment to remove its unfinished file."""
    if os.getpid() != owner:  # a fork of the process that started them
        return
    for member in members:
        if member.process.poll() is None:
            member.process.terminate()
        if member.status.doing.stage == "save":
            with suppress(subprocess.TimeoutExpired):
                member.process.wait(UNWIND_S)
    if any(member.process.returncode is None for member in members):  # else the group's number may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(members[0].process.pid, signal.SIGKILL)  # their own children too, such as a compiler's
    for member in members:
        member.process.wait()
        member.connection.close()
    if not keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.suffix != ".log":
            path.unlink()

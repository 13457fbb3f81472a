"""Engine: ranks for a plain script. On stand-in ranks (tests/standin) where only the engine is asked, else on the model that comes with us."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dit_usp
from dit_usp import supervise
from dit_usp.config import ParallelConfig
from dit_usp.engine import Engine, RankError
from dit_usp.saving import read_metadata
from dit_usp.signature import read_call

STAND_IN = Path(__file__).parent / "standin"
MODEL = str(files("dit_usp") / "data" / "emoji-pixart-256")


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.syspath_prepend(str(STAND_IN))  # what the parent can import, ranks can


def processes(engine):
    return [member.process for member in engine._ranks.members]


def test_ranks_stay_warm_between_prompts_and_end_with_the_block(stand_in):
    with Engine("stand-in", ParallelConfig(ulysses_degree=3)) as engine:
        first = engine.generate("a red heart")
        pids = [process.pid for process in processes(engine)]
        second = engine.generate("a blue heart", eta=0.5)
        assert [process.pid for process in processes(engine)] == pids
    assert (first.world, second.call) == ("3", {"eta": 0.5})
    assert all(process.poll() is not None for process in processes(engine))
    assert not engine._ranks.folder.exists()
    engine.close()
    with pytest.raises(ValueError, match=r"^This engine is closed; make another one\.$"):
        engine.generate("a red heart")


def test_an_embedded_model_gets_what_suits_it_under_what_is_asked(stand_in, tmp_path):
    with Engine("emoji-pixart-256", nproc=1) as engine:
        made = engine.generate("a puppy", guidance_scale=2.0, save=tmp_path / "a.png")
    assert made.call == {"num_inference_steps": 10, "guidance_scale": 2.0, "use_resolution_binning": False}
    told = {"prompt": "a dog face", "asked": "a puppy", "steps": 10, "guidance": 2.0}
    assert read_metadata(tmp_path / "a.png").items() >= told.items()


@pytest.mark.parametrize(
    ("pipeline", "call", "fps"), [("WanPipeline", {}, 10), ("WanVideoToVideoPipeline", {"video": "c.gif"}, 20), ("FluxPipeline", {}, None)]
)
def test_a_clip_plays_as_fast_as_its_model_or_its_source(tmp_path, pipeline, call, fps):
    Image.new("L", (16, 16)).save(tmp_path / "c.gif", save_all=True, append_images=[Image.new("L", (16, 16), 9)], duration=50)
    engine = object.__new__(Engine)
    engine.pipeline, engine._suited, engine._ranks = pipeline, {"fps": 10}, SimpleNamespace(close=lambda: None)
    assert engine._fps(None, read_call(pipeline), {name: tmp_path / value for name, value in call.items()}) == fps


def test_several_engines_one_after_another_and_from_threads(stand_in):
    results = []

    def work():
        with Engine("stand-in", nproc=1) as engine:
            results.append(engine.generate("a red heart").images[0].size)

    work()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [(8, 8)] * 3


def test_an_engine_that_nobody_closed_ends_when_it_is_collected(stand_in):
    engine = Engine("stand-in", nproc=2)
    started = processes(engine)
    del engine
    gc.collect()
    assert all(process.poll() is not None for process in started)


def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import dit_usp
        engine = dit_usp.Engine("stand-in", nproc=2)
        print(engine.generate("a red heart").images[0].size, *(member.process.pid for member in engine._ranks.members))
        """)
    )
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user must not hide a module of that name')")
    environ = {**os.environ, "PYTHONPATH": str(STAND_IN)}
    done = subprocess.run([sys.executable, "-P", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(8, 8)")
    assert done.stderr == ""
    for pid in done.stdout.split()[2:]:
        assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"parallel": ParallelConfig(2), "nproc": 3}, r"^nproc=3, but ulysses 2 x ring 1 x cfg 1 x data 1 needs 2 ranks; leave nproc out\.$"),
        ({"nproc": 0}, r"^nproc=0 ranks cannot make a picture; ask for at least 1\.$"),
        ({"nproc": 2, "device": "cuda"}, r"^2 ranks need 2 GPUs, but this machine has 0\."),
        (
            {"nproc": 1, "vae": lambda: None},
            r"^options=.* cannot be sent to the ranks; pass values \(seed= for a generator\), not functions or open things\.$",
        ),
    ],
)
def test_what_an_engine_refuses(stand_in, monkeypatch, arguments, text):
    monkeypatch.setattr("dit_usp.engine.num_gpus", lambda: 0)
    monkeypatch.setattr("dit_usp.launch.num_gpus", lambda: 0)
    with pytest.raises(ValueError, match=text):
        Engine("stand-in", **arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"save": ["a.png", "b.png"]}, r"^save names 2 files, but 1 pictures are asked for; name one for each\.$"),
        ({"save": "a.png", "num_images_per_prompt": 3}, "save names 1 files, but 3 pictures"),
        ({"save": "a.mp4"}, r"^a\.mp4: a picture is written as \.png, .*not \.mp4\.$"),
        ({"save": ["a.png", "b.safetensors"], "num_images_per_prompt": 2}, r"^latents \(\.safetensors\) and decoded results cannot be saved"),
        ({"save": "a.tiff"}, r"a.tiff: .*\.png, \.jpg, \.jpeg, \.webp"),
        ({"save": "a.png", "output_type": "latent"}, r"^output_type='latent' gives no pictures to save; leave out save or output_type\.$"),
        (
            {"callback_on_step_end": lambda: None},
            r"cannot be sent to the ranks; pass values \(seed= for a generator\), not functions or open things\.$",
        ),
    ],
)
def test_what_a_call_refuses_leaves_the_engine_usable(stand_in, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    with Engine("stand-in", nproc=1) as engine:
        with pytest.raises(ValueError, match=text):
            engine.generate("a red heart", **arguments)
        engine.generate("a red heart", save="heart.png")
    assert [path.name for path in tmp_path.iterdir()] == ["heart.png"]


def test_a_file_tells_how_it_can_be_made_again(stand_in, tmp_path):
    """Without a seed one is drawn; one for several pictures is told with which of them each is."""
    files = [[tmp_path / f"{call}{index}.png" for index in range(2)] for call in range(2)]
    with Engine("stand-in", nproc=1) as engine:
        for paths in files:
            engine.generate(["a", "b"], save=paths, num_inference_steps=3, eta=0.5, sigmas=[1.0, 0.5], extra={"not": "plain"})
        engine.generate("a", seed=7, save=tmp_path / "7.png")
    told = [[read_metadata(path) for path in paths] for paths in files]
    assert [(one["prompt"], one["index"], one["of"]) for one in told[0]] == [("a", 0, 2), ("b", 1, 2)]
    seeds = [[one["seed"] for one in paths] for paths in told]
    assert seeds[0][0] == seeds[0][1] != seeds[1][0]
    shared = {"pipeline": "PixArtAlphaPipeline", "dtype": "float32", "steps": 3, "guidance": 4.5, "eta": 0.5, "sigmas": [1.0, 0.5], "ranks": 1}
    assert told[0][0].items() >= shared.items()
    assert "extra" not in told[0][0]
    assert read_metadata(tmp_path / "7.png").items() >= {"seed": 7, "steps": 20}.items()
    assert "index" not in read_metadata(tmp_path / "7.png")


def test_inside_a_rank_an_engine_names_what_to_use(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"^Engine starts ranks itself, but this process is already rank 1 of 2 .*: use dit_usp\.auto_pipeline"):
        Engine("stand-in")


def test_ranks_get_their_share_of_the_cores(monkeypatch, stand_in):
    monkeypatch.setattr("dit_usp.launch.num_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS")
    with Engine("stand-in", nproc=2) as engine:
        environ = Path(f"/proc/{processes(engine)[0].pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=3" in environ


def test_a_missing_model_is_said_in_one_line(tmp_path):
    with pytest.raises(OSError, match=r"^(?!.*\n).*nothing-here"):
        Engine(str(tmp_path / "nothing-here"), nproc=1)


def difference(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()


@pytest.fixture(scope="module")
def expected():
    """The pictures of one process, by seed."""
    pipe = dit_usp.auto_pipeline(MODEL, device_map="cpu")
    return {seed: drawn(pipe, seed)[0] for seed in (5, 6)}


def drawn(pipe, seed):
    return pipe("red heart", generator=torch.Generator().manual_seed(seed), num_inference_steps=4, guidance_scale=3.0).images


@pytest.mark.timeout(300)
def test_the_picture_is_that_of_one_process(expected, tmp_path, tmp_path_factory, monkeypatch):
    """The real thing: two ranks against the same pipeline in this process; a refusal on the way; a killed rank at the end."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("logs")))
    call = {"num_inference_steps": 4, "guidance_scale": 3.0}
    with Engine(MODEL, ParallelConfig(ulysses_degree=2), device="cpu", dtype="float32") as engine:
        picture = engine.generate("red heart", seed=5, save=tmp_path / "heart.png", **call).images[0]
        assert difference(picture, expected[5]) <= 2
        with pytest.raises(ValueError, match="height"):
            engine.generate("red heart", height=100, width=100, use_resolution_binning=False, **call)
        both = engine.generate(["red heart", "red heart"], seed=[5, 6], **call).images
        assert max(map(difference, both, (expected[5], expected[6]))) <= 2
        killer = threading.Thread(target=kill_in, args=(engine, 1, "denoise", 1000))
        killer.start()
        with pytest.raises(supervise.RankError, match=r"^rank 1 was killed \(SIGKILL; out of memory\?\) during denoise step \d+/1000; its log is"):
            engine.generate("red heart", seed=5, save=tmp_path / "again.png", num_inference_steps=1000)
        killer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["heart.png"]
    told = read_metadata(tmp_path / "heart.png")
    assert (told["prompt"], told["seed"], told["ranks"], told["steps"], told["guidance"]) == ("red heart", 5, 2, 4, 3.0)


def kill_in(engine, rank, stage, total):
    """Kill a rank once the first is in `stage` and, of so many steps, past the second."""
    first = engine._ranks.members[0]
    while first.status.doing.stage != stage or first.status.doing.total != total or first.status.doing.step < min(3, total):
        pass
    engine._ranks.members[rank].process.kill()


@pytest.mark.timeout(300)
def test_kill_9_of_the_rank_that_decodes(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("logs")))
    with Engine(MODEL, ParallelConfig(ulysses_degree=2), device="cpu") as engine:
        started = processes(engine)
        killer = threading.Thread(target=kill_in, args=(engine, 0, "decode", 0))
        killer.start()
        with pytest.raises(RankError, match=r"^rank 0 was killed \(SIGKILL; out of memory\?\) during decode; its log is"):
            engine.generate("red heart", seed=5, save=tmp_path / "heart.png", num_inference_steps=2)
        killer.join()
    assert not list(tmp_path.iterdir())
    assert all(process.poll() is not None for process in started)


def launched_pictures():
    return drawn(dit_usp.auto_pipeline(MODEL, parallel=ParallelConfig(ulysses_degree=2), device_map="cpu"), 5)


def test_the_picture_of_launched_ranks_is_that_of_one_process(expected, ranks):
    (picture,), nothing = ranks.launched(2, launched_pictures)
    assert difference(picture, expected[5]) <= 1
    assert nothing is None

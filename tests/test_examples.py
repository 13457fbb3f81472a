"""Every example is run as its docstring says and does what it says; each fits a screen.

Those for torchrun run on the session's ranks, which find what torchrun would have told them; one of them under torchrun itself.
"""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ranks import run_script
from safetensors.torch import load_file

from dit_usp.media import read_clip
from dit_usp.saving import read_metadata

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
MODEL = files("dit_usp") / "data" / "emoji-pixart-256"


def find(name, launcher):
    """The example whose docstring says that it is run so."""
    path = next(path for path in EXAMPLES if path.stem == name)
    assert re.search(rf"^{launcher} examples/{name}\.py\b", path.read_text(encoding="utf-8"), re.MULTILINE), f"{name} does not say how to run it"
    return path


def launched(ranks, nproc, name, folder, *arguments):
    path = find(name, r"torchrun --standalone --nproc-per-node \d")
    return "".join(ranks.launched(nproc, run_script, str(path), str(folder), *arguments))


def run(name, folder, *arguments, launcher="python"):
    """Run an example by the command in its docstring, in `folder`; what it printed."""
    path = find(name, launcher)
    launcher = ["-m", "torch.distributed.run", *launcher.split()[1:]] if launcher != "python" else []
    done = subprocess.run([sys.executable, *launcher, path, *arguments], cwd=folder, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def is_red(picture):
    """Whether the middle of a picture is red, and its corner white: the heart, not noise."""
    red, green, blue = picture.convert("RGB").getpixel((128, 128))
    return red > 180 and green < 120 and blue < 150 and min(picture.convert("RGB").getpixel((3, 3))) > 230


def test_attention(ranks, tmp_path):
    out = launched(ranks, 4, "attention", tmp_path)
    assert sorted(re.findall(r"rank (\d): (\d+) of 1001 tokens", out)) == [("0", "251"), ("1", "250"), ("2", "250"), ("3", "250")]


def test_bare_transformer(ranks, tmp_path):
    assert sorted(re.findall(r"rank (\d): \(2, 8, 26, 38\), relative error", launched(ranks, 2, "bare_transformer", tmp_path))) == ["0", "1"]


def test_pipeline(tmp_path):
    assert "heart.png, made with ulysses 1 x ring 1 x cfg 2 x data 1" in run(
        "pipeline", tmp_path, launcher="torchrun --standalone --nproc-per-node 2"
    )
    assert is_red(Image.open(tmp_path / "heart.png"))


def test_engine(tmp_path):
    assert "ready: ulysses 1 x ring 1 x cfg 2 x data 1" in run("engine", tmp_path)
    assert is_red(Image.open(tmp_path / "heart.png"))
    assert read_metadata(tmp_path / "owl.png")["prompt"] == "an owl on a blue background"
    assert read_metadata(tmp_path / "owl.png")["seed"] == 2
    assert (tmp_path / "lemon.png").exists()


def test_edit(tmp_path, monkeypatch):
    """With a tiny model of the kind, its weights drawn at random."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "pipelines")
    from tiny_pipelines import build

    build("ZImageImg2ImgPipeline", tmp_path / "parts").save_pretrained(tmp_path / "model")
    Image.new("RGB", (48, 32), "red").save(tmp_path / "photo.jpg")
    assert "ZImageImg2ImgPipeline on ulysses " in run("edit", tmp_path, "photo.jpg", "model")
    assert Image.open(tmp_path / "painting.png").size == (48, 32)
    assert read_metadata(tmp_path / "painting.png")["image"] == "photo.jpg"
    assert load_file(tmp_path / "painting.safetensors")["latents"].shape[-2:] == (16, 24)


def test_video(tmp_path):
    assert "heart.mp4: 13 frames by ulysses " in run("video", tmp_path)
    frames = read_clip(tmp_path / "heart.mp4")
    heights = [np.argwhere(np.asarray(frame.convert("L")) < 200)[:, 0].mean() for frame in frames]
    assert len(frames) == 13
    assert max(heights) - min(heights) > 15  # it bounces
    told = read_metadata(tmp_path / "heart.mp4")
    assert [told[name] for name in ("prompt", "asked", "seed", "fps")] == ["a bouncing red heart", "a bouncing heart", 1, 10]


def test_high_resolution(ranks, tmp_path):
    assert "cfg 2: each half of guidance has its own ranks" in launched(ranks, 2, "high_resolution", tmp_path, str(MODEL), "320")
    assert Image.open(tmp_path / "lighthouse.png").size == (320, 320)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_screen_and_has_a_test(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    assert f"test_{path.stem}" in globals()

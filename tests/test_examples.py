"""Every example is run as its docstring says and does what it says; each fits a screen."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

from dit_usp.saving import read_metadata

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
MODEL = files("dit_usp") / "data" / "emoji-pixart-256"


def run(name, folder, *arguments, nproc=2):
    """Run an example by the command in its docstring, in `folder`; what it printed."""
    path = next(path for path in EXAMPLES if path.stem == name)
    command = re.search(rf"^(?:torchrun .*?(\d)|python) examples/{name}\.py$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert command, f"{name} does not say how to run it"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)] if command[1] else []
    done = subprocess.run([sys.executable, *launcher, path, *arguments], cwd=folder, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def is_red(picture):
    """Whether the middle of a picture is red, and its corner white: the heart, not noise."""
    red, green, blue = picture.convert("RGB").getpixel((128, 128))
    return red > 180 and green < 120 and blue < 150 and min(picture.convert("RGB").getpixel((3, 3))) > 230


def test_attention(tmp_path):
    out = run("attention", tmp_path, nproc=4)
    assert sorted(re.findall(r"rank (\d): (\d+) of 1001 tokens", out)) == [("0", "251"), ("1", "250"), ("2", "250"), ("3", "250")]


def test_bare_transformer(tmp_path):
    assert sorted(re.findall(r"rank (\d): \(2, 8, 26, 38\), relative error", run("bare_transformer", tmp_path))) == ["0", "1"]


def test_pipeline(tmp_path):
    assert "heart.png, made with ulysses 1 x ring 1 x cfg 2 x data 1" in run("pipeline", tmp_path)
    assert is_red(Image.open(tmp_path / "heart.png"))


def test_engine(tmp_path):
    assert "ready: ulysses 1 x ring 1 x cfg 2 x data 1" in run("engine", tmp_path)
    assert is_red(Image.open(tmp_path / "heart.png"))
    assert read_metadata(tmp_path / "owl.png")["prompt"] == "an owl on a blue background"
    assert read_metadata(tmp_path / "owl.png")["seed"] == 2
    assert (tmp_path / "lemon.png").exists()


def test_high_resolution(tmp_path):
    assert "cfg 2: each half of the guidance batch has its own ranks" in run("high_resolution", tmp_path, str(MODEL), "320")
    assert Image.open(tmp_path / "lighthouse.png").size == (320, 320)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_screen_and_has_a_test(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    assert f"test_{path.stem}" in globals()

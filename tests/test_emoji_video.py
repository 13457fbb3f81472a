"""The video model shows what it is asked for: its clips are looked up among the real ones, made of thumbnails."""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from emoji.motion import MOTION_WORDS  # noqa: E402
from emoji.thumbnails import Thumbnails  # noqa: E402
from eval_emoji_video import Camera, Reel  # noqa: E402

from dit_usp.prompts import resolve, subjects  # noqa: E402

MODEL = ROOT / "dit_usp" / "data" / "emoji-video"
NAMES = ["red heart", "blue heart", "rocket", "panda", "frog", "balloon", "soccer ball", "pizza", "mushroom", "ghost"]


def reel():
    thumbnails = Thumbnails.read(ROOT / "tests" / "data" / "emoji_thumbnails.npz")
    rgba = np.stack([thumbnails.rgba[thumbnails.names.index(name)] for name in NAMES]).astype(np.float32)
    rgba[..., :3] *= 255 / np.maximum(rgba[..., 3:], 1)
    return Reel.of(torch.from_numpy(rgba.clip(0, 255).round().astype(np.uint8)).permute(0, 3, 1, 2), NAMES)


def test_clips_are_found_again():
    asked = {"a bouncing heart": ("red heart", "bouncing"), "a growing mushroom": ("mushroom", "growing")}
    clips = Camera(MODEL, "cpu", steps=4, guidance=1.0, batch=2).film([resolve(prompt, MODEL).prompt for prompt in asked])
    real = reel()
    assert [real.nearest(clip) for clip in clips] == list(asked.values())


def test_a_word_for_a_motion_names_no_subject():
    resolved = {prompt: resolve(prompt, MODEL) for prompt in ("a bouncing heart", "a dog moving to the left", "make a star spin")}
    assert [one.prompt for one in resolved.values()] == ["a bouncing red heart", "a dog face moving to the left", "make a star spin"]
    assert not any(set(name.split()) <= MOTION_WORDS for name in subjects(MODEL))

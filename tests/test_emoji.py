"""The embedded model draws what it is asked for: its pictures are looked up among the thumbnails of everything it was taught."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from emoji.thumbnails import Thumbnails  # noqa: E402
from eval_emoji import Painter, check_names, check_small  # noqa: E402

MODEL = ROOT / "dit_usp" / "data" / "emoji-pixart-256"


@pytest.fixture(scope="module")
def thumbnails():
    return Thumbnails.read(ROOT / "tests" / "data" / "emoji_thumbnails.npz")


def painter():
    return Painter(MODEL, "cpu", steps=10, guidance=3.0, batch=4)


@pytest.mark.timeout(400)  # 24 pictures of 10 steps: half a minute on two idle cores
def test_names_are_found_again(thumbnails):
    assert check_names(painter(), thumbnails, 24)["top5"] >= 0.9


def test_small_subjects_stand_in_their_place(thumbnails):
    figures = check_small(painter(), thumbnails, 10)
    assert figures["in_place"] >= 0.9
    assert figures["top5"] >= 0.8


def test_control_shuffled_words_are_not_found(thumbnails):
    spoilt = painter()
    spoilt.shuffle_words()
    assert check_names(spoilt, thumbnails, 12)["top5"] <= 0.1

"""The embedded model draws what it is asked for: its pictures are looked up among the thumbnails of everything it was taught."""

import sys
from pathlib import Path

import pytest
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from emoji.thumbnails import Thumbnails  # noqa: E402
from eval_emoji import Painter, check_names, check_small  # noqa: E402

MODEL = ROOT / "dit_usp" / "data" / "emoji-pixart-256"


@pytest.fixture(scope="module")
def thumbnails():
    return Thumbnails.read(ROOT / "tests" / "data" / "emoji_thumbnails.npz")


class Painters:
    """The model on two ranks, each of which draws every other picture: half the time of one process."""

    def __init__(self, ranks, spoilt=False):
        self.ranks, self.spoilt = ranks, spoilt

    def draw(self, prompts):
        parts = self.ranks(2, drawn, list(prompts), self.spoilt)
        return [parts[number % 2][number // 2] for number in range(len(prompts))]


def drawn(prompts, spoilt):
    painter = Painter(MODEL, "cpu", steps=10, guidance=3.0, batch=4)
    if spoilt:
        painter.shuffle_words()
    return painter.draw(prompts[dist.get_rank() :: 2])


def test_names_are_found_again(ranks, thumbnails):
    assert check_names(Painters(ranks), thumbnails, 24)["top5"] >= 0.9


def test_small_subjects_stand_in_their_place(ranks, thumbnails):
    figures = check_small(Painters(ranks), thumbnails, 10)
    assert figures["in_place"] >= 0.9
    assert figures["top5"] >= 0.8


def test_control_shuffled_words_are_not_found(ranks, thumbnails):
    assert check_names(Painters(ranks, spoilt=True), thumbnails, 12)["top5"] <= 0.1

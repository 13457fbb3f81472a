"""The motions of the video model: the path of a subject, the words for it, and the frames.

A path gives the subject's place (x, y in halves of the picture), its size (a share of the picture) and its angle, for a time from 0 to 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi, sin

import torch
import torch.nn.functional as F
from torch import Tensor

from emoji.captions import COLOUR_NAMES, COLOURS, CaptionBank, Mixture, Picture, empty, name, on_colour, with_article

Track = Callable[[float], tuple[float, float, float, float]]  # time -> x, y, size, angle
FRAMES = 13
OVERSAMPLING = 2  # small subjects would flicker
COLOURS_EACH = 3  # besides white, of the nine, for each subject in each motion


@dataclass(frozen=True)
class Motion:
    """A path and the phrases that ask for it, the most usual first; weight: how often it is drawn."""

    path: Track
    phrases: tuple[str, ...]
    weight: float = 1.0


def _spun(path: Track) -> Track:
    """The path with one turn."""
    return lambda time: (*path(time)[:3], 2 * pi * time)


def _right(time: float) -> tuple[float, float, float, float]:
    return -0.6 + 1.2 * time, 0, 0.45, 0


def _left(time: float) -> tuple[float, float, float, float]:
    return 0.6 - 1.2 * time, 0, 0.45, 0


def _up(time: float) -> tuple[float, float, float, float]:
    return 0, 0.6 - 1.2 * time, 0.45, 0


def _down(time: float) -> tuple[float, float, float, float]:
    return 0, -0.6 + 1.2 * time, 0.45, 0


MOTIONS = {
    "still": Motion(lambda time: (0, 0, 0.75, 0), ("{}",), 0.5),
    "spinning": Motion(lambda time: (0, 0, 0.6, 2 * pi * time), ("spinning {}", "{} spinning", "rotating {}", "{} that spins")),
    "bouncing": Motion(
        lambda time: (0, 0.45 - 0.8 * abs(sin(2 * pi * time)), 0.5, 0), ("bouncing {}", "{} bouncing", "jumping {}", "{} that bounces"), 1.5
    ),
    "right": Motion(_right, ("{} moving to the right", "{} moving right", "{} going right")),
    "left": Motion(_left, ("{} moving to the left", "{} moving left", "{} going left")),
    "up": Motion(_up, ("{} flying up", "rising {}", "flying {}", "{} moving up")),
    "down": Motion(_down, ("{} falling down", "falling {}", "{} falling", "{} moving down")),
    "growing": Motion(lambda time: (0, 0, 0.25 + 0.65 * time, 0), ("growing {}", "{} growing", "{} getting bigger")),
    "shrinking": Motion(lambda time: (0, 0, 0.9 - 0.65 * time, 0), ("shrinking {}", "{} shrinking", "{} getting smaller")),
    "shaking": Motion(
        lambda time: (0.12 * sin(6 * pi * time), 0, 0.6, 0.25 * sin(6 * pi * time)), ("shaking {}", "{} shaking", "trembling {}", "wobbling {}")
    ),
    "spinning right": Motion(_spun(_right), ("spinning {} moving to the right", "spinning {} moving right"), 0.4),
    "spinning left": Motion(_spun(_left), ("spinning {} moving to the left", "spinning {} moving left"), 0.4),
    "spinning up": Motion(_spun(_up), ("spinning {} flying up", "spinning {} moving up"), 0.4),
    "spinning down": Motion(_spun(_down), ("spinning {} falling down", "spinning {} moving down"), 0.4),
}
MOTION_NAMES = list(MOTIONS)
# What says a motion is no subject's keyword.
_VERBS = ("bounce", "fall", "falls", "flies", "fly", "grow", "grows", "jump", "move", "moves", "ride", "rotate", "shake", "shrink", "spin", "turn")
MOTION_WORDS = frozenset([*_VERBS, *" ".join(phrase for motion in MOTIONS.values() for phrase in motion.phrases).replace("{}", "").split()])


def paths(frames: int = FRAMES) -> Tensor:
    """x, y, size and angle of every motion: (motions, frames, 4)."""
    return torch.tensor([[motion.path(frame / max(1, frames - 1)) for frame in range(frames)] for motion in MOTIONS.values()])


def move(rgba: Tensor, motion: Tensor, pixels: int, frames: int = FRAMES, window: Tensor | None = None) -> Tensor:
    """Subjects on their paths: (B, 4, H, W) uint8, (B,) -> (B, 4, frames, pixels, pixels), colours multiplied by the coverage.

    Args:
        window: (B, 3): the part of the picture that is seen: its centre (x, y) and its width, in halves of the picture. Default: all of it.
    """
    premultiplied = rgba.float() / 255
    premultiplied = torch.cat([premultiplied[:, :3] * premultiplied[:, 3:], premultiplied[:, 3:]], 1)
    x, y, size, angle = paths(frames).to(rgba.device)[motion].flatten(0, 1).unbind(-1)
    seen = torch.tensor([[0.0, 0.0, 1.0]], device=rgba.device).expand(len(rgba), 3) if window is None else window
    left, top, width = seen.repeat_interleave(frames, 0).unbind(-1)
    x, y, cosine, sine = left - x, top - y, angle.cos() / size, angle.sin() / size
    # From a pixel of the frame to that of the subject: seen from the subject's place, turned back, enlarged.
    across = torch.stack([cosine * width, sine * width, cosine * x + sine * y], 1)
    down = torch.stack([-sine * width, cosine * width, cosine * y - sine * x], 1)
    fine = [len(x), 4, OVERSAMPLING * pixels, OVERSAMPLING * pixels]
    grid = F.affine_grid(torch.stack([across, down], 1), fine, align_corners=False)
    moved = F.grid_sample(premultiplied.repeat_interleave(frames, 0), grid, align_corners=False)
    return F.avg_pool2d(moved, OVERSAMPLING).unflatten(0, (len(rgba), frames)).transpose(1, 2)


def on_background(moved: Tensor, colour: Tensor) -> Tensor:
    """(B, 4, F, H, W), (B,) -> (B, 3, F, H, W) in [-1, 1]."""
    background = torch.tensor(list(COLOURS.values()), device=moved.device)[colour][:, :, None, None, None]
    return (moved[:, :3] + (1 - moved[:, 3:]) * background) * 2 - 1


def caption(picture: Picture, motion: str, colour: int, mixture: Mixture, rng: random.Random) -> str:
    """One way to ask for this clip; sometimes nothing, for classifier-free guidance."""
    if empty(rng):
        return ""
    phrases = MOTIONS[motion].phrases
    text = (phrases[0] if rng.random() < 0.5 else rng.choice(phrases)).format(name(picture, mixture, rng))
    if rng.random() < 0.5:
        text = with_article(text, rng)
    return on_colour(text, colour, rng)


def draw_captions(clips: Sequence[tuple[Picture, str]], size: int, mixture: Mixture, seed: int) -> CaptionBank:
    """Captions of every subject in every motion; its scenes are white and a few of the other colours, all at place 0."""
    rng = random.Random(seed)
    scenes = [[(colour, 0) for colour in (0, *rng.sample(range(1, len(COLOUR_NAMES)), COLOURS_EACH))] for _ in clips]
    chosen = [[rng.randrange(1, 1 + COLOURS_EACH) if rng.random() < mixture.colour else 0 for _ in range(size)] for _ in clips]
    rows = zip(clips, scenes, chosen, strict=True)
    texts = [[caption(picture, motion, some[k][0], mixture, rng) for k in ks] for (picture, motion), some, ks in rows]
    return CaptionBank(scenes, chosen, texts)

"""Does the video model show what it is asked for?

Clips are made through diffusers' own pipeline and looked up among the real clips of all subjects in all motions:
- named: "a bouncing NAME": is the nearest real clip this subject in this motion (both), is it this subject, is it this motion;
- padded: the same with WanPipeline's default padding of captions;
- colours: the same "on a COLOUR background", and whether the background is right;
- control: the rows of the text encoder's embedding shuffled. Retrieval must fall to chance.

Figures:  python scripts/eval_emoji_video.py MODEL pack.npz --figures eval.json
Sheet:    python scripts/eval_emoji_video.py MODEL pack.npz --clips 0 --sheet sheet.png
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import WanPipeline
from emoji.captions import COLOUR_NAMES, COLOURS, HOUSE_STYLE
from emoji.cast import CAST
from emoji.motion import FRAMES, MOTION_NAMES, MOTIONS, move
from emoji.pictures import Pack, Pictures
from eval_emoji import Artist, options, share, tell
from PIL import Image, ImageDraw
from torch import Tensor

from dit_usp.prompts import resolve

PIXELS = 128
SIZE = 16  # of the clips that are compared
SHEET = (
    *("a bouncing heart", "a spinning star", "a rocket flying up", "a car moving to the right", "a shaking alarm clock", "a growing mushroom"),
    *(
        "a falling maple leaf",
        "a cat moving to the left",
        "a shrinking balloon",
        "a spinning star moving left",
        "a bouncing ball on a green background",
    ),
    *("a flying penguin on a blue background", "a rotating pizza", "a jumping frog", "a ghost", "a robot going right on a pink background"),
)


class Camera(Artist):
    """Makes clips."""

    kind = WanPipeline

    def film(self, prompts: Sequence[str], padding: int = 32) -> Tensor:
        """(B, 3, F, H, W) in [0, 1] on the CPU."""
        size = {"height": PIXELS, "width": PIXELS, "num_frames": FRAMES}
        outputs = self.outputs(prompts, **size, max_sequence_length=padding, output_type="pt")
        return torch.cat([output.frames.transpose(1, 2).float().cpu() for output in outputs])


@dataclass(frozen=True)
class Reel:
    """The real clips, small: clip n is subject n // motions in motion n % motions.

    Args:
        names: of the subjects.
        moved: (N, 4, F, 16, 16), colours multiplied by the coverage.
    """

    names: list[str]
    moved: Tensor

    @classmethod
    def of(cls, rgba: Tensor, names: list[str]) -> Reel:
        """The clips of subjects (N, 4, H, W) uint8."""
        motions = torch.arange(len(MOTION_NAMES), device=rgba.device)
        moved = [F.avg_pool3d(move(one.expand(len(motions), -1, -1, -1), motions, 64), (1, 4, 4)) for one in rgba]
        return cls(names, torch.cat(moved))

    def nearest(self, clip: Tensor, colour: int = 0) -> tuple[str, str]:
        """Name and motion of the real clip nearest to a clip (3, F, H, W) on this background."""
        background = torch.tensor(COLOURS[COLOUR_NAMES[colour]], device=self.moved.device)[:, None, None, None]
        real = self.moved[:, :3] + (1 - self.moved[:, 3:]) * background
        cell = clip.shape[-1] // SIZE
        error = (real - F.avg_pool3d(clip.to(real.device), (1, cell, cell))).pow(2).flatten(1).sum(1)
        subject, motion = divmod(int(error.argmin()), len(MOTION_NAMES))
        return self.names[subject], MOTION_NAMES[motion]


def prompt_of(name: str, motion: str) -> str:
    return "a " + MOTIONS[motion].phrases[0].format(name)


def check(camera: Camera, reel: Reel, count: int, padding: int = 32) -> dict[str, float | int]:
    """Evenly spaced subjects, each in the next motion."""
    asked = [(name, MOTION_NAMES[number % len(MOTION_NAMES)]) for number, name in enumerate(spread(reel.names, count))]
    clips = camera.film([prompt_of(*one) for one in asked], padding)
    return retrieval([reel.nearest(clip) for clip in clips], asked)


def check_colours(camera: Camera, reel: Reel, count: int) -> dict[str, float | int]:
    asked = [(name, MOTION_NAMES[number % len(MOTION_NAMES)]) for number, name in enumerate(spread(reel.names, count))]
    colours = [number % len(COLOURS) for number in range(len(asked))]
    clips = camera.film([f"{prompt_of(*one)} on a {COLOUR_NAMES[colour]} background" for one, colour in zip(asked, colours, strict=True)])
    found = [reel.nearest(clip, colour) for clip, colour in zip(clips, colours, strict=True)]
    right = [is_background(clip, COLOURS[COLOUR_NAMES[colour]]) for clip, colour in zip(clips, colours, strict=True)]
    return {"background_right": share(right), **retrieval(found, asked)}


def is_background(clip: Tensor, colour: Sequence[float]) -> bool:
    """The corners of all frames are of this colour."""
    corners = clip[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean((1, 2))
    return bool((corners - torch.tensor(colour)).abs().max() < 0.12)


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` items, evenly spaced, over and over when there are fewer."""
    return [items[number * max(1, len(items) // count) % len(items)] for number in range(count)]


def retrieval(found: Sequence[tuple[str, str]], asked: Sequence[tuple[str, str]]) -> dict[str, float | int]:
    """How often the nearest real clip is the one asked for."""
    pairs = list(zip(found, asked, strict=True))
    kinds = {"both": [f == a for f, a in pairs], "subject": [f[0] == a[0] for f, a in pairs], "motion": [f[1] == a[1] for f, a in pairs]}
    return {kind: share(hits) for kind, hits in kinds.items()} | {"of": len(pairs)}


def write_sheet(camera: Camera, model: Path, prompts: Sequence[str], file: Path, every: int) -> None:
    """A row of frames for each prompt, read as the command line would."""
    resolved = [resolve(prompt, model) for prompt in prompts]
    frames = (camera.film([one.prompt for one in resolved])[:, :, ::every] * 255).round().byte().permute(0, 2, 3, 4, 1)
    sheet = Image.new("RGB", (frames.shape[1] * PIXELS, len(prompts) * (PIXELS + 14)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (clip, prompt, one) in enumerate(zip(frames, prompts, resolved, strict=True)):
        top = number * (PIXELS + 14)
        sheet.paste(Image.fromarray(np.concatenate(list(clip.numpy()), 1)), (0, top + 14))
        pen.text((2, top + 1), f"{prompt} ({one.note})" if one.note else prompt, fill="black")
    sheet.save(file)


def parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("pack", type=Path, help="the npz that scripts/emoji/pack.py writes")
    parser.add_argument("--clips", type=int, default=126, help="of each check")
    parser.add_argument("--every", type=int, default=1, help="frames from one of the sheet to the next")
    return parser.parse_args()


def figures(args: argparse.Namespace, camera: Camera) -> dict[str, object]:
    known = json.loads((args.model / "known.json").read_text())
    pictures = Pictures.load(Pack(args.pack), {HOUSE_STYLE: 1.0}, 64, torch.device(args.device), cast=CAST & set(known))
    reel = Reel.of(pictures.rgba, [subject.name for subject in pictures.subjects])
    results: dict[str, object] = {"steps": args.steps, "guidance": args.guidance, "among": len(reel.moved)}
    start = time.monotonic()
    results["named"] = check(camera, reel, args.clips)
    results["seconds_per_clip"] = round((time.monotonic() - start) / args.clips, 3)
    results["padded"] = check(camera, reel, args.clips // 2, padding=512)
    results["colours"] = check_colours(camera, reel, args.clips // 2)
    camera.shuffle_words()  # last: the camera is spoilt by it
    results["control"] = check(camera, reel, args.clips // 2)
    return results


def main() -> None:
    args = parse()
    camera = Camera(args.model, args.device, args.steps, args.guidance, args.batch)
    if args.sheet:
        write_sheet(camera, args.model, args.prompts.read_text().splitlines() if args.prompts else SHEET, args.sheet, args.every)
    if args.clips:
        tell(figures(args, camera), args.figures)


if __name__ == "__main__":
    main()

"""Does an emoji model draw what it is asked for?

Pictures are drawn through diffusers' own pipeline and looked up among the thumbnails of all subjects the model was taught:
- names: is the nearest thumbnail the one asked for (top-1), is it among the five nearest (top-5);
- keywords, as the whole prompt and not replaced by a name: does the nearest subject have the keyword, is it the one that the keyword means;
- colours: the corners of "a NAME on a COLOUR background";
- small: "a small NAME on the left on a COLOUR background": does the subject lie in its place, and which thumbnail is nearest there;
- control: the rows of the text encoder's embedding shuffled. Retrieval must fall to chance.

Figures:  python scripts/eval_emoji.py MODEL --steps 10 --guidance 3 --figures eval.json
Sheet:    python scripts/eval_emoji.py MODEL --names 0 --sheet sheet.png
From a new pack: python scripts/eval_emoji.py MODEL --pack pack.npz --write-thumbnails tests/data/emoji_thumbnails.npz --names 0
"""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, PixArtAlphaPipeline
from emoji.captions import COLOURS, PLACES, SHIFTS
from emoji.pictures import FILL, SMALL
from emoji.thumbnails import Thumbnails
from PIL import Image, ImageDraw

from dit_usp.prompts import resolve

ROOT = Path(__file__).resolve().parents[1]
SHEET = (
    *("a red heart", "a rocket", "an octopus", "a castle", "a birthday cake", "a bicycle", "a smiling face with sunglasses", "a penguin"),
    *("puppy", "car", "music", "breakfast", "winter", "love", "fruit", "happy"),
    *("a pizza on a red background", "a robot on a black background", "a frog on a pink background", "a unicorn on a purple background"),
    *("a house on a green background", "a key on a gray background", "a guitar on an orange background", "a fox on a blue background"),
    *(
        "a small rocket on the left on a blue background",
        "a small banana on the right on a yellow background",
        "a small crown at the top on a red background",
    ),
    *("a small cat face in the middle on a green background", "a small pizza at the bottom on a black background", "a small house on the left"),
    *("flat drawing of a rocket", "flat puppy"),
)


class Artist:
    """One pipeline at work on lists of prompts; result i of a list has seed i."""

    kind: type[DiffusionPipeline]

    def __init__(self, model: Path, device: str, steps: int, guidance: float, batch: int) -> None:
        diffusers.logging.set_verbosity_error()
        self.pipeline = self.kind.from_pretrained(model, dtype=torch.float32).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.device, self.steps, self.guidance, self.batch = device, steps, guidance, batch

    def outputs(self, prompts: Sequence[str], **call: Any) -> Iterator[Any]:
        """The pipeline's output for each batch."""
        seeds = [torch.Generator(self.device).manual_seed(number) for number in range(len(prompts))]
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            told = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "generator": seeds[part]}
            yield self.pipeline(list(prompts[part]), **told, **call)

    def shuffle_words(self) -> None:
        """Shuffle the rows of the token embedding: the control."""
        rows = self.pipeline.text_encoder.get_input_embeddings().weight
        rows.data = rows.data[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)]


class Painter(Artist):
    """Draws pictures."""

    kind = PixArtAlphaPipeline

    def draw(self, prompts: Sequence[str]) -> list[Image.Image]:
        # 32 latents a side would ask for PixArt's own list of resolutions, which this model was not trained on
        outputs = self.outputs(prompts, clean_caption=False, use_resolution_binning=False)
        return [image for output in outputs for image in output.images]


def spread(items: Sequence[str], count: int) -> list[str]:
    """`count` items, evenly spaced."""
    return list(items[:: max(1, len(items) // count)][:count]) if count else []


def share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / max(1, len(hits)), 3)


def retrieval(rankings: Sequence[list[str]], wanted: Sequence[str]) -> dict[str, float | int]:
    """How often the wanted name ranks first, and among the first five."""
    pairs = list(zip(rankings, wanted, strict=True))
    return {"top1": share([r[0] == w for r, w in pairs]), "top5": share([w in r[:5] for r, w in pairs]), "of": len(pairs)}


def check_names(painter: Painter, thumbnails: Thumbnails, count: int) -> dict[str, float | int]:
    names = spread(thumbnails.names, count)
    return retrieval([thumbnails.ranked(image) for image in painter.draw(names)], names)


def check_keywords(
    painter: Painter, thumbnails: Thumbnails, known: dict[str, list[str]], meaning: dict[str, str], count: int
) -> dict[str, float | int]:
    words = spread(sorted(meaning), count)
    rankings = [thumbnails.ranked(image) for image in painter.draw(words)]
    has_it = share([word in known[ranking[0]] for word, ranking in zip(words, rankings, strict=True)])
    return {"nearest_has_it": has_it, **retrieval(rankings, [meaning[word] for word in words])}


def check_colours(painter: Painter, thumbnails: Thumbnails, count: int) -> dict[str, float | int]:
    asked = [(name, list(COLOURS)[number % len(COLOURS)]) for number, name in enumerate(spread(thumbnails.names, count))]
    images = painter.draw([f"a {name} on a {colour} background" for name, colour in asked])
    rankings = [thumbnails.ranked(image, COLOURS[colour]) for image, (_, colour) in zip(images, asked, strict=True)]
    right = share([is_background(image, COLOURS[colour]) for image, (_, colour) in zip(images, asked, strict=True)])
    return {"background_right": right, **retrieval(rankings, [name for name, _ in asked])}


def is_background(image: Image.Image, colour: Sequence[float]) -> bool:
    """The topmost rows are of this colour."""
    return bool(np.abs(np.asarray(image, np.float32)[:6].mean((0, 1)) / 255 - colour).max() < 0.12)


def check_small(painter: Painter, thumbnails: Thumbnails, count: int) -> dict[str, float | int]:
    names = spread(thumbnails.names, count)
    asked = [(name, list(COLOURS)[number % len(COLOURS)], 1 + number % (len(PLACES) - 1)) for number, name in enumerate(names)]
    images = painter.draw([small_prompt(*one) for one in asked])
    crops = [crop_place(image, place, COLOURS[colour]) for image, (_, colour, place) in zip(images, asked, strict=True)]
    rankings = [thumbnails.ranked(crop, COLOURS[colour]) for crop, (_, colour, _) in zip(crops, asked, strict=True)]
    there = share([in_place(image, place, COLOURS[colour]) for image, (_, colour, place) in zip(images, asked, strict=True)])
    return {"in_place": there, **retrieval(rankings, names)}


def small_prompt(name: str, colour: str, place: int) -> str:
    return f"a small {name}{PLACES[place]} on a {colour} background"


def place_box(pixels: int, place: int) -> tuple[int, int, int, int]:
    """The square that a small subject fills: left, top, right, bottom."""
    size = round(pixels * SMALL)
    left, top = (round(pixels * (1 + shift) / 2 - size / 2) for shift in SHIFTS[place])
    return left, top, left + size, top + size


def crop_place(image: Image.Image, place: int, colour: Sequence[float]) -> Image.Image:
    """The small subject as large as the thumbnails show it."""
    width = round(image.width * FILL)
    canvas = Image.new("RGB", image.size, tuple(round(255 * value) for value in colour))
    canvas.paste(image.crop(place_box(image.width, place)).resize((width, width), Image.Resampling.LANCZOS), ((image.width - width) // 2,) * 2)
    return canvas


def in_place(image: Image.Image, place: int, colour: Sequence[float]) -> bool:
    """Nine tenths of what differs from the background lie in the asked square, a little of slack allowed."""
    difference = np.abs(np.asarray(image, np.float32) / 255 - colour).max(-1) > 0.15
    left, top, right, bottom = place_box(image.width, place)
    slack = image.width // 32
    inside = difference[max(0, top - slack) : bottom + slack, max(0, left - slack) : right + slack]
    return bool(difference.any() and inside.sum() >= 0.9 * difference.sum())


def labelled_sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int, size: int) -> Image.Image:
    """A grid of pictures, each with its label below it."""
    line = 40  # three lines of text
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (size + 4), rows * (size + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = number % columns * (size + 4), number // columns * (size + line)
        sheet.paste(image.resize((size, size), Image.Resampling.LANCZOS), (left, top))
        pen.multiline_text((left + 2, top + size), "\n".join(textwrap.wrap(label, size // 6)[:3]), fill="black", spacing=0)
    return sheet


def write_sheet(painter: Painter, model: Path, prompts: Sequence[str], file: Path, columns: int, size: int) -> None:
    """Draw prompts as the command line would, keywords resolved."""
    resolved = [resolve(prompt, model) for prompt in prompts]
    labels = [f"{prompt} ({r.note})" if r.note else prompt for prompt, r in zip(prompts, resolved, strict=True)]
    labelled_sheet(painter.draw([r.prompt for r in resolved]), labels, columns, size).save(file)


def options(description: str | None) -> argparse.ArgumentParser:
    """What every evaluation is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="pipeline folder with known.json and meaning.json")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--figures", type=Path, help="write the figures as JSON")
    parser.add_argument("--sheet", type=Path, help="write a labelled contact sheet")
    parser.add_argument("--prompts", type=Path, help="prompts of the sheet, one a line")
    return parser


def tell(results: dict[str, object], file: Path | None) -> None:
    """Print the figures, and keep them."""
    text = json.dumps(results, indent=1)
    print(text)
    if file:
        file.write_text(text)


def parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--thumbnails", type=Path, default=ROOT / "tests" / "data" / "emoji_thumbnails.npz")
    parser.add_argument("--pack", type=Path, help="take the thumbnails from a pack instead")
    parser.add_argument("--write-thumbnails", type=Path)
    parser.add_argument("--names", type=int, default=64)
    parser.add_argument("--keywords", type=int, default=64)
    parser.add_argument("--colours", type=int, default=36)
    parser.add_argument("--small", type=int, default=50)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    return parser.parse_args()


def figures(args: argparse.Namespace, painter: Painter, thumbnails: Thumbnails) -> dict[str, object]:
    known, meaning = (json.loads((args.model / f"{name}.json").read_text()) for name in ("known", "meaning"))
    results: dict[str, object] = {"steps": args.steps, "guidance": args.guidance, "among": len(thumbnails.names)}
    start = time.monotonic()
    results["names"] = check_names(painter, thumbnails, args.names)
    results["seconds_per_picture"] = round((time.monotonic() - start) / args.names, 3)
    results["keywords"] = check_keywords(painter, thumbnails, known, meaning, args.keywords)
    results["colours"] = check_colours(painter, thumbnails, args.colours)
    results["small"] = check_small(painter, thumbnails, args.small)
    return results


def main() -> None:
    args = parse()
    thumbnails = Thumbnails.from_pack(args.pack) if args.pack else Thumbnails.read(args.thumbnails)
    if args.write_thumbnails:
        thumbnails.write(args.write_thumbnails)
    painter = Painter(args.model, args.device, args.steps, args.guidance, args.batch)
    if args.sheet:
        prompts = args.prompts.read_text().splitlines() if args.prompts else SHEET
        write_sheet(painter, args.model, prompts, args.sheet, args.columns, args.size)
    if args.names:
        results = figures(args, painter, thumbnails)
        painter.shuffle_words()  # last: the painter is spoilt by it
        results["control"] = check_names(painter, thumbnails, args.names)
        tell(results, args.figures)


if __name__ == "__main__":
    main()

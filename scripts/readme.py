"""Keep README current: its list of models, and the pictures that the tool made.

python scripts/readme.py models      rewrite the list in README.md from dit_usp/models and dit_usp/pipelines
python scripts/readme.py pictures    make docs/strip.webp and docs/contact_sheet.webp by `dit-usp generate`
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click
from PIL import Image, ImageDraw, ImageFont

from dit_usp.models import audio, controlnet, image, video
from dit_usp.pipelines.table import PIPELINES
from dit_usp.plan import ShardPlan

ROOT = Path(__file__).parents[1]
KINDS = (("Image", image.PLANS), ("Video", video.PLANS), ("Audio", audio.PLANS), ("ControlNets", controlnet.PLANS))
START, END = "<!-- models: python scripts/readme.py models -->\n", "<!-- end of models -->"

STRIP = ("a red heart", "an owl", "puppy", "a castle on a blue background", "a small sailboat on the left", "flat rocket")
KEYWORDS = ("puppy", "car", "happy", "music", "winter", "space", "breakfast", "science")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
PLACES = ("on the left", "on the right", "at the top", "at the bottom")


@click.group()
def main() -> None:
    """Keep README current."""


@main.command()
def models() -> None:
    """Rewrite the list of models."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    readme.write_text(before + START + listing() + END + rest.split(END)[1], encoding="utf-8")


def listing() -> str:
    """What is supported, as README says it: a table of pipelines, then the transformers by kind."""
    plans = {plan.model: plan for _, some in KINDS for plan in some}
    rows = [f"| {', '.join(names)} | {model} | {'yes' if has_halves(plans[model]) else 'no'} |" for model, names in PIPELINES.items()]
    head = ["| pipelines of diffusers (`USP` + name) | transformer | `cfg_degree=2` |", "| --- | --- | --- |"]
    kinds = [f"- **{kind}**: {', '.join(_marked(plan) for plan in some)}" for kind, some in KINDS]
    more = f"{len(plans)} transformers have a plan, for `parallelize` in a loop of your own (* `cfg_degree=2` works):"
    return "\n".join(["", *head, *rows, "", more, "", *kinds, "", ""])


def has_halves(plan: ShardPlan) -> bool:
    """Whether its pipelines put both halves of guidance in one batch."""
    return plan.guidance == "batch"


def _marked(plan: ShardPlan) -> str:
    return plan.model + ("\\*" if has_halves(plan) else "")


@main.command()
@click.option("--seed", default=1)
def pictures(seed: int) -> None:
    """Make the strip and the contact sheet. Names are drawn at random, not picked."""
    names = random.Random(seed).sample(known_names(), 32)
    coloured = [f"{name} on a {colour} background" for name, colour in zip(names[16:24], COLOURS, strict=True)]
    placed = [f"small {name} {PLACES[index % 4]}" for index, name in enumerate(names[24:])]
    sheet(generate(STRIP, seed), columns=6, pixels=160).save(ROOT / "docs" / "strip.webp", quality=85)
    sheet(generate([*names[:16], *KEYWORDS, *coloured, *placed], seed), columns=8, pixels=128).save(ROOT / "docs" / "contact_sheet.webp", quality=80)


def known_names() -> list[str]:
    """Names of all that the embedded model was taught."""
    from dit_usp.cli.model import DEFAULT, embedded
    from dit_usp.prompts import subjects

    return sorted(subjects(embedded()[DEFAULT]))


def generate(prompts: Sequence[str], seed: int) -> list[tuple[str, Image.Image]]:
    """What `dit-usp generate --prompts` makes on two ranks; a caption and a picture for each prompt."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "prompts.txt")
        listed.write_text("\n".join(prompts), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "dit_usp", "generate", "--prompts", str(listed), "-o", folder, "--seed", str(seed), "--nproc", "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        notes = dict(re.findall(r"^(.+) -> (.+)$", done.stderr, re.MULTILINE))
        captions = [f"{prompt} -> {notes[prompt]}" if prompt in notes else prompt for prompt in prompts]
        return [(caption, Image.open(path).copy()) for caption, path in zip(captions, done.stdout.splitlines(), strict=True)]


def sheet(made: Sequence[tuple[str, Image.Image]], columns: int, pixels: int) -> Image.Image:
    """Pictures in rows, each above its caption."""
    margin, text = 6, 50
    rows = -(-len(made) // columns)
    page = Image.new("RGB", (columns * (pixels + margin) + margin, rows * (pixels + text + margin) + margin), "#d8dee4")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    for index, (caption, picture) in enumerate(made):
        x, y = margin + index % columns * (pixels + margin), margin + index // columns * (pixels + text + margin)
        page.paste(picture.convert("RGB").resize((pixels, pixels), Image.Resampling.LANCZOS), (x, y))
        draw.multiline_text((x + 2, y + pixels + 1), textwrap.fill(caption, pixels // 6 - 1), "#1f2328", font, spacing=2)
    return page


if __name__ == "__main__":
    main()

"""Keep README current: its list of models, and the pictures that the tool made.

python scripts/readme.py models      rewrite the list in README.md from dit_usp/models and dit_usp/pipelines
python scripts/readme.py pictures    make docs/strip.webp and docs/contact_sheet.webp by `dit-usp generate`
python scripts/readme.py clips       make docs/clips.webp in the same way
"""

from __future__ import annotations

import io
import random
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from dit_usp.cli.models import transformers
from dit_usp.models import KINDS

ROOT = Path(__file__).parents[1]
TITLES = {"image": "Pictures", "video": "Video", "audio": "Sound", "controlnet": "ControlNets"}
START, END = "<!-- models: python scripts/readme.py models -->\n", "<!-- end of models -->"

STRIP = ("a red heart", "an owl", "puppy", "a castle on a blue background", "a small sailboat on the left", "flat rocket")
KEYWORDS = ("puppy", "car", "happy", "music", "winter", "space", "breakfast", "science")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
PLACES = ("on the left", "on the right", "at the top", "at the bottom")
VIDEO = "emoji-video"
MOTIONS = ("{} bouncing", "spinning {}", "growing {}", "{} moving to the left", "shaking {}", "{} flying up", "{} falling down")


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
    """What is supported, as README says it: a table for each kind, to be unfolded."""
    entries = transformers()
    pipelines = sum(len(entry["pipelines"]) for entry in entries)
    head = f"{pipelines} pipelines of {len(entries)} transformers and ControlNets. `dit-usp models` says what of each is shared, and why what is not."
    note = "¹ but not `--cfg 2`, ² but not `--data N`, which deals prompts: a call with a picture, a clip or a sound is not dealt."
    whole = "³ its attention runs whole on every rank: `--ulysses` and `--ring` share the rest."
    tables = [_folded(kind, [entry for entry in entries if entry["kind"] == kind]) for kind in KINDS]
    return "\n\n".join(["", f"{head}\n{note}\n{whole}", *tables, ""])


def _folded(kind: str, entries: list[dict[str, Any]]) -> str:
    names = [name for entry in entries for name in entry["pipelines"]]
    count = f"{len(entries)} transformers, {len(names)} pipelines" if names else str(len(entries))
    head = ["| transformer | `--cfg 2` | `--data N` | pipelines: `USP` + name + `Pipeline` |", "| --- | --- | --- | --- |"]
    rows = [[_model(entry), _yes(entry["cfg"]), _yes(entry["data"]) * bool(names), ", ".join(_names(entry))] for entry in entries]
    return "\n".join(
        ["<details>", f"<summary>{TITLES[kind]}: {count}</summary>", "", *head, *(f"| {' | '.join(row)} |" for row in rows), "", "</details>"]
    )


def _model(entry: dict[str, Any]) -> str:
    """Marked: ³ its attention is whole."""
    return entry["transformer"] + "³" * (not entry["ulysses"])


def _names(entry: dict[str, Any]) -> list[str]:
    """Marked: ¹ no `--cfg 2`, ² no `--data N`, where their transformer's others have it."""
    if entry["modular"]:
        return [f"`{entry['modular']}`, by hand: `parallelize(pipe.transformer, mesh)`"]
    no_cfg, no_data = (entry[f"without_{axis}"] if entry[axis] else {} for axis in ("cfg", "data"))
    return [name.removesuffix("Pipeline") + "¹" * (name in no_cfg) + "²" * (name in no_data) for name in entry["pipelines"]]


def _yes(works: bool) -> str:
    return "yes" if works else "no"


@main.command()
@click.option("--seed", default=1)
def pictures(seed: int) -> None:
    """Make the strip and the contact sheet. Names are drawn at random, not picked."""
    names = random.Random(seed).sample(known_names(), 32)
    coloured = [f"{name} on a {colour} background" for name, colour in zip(names[16:24], COLOURS, strict=True)]
    placed = [f"small {name} {PLACES[index % 4]}" for index, name in enumerate(names[24:])]
    sheet(generate(STRIP, seed), columns=6, pixels=160).save(ROOT / "docs" / "strip.webp", quality=85)
    sheet(generate([*names[:16], *KEYWORDS, *coloured, *placed], seed), columns=8, pixels=128).save(ROOT / "docs" / "contact_sheet.webp", quality=80)


@main.command()
@click.option("--seed", default=1)
def clips(seed: int) -> None:
    """Make the moving strip: a bouncing heart, and names drawn at random in the other motions."""
    names = random.Random(seed).sample(known_names(VIDEO), len(MOTIONS))
    prompts = ["a bouncing heart", *(motion.format(name) for motion, name in zip(MOTIONS, names, strict=True))]
    made = generate(prompts, seed, "--model", VIDEO, "-o", "clip.webp")
    films = [[(caption, frame.copy()) for frame in ImageSequence.Iterator(clip)] for caption, clip in made]
    frames = [sheet(moment, columns=4, pixels=128) for moment in zip(*films, strict=True)]
    frames[0].save(ROOT / "docs" / "clips.webp", save_all=True, append_images=frames[1:], duration=100, loop=0, quality=70)


def known_names(model: str | None = None) -> list[str]:
    """Names of all that an embedded model was taught; of the default's, if none is named."""
    from dit_usp.cli.model import DEFAULT, embedded
    from dit_usp.prompts import subjects

    return sorted(subjects(embedded()[model or DEFAULT]))


def generate(prompts: Sequence[str], seed: int, *options: str) -> list[tuple[str, Image.Image]]:
    """What `dit-usp generate --prompts` makes on two ranks; a caption and a picture or clip for each prompt."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "prompts.txt")
        listed.write_text("\n".join(prompts), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "dit_usp", "generate", "--prompts", str(listed), "-o", ".", "--seed", str(seed), "--nproc", "2"]
        done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, check=True)
        notes = dict(re.findall(r"^(.+) -> (.+)$", done.stderr, re.MULTILINE))
        captions = [f"{prompt} -> {notes[prompt]}" if prompt in notes else prompt for prompt in prompts]
        files = [io.BytesIO(Path(folder, path).read_bytes()) for path in done.stdout.splitlines()]
        return [(caption, Image.open(file)) for caption, file in zip(captions, files, strict=True)]


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

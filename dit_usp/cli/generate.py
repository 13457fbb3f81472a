"""`dit-usp generate`: a prompt, any number of ranks, a picture."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from dit_usp.cli.console import note, progress, quieten, talks
from dit_usp.cli.sections import Sectioned
from dit_usp.launch import under_launcher

if TYPE_CHECKING:
    from dit_usp.request import Request

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """The options as click parsed them; None where the user said nothing."""

    prompt: tuple[str, ...]
    output: str | None
    model: str
    pipeline: str | None
    nproc: int | None
    ulysses: int | None
    ring: int | None
    cfg: int | None
    data: int | None
    ring_method: str | None
    seed: int | None
    steps: int | None
    guidance: float | None
    height: int | None
    width: int | None
    frames: int | None
    fps: float | None
    duration: float | None
    image: tuple[str, ...]
    mask: str | None
    video: str | None
    control_image: tuple[str, ...]
    last_image: str | None
    audio: str | None
    negative: str | None
    dtype: str | None
    device: str | None
    images: int
    prompts: str | None
    settings: tuple[str, ...]
    print_plan: bool
    overwrite: bool
    compiled: bool
    graph: bool
    debug: bool


_SECTIONS = {
    "What": ("model", "pipeline", "negative", "steps", "guidance", "seed", "images", "prompts", "settings"),
    "Size": ("height", "width", "frames", "fps", "duration"),
    "Start from": ("image", "mask", "video", "control_image", "last_image", "audio"),
    "Files": ("output", "overwrite"),
    "Ranks": ("nproc", "ulysses", "ring", "cfg", "data", "ring_method", "print_plan"),
}


@click.command("generate", cls=Sectioned, sections=_SECTIONS)
@click.argument("prompt", nargs=-1, metavar="PROMPT")
@click.option("-o", "--output", metavar="FILE", help="Its suffix is the format; or a folder. Default: named after the prompt.")
@click.option("--model", default="emoji-pixart-256", metavar="MODEL", help="A hub id, a local diffusers folder, or a model that comes with dit-usp.")
@click.option("--pipeline", metavar="NAME", help="diffusers' class. Default: the model's, or the one for its weights that starts from what is given.")
@click.option("--nproc", type=int, metavar="N", help="Ranks, laid out by what suits the model. Default: one a GPU, or one.")
@click.option("--ulysses", type=int, metavar="N", help="Ranks that trade heads for tokens.")
@click.option("--ring", type=int, metavar="N", help="Ranks that pass keys and values on.")
@click.option("--cfg", type=int, metavar="N", help="2: each half of guidance on its own ranks.")
@click.option("--data", type=int, metavar="N", help="Replicas that pictures are dealt to.")
@click.option("--ring-method", type=click.Choice(["rotate", "gather"]), help="How keys go round the ring.")
@click.option("--seed", type=int, metavar="N", help="Of the first picture; the others count up. Default: a random one.")
@click.option("--steps", type=int, metavar="N", help="Denoising steps.")
@click.option("--guidance", type=float, metavar="X", help="Strength of the prompt; 1: none.")
@click.option("--height", type=int, metavar="N", help="In pixels.")
@click.option("--width", type=int, metavar="N", help="In pixels.")
@click.option("--frames", type=int, metavar="N", help="Of a clip.")
@click.option("--fps", type=float, metavar="X", help="Frames a second of a clip. Default: the model's.")
@click.option("--duration", type=float, metavar="X", help="Seconds of a clip or sound.")
@click.option("--image", multiple=True, metavar="FILE", help="A picture to start from or to change; several where the model takes several.")
@click.option("--mask", metavar="FILE", help="White where the picture or clip is made anew.")
@click.option("--video", metavar="FILE", help="A clip to start from: mp4, webm, gif, or a folder of pictures.")
@click.option("--control-image", multiple=True, metavar="FILE", help="Edges, depth or a pose to follow.")
@click.option("--last-image", metavar="FILE", help="The picture a clip ends with.")
@click.option("--audio", metavar="FILE", help="A sound to start from.")
@click.option("--negative", metavar="TEXT", help="What not to show.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Default: bfloat16 on GPUs, float32 on the CPU.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="Default: GPUs where there are any.")
@click.option("--images", type=int, default=1, metavar="N", help="Pictures of each prompt.")
@click.option("--prompts", metavar="FILE", help="Prompts from a text file, one a line.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Any other argument of the pipeline's call; a file where it takes one.")
@click.option("--print-plan", is_flag=True, help="Say in three lines which ranks would do what and why; make nothing.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the layers: the first result of a size takes a minute longer.")
@click.option("--graph/--no-graph", default=True, help="Replay steps that a CPU launches too slowly as CUDA graphs. Default: yes.")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def command(**options: Any) -> None:
    """Make pictures, clips or sounds of PROMPT.

    \b
    dit-usp generate "a red heart" -o heart.png --nproc 2
    dit-usp generate "a castle at night" --model stabilityai/stable-diffusion-3.5-medium --nproc 4
    dit-usp generate "as an oil painting" --image photo.jpg --model black-forest-labs/FLUX.1-Kontext-dev

    \b
    pictures   .png .jpg .webp
    clips      .mp4 .webm (with sound, where the model makes it) .gif .webp
    sounds     .wav
    latents    .safetensors (of all models, not decoded; --set latents=FILE starts from them)
    """
    from dit_usp.cli.prepare import prepare

    start = time.monotonic()
    if options["debug"]:
        os.environ["DIT_USP_DEBUG"] = "1"  # a failed rank's log is shown, with its traceback
    prepared = prepare(Options(**options))
    for text in prepared.notes:
        note(text)
    if not options["print_plan"]:
        _make(prepared.request, start)
    elif talks():
        click.echo("\n".join(prepared.plan))


def _make(request: Request, start: float) -> None:
    """Carry out the request; paths go to stdout, where a script may read them, the rest to stderr."""
    from dit_usp.engine import run

    if under_launcher():
        quieten()
    with progress(len(request.pictures)) as show:
        files = run(request, show)
    if talks():
        click.echo("\n".join(files))
    ranks = f"{request.config.world_size} rank{'s' if request.config.world_size > 1 else ''}"
    note(f"{time.monotonic() - start:.1f} s on {ranks} ({request.config}), seed {request.pictures[0].seed}")

"""From the options of `generate` to a Request: everything is checked here, before a process starts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_usp import __version__, launch
from dit_usp.cli import call, layout, outputs
from dit_usp.cli.console import talks
from dit_usp.cli.model import Model, find_model
from dit_usp.request import MAX_SEED, Picture, Request
from dit_usp.saving import DEFAULT_FPS

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options

_RANDOM_SEEDS = 2**32  # short enough to be typed again


@dataclass(frozen=True)
class Prepared:
    """A request, and what the user is told about it.

    Attributes:
        notes: what became of the prompts.
        plan: the three lines of --print-plan.
    """

    request: Request
    notes: tuple[str, ...]
    plan: tuple[str, ...]


def prepare(options: Options) -> Prepared:
    """Check every option and make the Request.

    Raises:
        ValueError: one that cannot be carried out; says the nearest that can.
    """
    asked = _read_prompts(options)
    if options.images < 1:
        raise ValueError(f"--images {options.images} makes nothing; use 1 or more.")
    model = find_model(options.model)
    device = _device(options.device)
    dtype = _dtype(options.dtype, device, model)
    arguments = call.arguments(options, model)
    guidance = call.guidance(arguments, model)
    prompts, notes = call.read_prompts(asked, model)
    config, reasons = layout.choose(options, model, device, guidance, len(asked) * options.images)
    request = Request(
        model=model.source,
        pictures=_pictures(options, model, asked, prompts),
        call=arguments,
        told=_told(model, arguments, guidance, device, dtype),
        config=config,
        dtype=dtype,
        device=device,
        overwrite=options.overwrite,
        fps=_fps(options, model),
    )
    return Prepared(request, tuple(notes), _plan(model, request, reasons))


def _read_prompts(options: Options) -> list[str]:
    if len(options.prompt) > 1:
        raise ValueError(f'put the prompt in quotes: dit-usp generate "{" ".join(options.prompt)}".')
    if options.prompts is None:
        if not options.prompt:
            raise ValueError('there is no prompt; say what to draw: dit-usp generate "a red heart".')
        prompts, source = list(options.prompt), "the prompt"
    elif options.prompt:
        raise ValueError("PROMPT and --prompts are both given; use one of them.")
    else:
        prompts, source = _lines(options.prompts), f"--prompts {options.prompts}"
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise ValueError(f'{source} is empty; say what to draw, such as "a red heart".')
    return prompts


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"--prompts {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {file} is not UTF-8 text.") from error


def _device(device: str | None) -> str:
    if device == "cpu":
        return "cpu"
    gpus = launch.num_gpus()
    if device == "cuda" and not gpus:
        raise ValueError("--device cuda: no GPU is found here; use --device cpu.")
    return "cuda" if gpus else "cpu"


def _dtype(dtype: str | None, device: str, model: Model) -> str:
    if dtype == "float16" and device == "cpu":
        raise ValueError("--dtype float16 is for GPUs; on the CPU use --dtype float32 or bfloat16.")
    # The types that models are published for; what comes with us is small enough for the exact one.
    return dtype or ("bfloat16" if device == "cuda" and not model.calls else "float32")


def _fps(options: Options, model: Model) -> float:
    if options.fps is None:
        return DEFAULT_FPS
    if not model.makes_clips:
        raise ValueError(f"--fps {options.fps:g}: {model.pipeline} makes pictures, not clips; leave it out.")
    if not 1 <= options.fps <= 50:  # GIF and WebP viewers slow shorter pictures than 20 ms down
        raise ValueError(f"--fps {options.fps:g} is out of range; use 1 to 50.")
    return options.fps


def _pictures(options: Options, model: Model, asked: list[str], prompts: list[str | int]) -> tuple[Picture, ...]:
    """Every picture with a seed fixed by its index, so that any of them can be made again alone."""
    seed = options.seed if options.seed is not None else secrets.randbelow(_RANDOM_SEEDS)
    total = len(asked) * options.images
    if not 0 <= seed <= MAX_SEED - total:
        raise ValueError(f"--seed {seed} is out of range; use 0 to {MAX_SEED - total}.")
    # Under a launcher the first rank alone writes, maybe on another machine than this one.
    paths = (
        outputs.name_files(options.output, asked, options.images, model.makes_clips, options.overwrite) if talks() else list(map(str, range(total)))
    )
    return tuple(
        Picture(prompts[index // options.images], seed + index, path, _if_changed(asked[index // options.images], prompts[index // options.images]))
        for index, path in enumerate(paths)
    )


def _if_changed(asked: str, prompt: str | int) -> str:
    return asked if asked != str(prompt) else ""


def _told(model: Model, arguments: Mapping[str, Any], guidance: float | None, device: str, dtype: str) -> dict[str, Any]:
    """What every file says, beside its own prompt, seed and size."""
    named = {"num_inference_steps": "steps", "guidance_scale": "guidance", "negative_prompt": "negative"}
    steps = arguments.get("num_inference_steps", model.parameters["num_inference_steps"].default)
    told = {"model": model.name, "pipeline": model.pipeline, "steps": steps} | ({} if guidance is None else {"guidance": guidance})
    told |= {named.get(name, name): value for name, value in arguments.items() if name not in ("height", "width", "num_frames")}
    versions = {"dit-usp": __version__, **{package: version(package) for package in ("diffusers", "transformers", "torch")}}
    return told | {"device": device, "dtype": dtype, "versions": versions}


def _plan(model: Model, request: Request, reasons: list[str]) -> tuple[str, ...]:
    config = request.config
    height, width = call.size(request.call, model)
    tokens = model.tokens(height, width, request.call.get("num_frames"))
    each = f", {-(-tokens // config.sequence_degree)} a rank" if config.sequence_degree > 1 else ""
    what = "clip" if model.makes_clips else "picture"
    count = f"{len(request.pictures)} {what}{'s' if len(request.pictures) > 1 else ''}"
    ring = f", keys by {config.ring_method}" if config.ring_degree > 1 else ""
    return (
        f"layout: {config} = {config.world_size} rank{'s' if config.world_size > 1 else ''} ({request.device}, {request.dtype}{ring})",
        f"why: {' '.join(reasons)}",
        f"work: {count} of {width} x {height} by {model.pipeline} of {model.name}, {request.told['steps']} steps, {tokens} tokens{each}",
    )

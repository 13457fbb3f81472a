"""From the options of `generate` to a Request: everything is checked here, before a process starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_usp import launch, media
from dit_usp.cli import call, layout, outputs, siblings
from dit_usp.cli.clips import read_timing
from dit_usp.cli.console import talks
from dit_usp.cli.inputs import Inputs, read_inputs
from dit_usp.cli.model import Model, find_model
from dit_usp.engine import versions
from dit_usp.media import TENSORS
from dit_usp.request import MAX_SEED, Picture, Request, random_seed, told_of_call
from dit_usp.signature import FRAMES, PROMPTS

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options


@dataclass(frozen=True)
class Prepared:
    """A request, and what the user is told about it.

    Attributes:
        notes: what became of the prompts, and what was rounded.
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
    _check_text(options)
    asked = _read_prompts(options)
    if options.images < 1:
        raise ValueError(f"--images {options.images} makes nothing; use 1 or more.")
    model, chosen = siblings.choose(options, named := find_model(options.model))
    asked = _for_pipeline(asked, model)
    device = _device(options.device)
    dtype = _dtype(options.dtype, device, model)
    inputs = read_inputs(options, model)
    timing = read_timing(options, model, inputs)
    arguments = call.arguments(options, model, inputs, timing)
    unguided = call.switched_off(arguments, model)
    prompts, notes = call.read_prompts(asked, model)
    config, reasons = layout.choose(options, model, device, unguided, len(asked) * options.images, _starts(arguments, model))
    _check_latents(arguments, len(asked) * options.images, model)
    pictures = _pictures(options, model, asked, prompts, _frames(arguments, model))
    request = Request(
        model=model.source,
        pictures=pictures,
        pipeline=model.pipeline if model.pipeline != named.pipeline else None,
        call=arguments | model.call.output_type(latents=Path(pictures[0].path).suffix.lower() == TENSORS),
        told=_told(model, arguments, device, dtype),
        config=config,
        dtype=dtype,
        device=device,
        overwrite=options.overwrite,
        fps=timing.fps if model.call.kind == "clip" else None,
        speed=({"compile": "blocks"} if options.compiled else {}) | ({} if options.graph else {"graph": False}),
    )
    for picture in pictures:
        request.target(picture)  # has room for what it says
    said = (*chosen, *notes, *call.notes(options, model), *timing.notes, *_without_sound(pictures[0].path, model))
    return Prepared(request, said, _plan(model, request, reasons, inputs))


def _starts(arguments: Mapping[str, Any], model: Model) -> bool:
    """Whether the results start from files."""
    return any(media.form(model.pipeline, name) or _is_tensor(value) for name, value in arguments.items())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(TENSORS)


def _check_latents(arguments: Mapping[str, Any], total: int, model: Model) -> None:
    if total > 1 and _is_tensor(latents := arguments.get("latents")):
        raise ValueError(f"--set latents={latents} is for one {model.call.kind}, but {total} are asked for; make them one by one.")


def _check_text(options: Options) -> None:
    """What is not UTF-8 comes as lone surrogates from the command line, and no tokenizer takes it."""
    words = [("PROMPT", options.prompt), ("--negative", [options.negative or ""]), ("--set", options.settings)]
    for name, texts in words:
        if any(0xD800 <= ord(letter) < 0xE000 for text in texts for letter in text):
            raise ValueError(f"{name} is not UTF-8 text.")


def _for_pipeline(asked: list[str], model: Model) -> list[str]:
    """The prompts, or one that is empty for a pipeline that takes none."""
    if model.call.first(PROMPTS):
        if not asked:
            raise ValueError('there is no prompt; say what to draw: dit-usp generate "a red heart".')
        return asked
    if asked:
        raise ValueError(f"{model.pipeline} takes no prompt; leave it out.")
    return [""]


def _without_sound(path: str, model: Model) -> tuple[str, ...]:
    suffix = Path(path).suffix.lower()
    silent = model.call.has_track and suffix in (".gif", ".webp")
    return (f"{suffix} holds no sound; use .mp4 to keep it",) if silent else ()


def _read_prompts(options: Options) -> list[str]:
    if len(options.prompt) > 1:
        raise ValueError(f'put the prompt in quotes: dit-usp generate "{" ".join(options.prompt)}".')
    if options.prompts is None:
        if not options.prompt:
            return []
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


def _frames(arguments: Mapping[str, Any], model: Model) -> int | None:
    """Of the clip that will be made, as far as is known."""
    name = model.call.first(FRAMES)
    return arguments.get(name, model.default_frames()) if name else None


def _pictures(options: Options, model: Model, asked: list[str], prompts: list[str | int], frames: int | None) -> tuple[Picture, ...]:
    """Every picture with a seed fixed by its index, so that any of them can be made again alone."""
    seed = options.seed if options.seed is not None else random_seed()
    total = len(asked) * options.images
    if not 0 <= seed <= MAX_SEED - total:
        raise ValueError(f"--seed {seed} is out of range; use 0 to {MAX_SEED - total}.")
    # Under a launcher the first rank alone writes, maybe on another machine than this one.
    paths = (
        outputs.name_files(options.output, asked, options.images, model.call, frames, options.overwrite) if talks() else _unwritten(options, total)
    )
    return tuple(
        Picture(prompts[index // options.images], seed + index, path, _if_changed(asked[index // options.images], prompts[index // options.images]))
        for index, path in enumerate(paths)
    )


def _unwritten(options: Options, total: int) -> list[str]:
    """Names by which the ranks that write nothing know what kind of file is written."""
    suffix = Path(options.output or "").suffix
    return [f"{index}{suffix}" for index in range(total)]


def _if_changed(asked: str, prompt: str | int) -> str:
    return asked if asked != str(prompt) else ""


def _told(model: Model, arguments: Mapping[str, Any], device: str, dtype: str) -> dict[str, Any]:
    """What every file says, beside its own prompt, seed and size."""
    told = {"model": model.name, "pipeline": model.pipeline, **told_of_call(model.call, arguments)}
    return told | {"device": device, "dtype": dtype, "versions": versions()}


def _plan(model: Model, request: Request, reasons: list[str], inputs: Inputs) -> tuple[str, ...]:
    config = request.config
    ring = f", keys by {config.ring_method}" if config.ring_degree > 1 else ""
    return (
        f"layout: {config} = {config.world_size} rank{'s' if config.world_size > 1 else ''} ({request.device}, {request.dtype}{ring})",
        f"why: {' '.join(reasons)}",
        f"work: {', '.join(_work(model, request, inputs))}",
    )


def _work(model: Model, request: Request, inputs: Inputs) -> Iterator[str]:
    """What is made, and what is known of it: "2 pictures of 256 x 256 by ...", "10 steps", "256 tokens", "128 a rank"."""
    count, (height, width) = len(request.pictures), call.size(request.call, model)
    known = height and width and not (inputs.pictured and "height" not in request.call)  # else many take the given picture's
    what = f"{count} {model.call.kind}{'s' if count > 1 else ''}{f' of {width} x {height}' if known and model.call.kind != 'sound' else ''}"
    yield f"{what} by {model.pipeline} of {model.name}"
    if steps := request.told.get("steps"):
        yield f"{steps} steps"
    tokens = model.tokens(height, width, _frames(request.call, model)) if known and height and width else None
    if tokens:
        yield f"{tokens} tokens"
        if request.config.sequence_degree > 1:
            yield f"{-(-tokens // request.config.sequence_degree)} a rank"

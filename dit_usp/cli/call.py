"""The arguments of the pipeline's call: what the user gave, checked against the model's own files."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dit_usp import prompts
from dit_usp.cli.clips import Timing
from dit_usp.cli.inputs import Inputs, check_needs, check_size, cut
from dit_usp.cli.model import Model
from dit_usp.cli.settings import read_settings
from dit_usp.pipelines.layout import contrast, off
from dit_usp.pipelines.table import TRUE_SCALE

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options

MAX_SIDE = 16384  # pixels; WebP's and most viewers' limit


def arguments(options: Options, model: Model, inputs: Inputs, timing: Timing) -> dict[str, Any]:
    """What is passed to the pipeline: the options given, what suits a model of ours, and --set; nothing else.

    Args:
        timing: with the arguments for frames and speed.

    Raises:
        ValueError: an argument the pipeline does not have or does not get though it needs it, or a value the model cannot work with.
    """
    given = {
        "num_inference_steps": ("--steps", options.steps),
        scale_name(model): ("--guidance", options.guidance),
        "height": ("--height", options.height),
        "width": ("--width", options.width),
        "negative_prompt": ("--negative", options.negative),
    }
    for name, (option, value) in given.items():
        if value is not None and name not in model.parameters:
            raise ValueError(f"{option}: {model.pipeline} {_lacks(name)}; leave it out.")
    ours = {name: value for name, value in model.calls.items() if name in model.parameters}
    call = ours | {name: value for name, (_, value) in given.items() if value is not None} | inputs.call | timing.call
    _check_steps(call, model)
    _check_sizes(call, model)
    call |= read_settings(options.settings, model, {scale_name(model): "--guidance"} | inputs.taken)
    _check_guidance(call, options, model)
    if timing.cut is not None:
        call = cut(call, timing.cut, model)
    check_needs(call, inputs, model)
    check_size(call, model)
    return call


def _lacks(name: str) -> str:
    return "has one size" if name in ("height", "width") else f"has no {name}"


def scale_name(model: Model) -> str:
    """What --guidance is in the pipeline's call: guidance_scale, unless only distilled models have a use for that and this is none."""
    if (real := contrast(model.pipeline, model.parameters)) == "guidance_scale":
        return real
    distilled = model.parameters[real].default <= 1 or model.transformer.get("guidance_embeds")
    return "guidance_scale" if "guidance_scale" in model.parameters and distilled else real


def switched_off(call: Mapping[str, Any], model: Model) -> tuple[str, str] | None:
    """What switches guidance off in the call, and what would switch it on; None: nothing that can be told before."""
    reason = off(model.pipeline, model.parameters, call)
    return reason and (_as_option(reason[0], model), _as_option(reason[1], model))


def _as_option(text: str, model: Model) -> str:
    """An argument in the command's words: "guidance_scale=1" -> "--guidance 1"."""
    for name, option in ((scale_name(model), "--guidance"), ("negative_prompt", "--negative")):
        text = text.replace(f"{name}=", f"{option} ").replace(name, option)
    return text


def _scale(name: str, call: Mapping[str, Any], model: Model) -> float | None:
    parameter = model.parameters.get(name)
    return call.get(name, parameter.default) if parameter else None


def notes(options: Options, model: Model) -> tuple[str, ...]:
    """What --guidance means where it is not the guidance_scale."""
    if options.guidance is None or scale_name(model) != TRUE_SCALE:
        return ()
    return (f"--guidance {options.guidance:g}: {TRUE_SCALE} of {model.pipeline}",)


def steps(call: Mapping[str, Any], model: Model) -> int | None:
    """The number of steps that will be used, or None where it is the pipeline's to say."""
    parameter = model.parameters.get("num_inference_steps")
    return call.get("num_inference_steps", parameter.default) if parameter else None


def _check_steps(call: Mapping[str, Any], model: Model) -> None:
    asked = call.get("num_inference_steps")
    solver = model.scheduler.get("_class_name", "")
    # PixArt's loop reads the second timestep, which a DPM-Solver run of one step does not have.
    least = 2 if model.transformer_class == "PixArtTransformer2DModel" and solver.startswith("DPMSolver") else 1
    most = model.scheduler.get("num_train_timesteps", 1000)
    if asked is not None and not least <= asked <= most:
        kind = model.call.kind
        raise ValueError(f"--steps {asked}: {model.name} makes a {kind} in {least} to {most} steps; use --steps {min(max(asked, least), most)}.")


def _check_guidance(call: Mapping[str, Any], options: Options, model: Model) -> None:
    scale = _scale(scale_name(model), call, model)
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"--guidance {scale:g} is not a strength; use 0 or more (1: no guidance).")
    strength = _scale(real := contrast(model.pipeline, model.parameters), call, model)
    if strength is not None and strength <= 1 and options.negative:
        optional = real == scale_name(model)
        named, remedy = (f"--guidance {strength:g}", "use --guidance above 1") if optional else (f"{real} {strength:g}", f"add --set {real}=4")
        raise ValueError(f"--negative has no effect with {named}; {remedy}, or leave --negative out.")
    if scale_name(model) == TRUE_SCALE and options.guidance is not None and options.guidance > 1 and options.negative is None:
        raise ValueError(f"--guidance has no effect in {model.pipeline} without --negative; add --negative ' ', or leave --guidance out.")


def _check_sizes(call: Mapping[str, Any], model: Model) -> None:
    unit = model.unit or 1
    for side in ("height", "width"):
        pixels = call.get(side)
        if pixels is None:
            continue
        nearest = min(max(unit, round(pixels / unit) * unit), MAX_SIDE)
        if pixels % unit or not 0 < pixels <= MAX_SIDE:
            raise ValueError(f"--{side} {pixels}: {model.name} makes multiples of {unit} from {unit} to {MAX_SIDE}; use --{side} {nearest}.")
        largest = model.transformer.get("pos_embed_max_size")
        if largest and model.unit and pixels > largest * unit:
            raise ValueError(f"--{side} {pixels}: {model.name} has positions for {largest} patches of {unit}; use --{side} {largest * unit}.")


def size(call: Mapping[str, Any], model: Model) -> tuple[int | None, int | None]:
    """Height and width in pixels; None where the pipeline decides."""
    height, width = (call.get(side, model.default(side)) for side in ("height", "width"))
    return height, width


def read_prompts(asked: Sequence[str], model: Model) -> tuple[list[str | int], list[str]]:
    """The prompts as the model reads them, and notes on what was changed.

    Raises:
        ValueError: a model of classes has none of that name.
    """
    if "class_labels" in model.parameters:
        labels = _labels(model)
        return [_label(text, labels, model) for text in asked], []
    if model.folder is None:
        return list(asked), []
    resolved = [prompts.resolve(text, model.folder) for text in asked]
    return [one.prompt for one in resolved], list(dict.fromkeys(one.note for one in resolved if one.note))


def _labels(model: Model) -> dict[str, int]:
    """The model's class names, as DiTPipeline splits them: "tench, Tinca tinca" are two names of one class."""
    listed = model.index.get("id2label") or {}
    return {name.strip().lower(): int(label) for label, names in listed.items() for name in names.split(",")}


def _label(text: str, labels: Mapping[str, int], model: Model) -> int:
    count = model.transformer["num_embeds_ada_norm"]
    if text.isdigit() and int(text) < count:
        return int(text)
    if text.lower() in labels:
        return labels[text.lower()]
    nearest = difflib.get_close_matches(text.lower(), labels, n=3, cutoff=0.3)
    known = f" Nearest: {', '.join(nearest)}." if nearest else f" Use 0 to {count - 1}."
    raise ValueError(f"{text!r} is no class of {model.name}.{known}")

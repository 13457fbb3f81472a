"""--image, --mask, --video ...: files that a pipeline starts from, under the names that its call has for them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_usp import media
from dit_usp.cli.model import Model
from dit_usp.media import Clip
from dit_usp.signature import Call

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options

# option -> arguments of diffusers' calls, of which a pipeline's first is meant
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "--image": ("image", "images", "input_images", "cond_image", "reference_images", "ref_image", "conditions"),
    "--mask": ("mask_image", "mask", "mask_video", "control_mask"),
    "--video": ("video", "control_video", "pose_video", "reference_conditions", "controls", "conditions"),
    "--control-image": ("control_image", "controls"),
    "--last-image": ("last_image", "conditions"),
    "--audio": ("audio", "src_audio", "initial_audio_waveforms"),
}
# What a condition says beside its file: a frame's number, counted from the end if negative.
_CONDITIONS: dict[str, dict[str, Any]] = {"--image": {"index": 0}, "--video": {"index": 0}, "--last-image": {"index": -1}}

# Pipelines whose several pictures belong to one result, though the annotation does not say so.
_SEVERAL = ("QwenImageEditPlusPipeline", "QwenImage21Pipeline")
KEEP_SIZE = ("ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
FROM_PYTHON = ("VisualClozePipeline", "VisualClozeGenerationPipeline")
# What a pipeline needs, where the annotation tells otherwise. An inner tuple: one of them is enough; nothing: it can do without.
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "CogVideoXFunControlPipeline": (("control_video",),),
    "CosmosVideoToWorldPipeline": (("image", "video"),),
    "Cosmos2VideoToWorldPipeline": (("image", "video"),),
    "Flux2KleinInpaintPipeline": (("image",), ("mask_image",)),
    "HunyuanImageRefinerPipeline": (("image",),),
    "EasyAnimateControlPipeline": (),
    "EasyAnimateInpaintPipeline": (("video",),),
    "FluxFillPipeline": (("image",), ("mask_image",)),
    "FluxKontextInpaintPipeline": (("image",), ("mask_image",)),
    "LongCatImageEditPipeline": (("image",),),
    "LTXConditionPipeline": (),
    "OmniGenPipeline": (),
    "QwenImageEditPipeline": (("image",),),
    "QwenImageEditInpaintPipeline": (("image",), ("mask_image",)),
    "QwenImageEditPlusPipeline": (("image",),),
    "QwenImageLayeredPipeline": (("image",),),
    "StableAudio3AudioToAudioPipeline": (("audio",),),
    "StableAudio3InpaintPipeline": (("audio",),),
}


@dataclass(frozen=True)
class Inputs:
    """What the user gave to start from.

    Attributes:
        call: arguments of the pipeline's call; files by their paths.
        taken: the option that gives each argument that has one.
        clip: the path of the clip that --video names.
        pictured: whether a picture is given, whose size many pipelines take over.
    """

    call: dict[str, Any]
    taken: dict[str, str]
    clip: str | None
    pictured: bool


def read_inputs(options: Options, model: Model) -> Inputs:
    """The files that the options name, each checked.

    Raises:
        ValueError: the pipeline has no such argument, takes one where several are given; a file cannot be read.
    """
    if model.pipeline in FROM_PYTHON:
        raise ValueError(f"{model.pipeline} starts from a table of example pictures; call it from Python.")
    call: dict[str, Any] = {}
    for option, paths in given_files(options).items():
        argument = argument_of(option, model)
        _check(option, paths, argument, model)
        _add(call, option, paths, argument, model)
    taken = {name: option for option in reversed(_ARGUMENTS) if (name := _first(option, model))}
    return Inputs(call, taken, options.video, bool(options.image or options.control_image))


def given_files(options: Options) -> dict[str, Sequence[str]]:
    """The files that each option names, of those that are given."""
    given = {
        "--image": options.image,
        "--mask": (options.mask,) if options.mask else (),
        "--video": (options.video,) if options.video else (),
        "--control-image": options.control_image,
        "--last-image": (options.last_image,) if options.last_image else (),
        "--audio": (options.audio,) if options.audio else (),
    }
    return {option: paths for option, paths in given.items() if paths}


def takes(model: Model, given: Collection[str]) -> bool:
    """Whether the pipeline has an argument for each of these options."""
    return all(_first(option, model) for option in given)


def serves(model: Model, given: Collection[str]) -> bool:
    """Whether it also needs nothing else."""
    arguments = [_first(option, model) for option in given]
    return takes(model, given) and all(any(name in arguments for name in names) for names in needed(model.call))


def argument_of(option: str, model: Model) -> str:
    """The argument of the pipeline's call that an option gives.

    Raises:
        ValueError: it has none.
    """
    if argument := _first(option, model):
        return argument
    known = [other for other in _ARGUMENTS if _first(other, model)]
    other = f"it takes {', '.join(known)}" if known else "it starts from text alone"
    raise ValueError(f"{option}: {model.pipeline} has no such input; {other}.")


def _first(option: str, model: Model) -> str | None:
    usable = [name for name in _ARGUMENTS[option] if name in model.parameters and media.form(model.pipeline, name)]
    return next((name for name in usable if name != "conditions" or "image" not in model.parameters), None)


def check_size(call: Mapping[str, Any], model: Model) -> None:
    """No other size than the given picture's is asked for, where the pipeline cannot resize.

    Raises:
        ValueError: one is.
    """
    if model.pipeline not in KEEP_SIZE or not isinstance(path := call.get("image"), str):
        return
    width, height = media.read_picture(path).size
    if (call.get("height", height), call.get("width", width)) != (height, width):
        raise ValueError(f"{model.pipeline} keeps the size of --image, {width} x {height}; leave out --height and --width.")


def _check(option: str, paths: Sequence[str], argument: str, model: Model) -> None:
    form = media.form(model.pipeline, argument)
    assert form
    if len(paths) > 1 and not _takes_several(argument, model):
        raise ValueError(f"{option} is given {len(paths)} times, but {model.pipeline} takes one; leave the others out.")
    for path in paths:
        media.check(path, media.Form("picture") if option in ("--image", "--last-image") and form.kind == "condition" else form, f"{option} {path}")


def _takes_several(argument: str, model: Model) -> bool:
    if argument == "control_image":
        return _has_controlnets(model)
    if argument == "image":
        listed = any("list" in name.lower() for name in model.parameters[argument].names)
        return model.pipeline in _SEVERAL or listed
    return argument in ("images", "input_images", "reference_images")


def _has_controlnets(model: Model) -> bool:
    """Whether there are several, which get a list of pictures, also if there is one alone."""
    entry = model.index.get("controlnet")
    return isinstance(entry, list) and "Multi" in str(entry[-1])


def _add(call: dict[str, Any], option: str, paths: Sequence[str], argument: str, model: Model) -> None:
    form = media.form(model.pipeline, argument)
    assert form
    if form.kind == "condition":
        place = _CONDITIONS[option] if argument == "conditions" else {}
        call.setdefault(argument, []).extend({"frames": path, **place} for path in paths)
    elif argument in call:
        raise ValueError(f"{option}: {model.pipeline} takes one input of pictures or a clip; leave one of the options out.")
    elif form.listed or len(paths) > 1 or (argument == "control_image" and _has_controlnets(model)):
        call[argument] = list(paths)
    else:
        call[argument] = paths[0]


def cut(call: dict[str, Any], frames: int, model: Model) -> dict[str, Any]:
    """The call with no more than `frames` of every clip."""
    clips = {name for name in call if (form := media.form(model.pipeline, name)) and form.kind == "clip"}
    return {name: Clip(value, frames) if name in clips and isinstance(value, str) else value for name, value in call.items()}


def check_needs(call: dict[str, Any], inputs: Inputs, model: Model) -> None:
    """Everything is given that the pipeline cannot do without.

    Raises:
        ValueError: names the options that are missing.
    """
    missing = [names for names in needed(model.call) if not any(call.get(name) is not None for name in names)]
    if missing:
        words = " and ".join(" or ".join(inputs.taken.get(name, f"--set {name}=FILE") for name in names) for names in missing)
        raise ValueError(f"{model.pipeline} needs {words}.")


def needed(call: Call) -> Iterator[tuple[str, ...]]:
    """By the table, else what has no default, or None for one that its annotation does not allow: diffusers' way to say "not without"."""
    if call.name in _NEEDS:
        yield from _NEEDS[call.name]
        return
    for name, parameter in call.parameters.items():
        if media.form(call.name, name) and (parameter.required or (parameter.default is None and "None" not in parameter.names)):
            yield (name,)

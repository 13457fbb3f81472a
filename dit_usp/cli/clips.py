"""--frames, --fps, --duration: how many frames a clip has, how fast they play, how long a sound lasts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_usp import media
from dit_usp.cli import sizes
from dit_usp.cli.inputs import Inputs
from dit_usp.cli.model import Model
from dit_usp.saving import MAX_FPS
from dit_usp.signature import FRAMES, RATES

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options

_SECONDS = ("duration", "audio_duration", "audio_duration_s", "audio_end_in_s")  # a sound's, by the names that calls have for it
# Pipelines that are told the number of frames, which has to be that of the clip they are given.
_AS_LONG = ("EasyAnimateControlPipeline", "EasyAnimateInpaintPipeline", "LucyEditPipeline", "WanVACEPipeline")
_LONGEST = 3600.0  # seconds


@dataclass(frozen=True)
class Timing:
    """What was decided.

    Attributes:
        call: arguments of the pipeline's call.
        fps: of the file.
        cut: how many frames are taken of the clips that are given; None: all.
        notes: what was rounded.
    """

    call: dict[str, Any]
    fps: float
    cut: int | None = None
    notes: tuple[str, ...] = ()


def read_timing(options: Options, model: Model, inputs: Inputs) -> Timing:
    """Frames, speed and length from the options, the given clip and the model.

    Raises:
        ValueError: the pipeline makes nothing of the kind, or a value is out of range.
    """
    kind = model.call.kind
    if options.duration is not None and not 0 < options.duration <= _LONGEST:
        raise ValueError(f"--duration {options.duration:g} is out of range; use up to {_LONGEST:g} seconds.")
    if kind == "sound" and options.frames is None and options.fps is None:
        return Timing(_seconds(options, model), model.fps)
    for option, value in (("--frames", options.frames), ("--fps", options.fps), ("--duration", options.duration)):
        if value is not None and kind != "clip":
            raise ValueError(f"{option} {value:g}: {model.pipeline} makes {kind}s, not clips; leave it out.")
    if options.frames is not None and options.duration is not None:
        raise ValueError("--frames and --duration are both given; use one of them.")
    fps, spoken = _fps(options, model, inputs)
    wanted = options.frames if options.duration is None else options.duration * fps
    if wanted is not None and wanted < 1:
        raise ValueError(f"--frames {wanted:g} makes nothing; use 1 or more." if options.frames is not None else _too_short(options, fps))
    name = model.call.first(FRAMES)
    if inputs.clip is not None and (name is None or model.pipeline in _AS_LONG):
        there = media.count_frames(inputs.clip)
        made, notes = _of_clip(options, model, wanted, fps, there)
        spoken |= {name: made} if name else {}
        return Timing(spoken, model.call.played(fps), made if made < there else None, notes)
    length, notes = _anew(options, model, wanted, fps, name)
    return Timing(spoken | length, model.call.played(fps), None, notes)


def _seconds(options: Options, model: Model) -> dict[str, Any]:
    """The argument for the length of a sound."""
    if options.duration is None:
        return {}
    name = model.call.first(_SECONDS)
    if name is None:
        raise ValueError(f"--duration: {model.pipeline} has one length; leave it out.")
    return {name: options.duration}


def _fps(options: Options, model: Model, inputs: Inputs) -> tuple[float, dict[str, Any]]:
    """The user's, else the given clip's unless the pipeline assumes its own, else the model's; and the argument for it, if the user named one."""
    name = model.call.first(RATES)
    if options.fps is None:
        return (media.clip_fps(inputs.clip) if inputs.clip and name is None else None) or model.fps, {}
    suffix = Path(options.output or "").suffix.lower()
    most = MAX_FPS.get(suffix, max(MAX_FPS.values()))
    if not 1 <= options.fps <= most:
        raise ValueError(f"--fps {options.fps:g} is out of range; use 1 to {most:g}{f' for {suffix}' if suffix in MAX_FPS else ''}.")
    if name is None:
        return options.fps, {}
    if "float" in model.parameters[name].names:
        return options.fps, {name: options.fps}
    if options.fps != int(options.fps):
        raise ValueError(f"--fps {options.fps:g}: {model.pipeline} takes whole numbers; use --fps {round(options.fps)}.")
    return options.fps, {name: int(options.fps)}


def _anew(options: Options, model: Model, wanted: float | None, fps: float, name: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The argument for the number of frames, and what is said about it."""
    if wanted is None:
        return {}, ()
    if name is None:
        option = "--frames" if options.duration is None else "--duration"
        raise ValueError(f"{option}: {model.pipeline} makes as many frames as it is given; leave it out.")
    rounded = sizes.made_frames if options.duration is None else sizes.nearest_frames
    made = rounded(wanted, model.call, model.vae)
    return {name: made}, _told(options, model, made, fps) if made != wanted else ()


def _of_clip(options: Options, model: Model, wanted: float | None, fps: float, there: int) -> tuple[int, tuple[str, ...]]:
    """How many of the given clip's frames are taken, and what is said about it.

    Raises:
        ValueError: more than it has.
    """
    if wanted is not None and wanted > there:
        option = f"--frames {options.frames}" if options.duration is None else f"--duration {options.duration:g}"
        raise ValueError(f"{option}: {options.video} has {there} frames, {there / fps:.2f} s; leave it out.")
    made = sizes.at_most(there if wanted is None else round(wanted), model.call, model.vae)
    if wanted is not None:
        return made, _told(options, model, made, fps) if made != wanted else ()
    return made, (f"{options.video}: {model.pipeline} takes {made} of its {there} frames",) if made != there else ()


def _too_short(options: Options, fps: float) -> str:
    return f"--duration {options.duration:g} is no whole frame at {fps:g} a second; use {1 / fps:.2g} or more."


def _told(options: Options, model: Model, made: int, fps: float) -> tuple[str, ...]:
    if options.duration is not None:
        return (f"{options.duration:g} s at {fps:g} frames a second: {made} frames, {made / fps:.2f} s",)
    step = sizes.frames_a_latent(model.vae)
    return (f"--frames {options.frames}: {model.pipeline} makes {step}k + 1 frames, here {made}",)

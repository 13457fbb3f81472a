"""--frames, --fps, --duration: how many frames a clip has, how fast they play, how long a sound lasts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_usp import media
from dit_usp.cli import sizes
from dit_usp.cli.inputs import Inputs, cut
from dit_usp.cli.model import Model
from dit_usp.saving import MAX_FPS
from dit_usp.signature import FRAMES, RATES

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options

_SECONDS = ("duration", "audio_duration", "audio_duration_s", "audio_end_in_s")  # a sound's, by the names that calls have for it
_LONGEST = 3600.0  # seconds


@dataclass(frozen=True)
class Timing:
    """What was decided.

    Attributes:
        call: arguments of the pipeline's call.
        fps: of the file.
        notes: what was rounded.
    """

    call: dict[str, Any]
    fps: float
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
        return Timing(inputs.call | _seconds(options, model), model.fps)
    for option, value in (("--frames", options.frames), ("--fps", options.fps), ("--duration", options.duration)):
        if value is not None and kind != "clip":
            raise ValueError(f"{option} {value:g}: {model.pipeline} makes {kind}s, not clips; leave it out.")
    if options.frames is not None and options.duration is not None:
        raise ValueError("--frames and --duration are both given; use one of them.")
    fps, spoken = _fps(options, model, inputs)
    frames, notes = _frames(options, model, fps, inputs)
    return Timing(frames | spoken, model.call.played(fps), notes)


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


def _frames(options: Options, model: Model, fps: float, inputs: Inputs) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The inputs with the number of frames, and what is said about it."""
    wanted = options.frames if options.duration is None else options.duration * fps
    if wanted is None:
        return inputs.call, ()
    if wanted < 1:
        raise ValueError(f"--frames {wanted:g} makes nothing; use 1 or more." if options.frames is not None else _too_short(options, fps))
    rounded = sizes.made_frames if options.duration is None else sizes.nearest_frames
    made = rounded(wanted, model.call, model.vae)
    name = model.call.first(FRAMES)
    if name is None and inputs.clip is None:
        option = "--frames" if options.duration is None else "--duration"
        raise ValueError(f"{option}: {model.pipeline} makes as many frames as it is given; leave it out.")
    notes = (_told(options, model, made, fps),) if made != wanted else ()
    return (inputs.call | {name: made} if name else cut(inputs, made)), notes


def _too_short(options: Options, fps: float) -> str:
    return f"--duration {options.duration:g} is no whole frame at {fps:g} a second; use {1 / fps:.2g} or more."


def _told(options: Options, model: Model, made: int, fps: float) -> str:
    if options.duration is not None:
        return f"{options.duration:g} s at {fps:g} frames a second: {made} frames, {made / fps:.2f} s"
    step = sizes.frames_a_latent(model.vae)
    return f"--frames {options.frames}: {model.pipeline} makes {step}k + 1 frames, here {made}"

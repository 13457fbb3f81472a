"""From a pipeline's output to files: which field holds the results, whose rows are whose, and what shape they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit_usp.formats import Clip, Sound
from dit_usp.media import sampling_rate
from dit_usp.saving import Target, save
from dit_usp.signature import KINDS, RATES, TRACKS, Call

_ALONE = ("Cosmos3OmniPipeline", "SanaWMPipeline")  # their results are one clip, not a batch of them


def save_results(output: Mapping[str, Any], targets: Sequence[Target], pipe: Any, made: Call, call: Mapping[str, Any]) -> list[str]:
    """Write every result of a pipeline's output to its target; return the paths they got.

    Args:
        made: what the pipeline's call gives.
        call: the arguments it was given.
    """
    if targets[0].wants_latents:
        return [str(save(_latents(output, row, len(targets)), target)) for row, target in enumerate(targets)]
    field = next(name for name in made.results if name in KINDS)
    rows = [output[field]] if made.name in _ALONE else output[field]
    paths = []
    for row, (value, target) in enumerate(zip(rows, targets, strict=True)):
        if made.kind == "sound":
            paths.append(save(Sound(_array(value), sampling_rate(pipe)), target))
        elif made.kind == "clip":
            rate = next((call[name] for name in RATES if name in call), None)
            fps = target.fps or made.played(rate or made.fps_of(pipe.config))
            paths.append(save(Clip(_pictures(value), _track(output, row, pipe, made)), replace(target, fps=fps)))
        else:
            paths += _save_pictures(value, target)
    return [str(path) for path in paths]


def _save_pictures(value: Any, target: Target) -> list[Path]:
    """One picture; or the layers of one, each in a file with its number (owl-1.png, owl-2.png)."""
    if not isinstance(value, (list, tuple)) or len(value) == 1:
        return [save(value if not isinstance(value, (list, tuple)) else value[0], target)]
    path = Path(target.path)
    return [save(layer, replace(target, path=str(path.with_stem(f"{path.stem}-{number}")))) for number, layer in enumerate(value, 1)]


def _track(output: Mapping[str, Any], row: int, pipe: Any, made: Call) -> Sound | None:
    """The sound of a clip: (C, N) or (N,) for each."""
    field = next((name for name in TRACKS if output.get(name) is not None), None)
    if field is None:
        return None
    return Sound(_array(output[field] if made.name in _ALONE else output[field][row]), sampling_rate(pipe))


def _latents(output: Mapping[str, Any], row: int, rows: int) -> dict[str, Any]:
    """The tensors of one result by name: "latents" for the result itself, "audio_latents" and so on for the rest. All of a lone one's batch stays."""
    by_place = {value.data_ptr(): name for name, value in reversed(list(output.items())) if hasattr(value, "detach")}  # SanaWM's are there twice
    tensors = {name: output[name] for name in by_place.values()}
    if not tensors:
        raise ValueError("this pipeline gives no latents as tensors; save what it decodes.")
    names = {name: "latents" if name in KINDS else f"{name}_latents" if name in TRACKS else name for name in tensors}
    return {names[name]: value if rows == 1 else value[row : row + 1] for name, value in tensors.items()}


def _pictures(frames: Any) -> list[Any]:
    """Frames as pictures: already so, or (F, H, W, C) of numpy or (F, C, H, W) of torch, from 0 to 1."""
    if isinstance(frames, (list, tuple)):
        return list(frames)
    import PIL.Image

    array = _array(frames if not hasattr(frames, "detach") else frames.movedim(1, -1))
    return [PIL.Image.fromarray(frame) for frame in (array.clip(0, 1) * 255).round().astype("uint8")]


def _array(value: Any) -> Any:
    """A tensor or array as a float array of numpy."""
    return value.detach().float().cpu().numpy() if hasattr(value, "detach") else value

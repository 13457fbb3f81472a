"""Which pipeline runs a model: model_index.json's, the one that --pipeline names, or one with the same weights that takes what is given."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dit_usp.cli.inputs import given_files, serves, takes
from dit_usp.cli.model import Model, is_there
from dit_usp.pipelines.table import PIPELINES
from dit_usp.signature import read_components

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options

# Pipelines for one and the same weights. Of those that take all that is given, the first is meant.
_SAME_WEIGHTS: tuple[tuple[str, ...], ...] = (
    ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    ("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
    ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    ("QwenImageEditPipeline", "QwenImageEditInpaintPipeline"),
    ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    ("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
    ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
    (
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    ),
    ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline"),
    ("LTXPipeline", "LTXImageToVideoPipeline"),
    ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"),
    ("SanaVideoPipeline", "SanaImageToVideoPipeline"),
    ("StableAudio3Pipeline", "StableAudio3AudioToAudioPipeline"),
)
_ONLY_WITH = {"WanImageToVideoPipeline": "expand_timesteps"}  # the one Wan that is trained on text and pictures; others have weights for each


def choose(options: Options, model: Model) -> tuple[Model, tuple[str, ...]]:
    """The model in the pipeline that is meant, and a note if that is not model_index.json's.

    Raises:
        ValueError: --pipeline names none for its transformer, or one with parts that it lacks; or only such a pipeline takes what is given.
    """
    if options.pipeline is not None:
        return _asked(options.pipeline, model), ()
    given = given_files(options)
    if takes(model, given):
        return model, ()
    family = next((names for names in _SAME_WEIGHTS if model.pipeline in names), ())
    others = [other for name in _row(model) if name != model.pipeline and serves(other := _as(name, model), given)]
    fitting = [other for other in others if other.pipeline in family and _is_whole(other)]
    if fitting:
        return fitting[0], (f"{fitting[0].pipeline}, since {_words(given)} given",)
    if others:
        raise ValueError(f"{next(iter(given))}: {model.pipeline} has no such input; {_instead(others[0])}.")
    return model, ()  # reading its inputs says what it takes


def _words(given: Mapping[str, Any]) -> str:
    return f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'}"


def _instead(other: Model) -> str:
    if lacking := _lacking(other):
        return f"{other.pipeline} has, but needs {', '.join(lacking)}, which {other.name} does not have"
    return f"{other.pipeline} has, for weights of its own: if {other.name} has them, add --pipeline {other.pipeline}"


def _asked(name: str, model: Model) -> Model:
    if name not in (row := _row(model)):
        nearest = difflib.get_close_matches(name, row, n=3, cutoff=0.3) or row
        raise ValueError(f"--pipeline {name}: none of that name runs {model.transformer_class}; the nearest that do: {', '.join(nearest)}.")
    if lacking := _lacking(other := _as(name, model)):
        raise ValueError(f"--pipeline {name} needs {', '.join(lacking)}, which {model.name} does not have.")
    return other


def _row(model: Model) -> Sequence[str]:
    """The pipelines that run its transformer."""
    return PIPELINES.get(model.transformer_class, ())


def _as(name: str, model: Model) -> Model:
    return replace(model, index={**model.index, "_class_name": name})


def _lacking(model: Model) -> list[str]:
    """The parts that its pipeline cannot do without and its folder does not have."""
    return [part for part, needed in read_components(model.pipeline).items() if needed and not is_there(model.index.get(part))]


def _is_whole(model: Model) -> bool:
    """Whether its pipeline takes everything that its folder has and says, and has all it needs."""
    known, only = read_components(model.pipeline), _ONLY_WITH.get(model.pipeline)
    says = [name for name, entry in model.index.items() if not name.startswith("_") and (is_there(entry) if isinstance(entry, list) else entry)]
    return all(name in known for name in says) and not _lacking(model) and (only is None or bool(model.index.get(only)))

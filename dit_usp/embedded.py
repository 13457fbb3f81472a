"""The models that come with dit-usp. No torch here."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

# What suits each, by its pipeline's names, and "fps". Half the steps look the same (the figures are in its model card), and the size is the one asked
# for: PixArt would make the nearest of its table's and stretch it.
_CALLS: dict[str, dict[str, Any]] = {
    "emoji-pixart-256": {"num_inference_steps": 10, "guidance_scale": 3.0, "use_resolution_binning": False},
    "emoji-video": {
        **{"num_inference_steps": 10, "guidance_scale": 3.0, "height": 128, "width": 128, "num_frames": 13},
        **{"max_sequence_length": 32, "fps": 10},  # 32 tokens: the longest caption it learnt; WanPipeline pads to 512
    },
}


def embedded() -> dict[str, Path]:
    """The folders of the models that come with dit-usp, by name."""
    data = Path(str(files("dit_usp"))) / "data"
    return {path.parent.name: path.parent for path in sorted(data.glob("*/model_index.json"))}


def located(model: str) -> str:
    """The folder of an embedded model called by its name; any other model (a folder, a hub id) as it is."""
    return str(embedded().get(str(model), model))


def suited(model: str) -> dict[str, Any]:
    """The arguments that suit an embedded model, called by its name or its folder; none for any other model."""
    folder = Path(located(model)).resolve()
    return dict(_CALLS[folder.name]) if folder in map(Path.resolve, embedded().values()) else {}

"""The models that come with dit-usp. No torch here."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def embedded() -> dict[str, Path]:
    """The folders of the models that come with dit-usp, by name."""
    data = Path(str(files("dit_usp"))) / "data"
    return {path.parent.name: path.parent for path in sorted(data.glob("*/model_index.json"))}


def located(model: str) -> str:
    """The folder of an embedded model called by its name; any other model (a folder, a hub id) as it is."""
    return str(embedded().get(str(model), model))

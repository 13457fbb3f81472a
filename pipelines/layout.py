"""Whether a model can take a layout, from its config.json alone: before weights are loaded, and before the first collective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.models import find_plan


def default_layout(world_size: int, model: str, config: Mapping[str, Any]) -> ParallelConfig:
    """The layout we pick for a transformer class `model` with the entries of its config.json."""
    return ParallelConfig.auto(world_size, heads=config.get("num_attention_heads"), guidance=_halves(model))


def _halves(model: str) -> bool:
    """Whether its pipelines give the model both halves of guidance as one batch."""
    plan = find_plan(model)  # a model that runs by its own `_cp_plan` has none
    return plan is not None and plan.guidance == "batch"


def check_layout(parallel: ParallelConfig, model: str, config: Mapping[str, Any]) -> None:
    """Refuse what the transformer class `model` cannot do.

    Raises:
        UnsupportedError: fewer heads than ulysses_degree, or guidance that is not two halves of one batch with cfg_degree=2.
    """
    heads = config.get("num_attention_heads")
    if heads is not None:
        parallel.check_heads(heads, model)
    if parallel.cfg_degree > 1 and not _halves(model):
        raise UnsupportedError(
            f"cfg_degree=2 needs guidance as two halves of one batch, which {model} does not get from its pipelines. "
            f"Try {without_cfg(parallel, heads)}."
        )


def without_cfg(parallel: ParallelConfig, heads: int | None) -> str:
    """The degrees that put the ranks of both halves of guidance to use where there is none."""
    other = ParallelConfig.auto(parallel.cfg_degree * parallel.sequence_degree, heads=heads)
    return f"cfg_degree=1 with ulysses_degree={other.ulysses_degree} ring_degree={other.ring_degree}"

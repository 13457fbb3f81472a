"""Whether a pipeline can take a layout, from its JSON files alone: before weights are loaded, and before the first collective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.models import find_plan
from dit_usp.pipelines.table import NOT_DEALT, NOT_HALVED

Part = tuple[str, Mapping[str, Any]]  # a transformer's or a ControlNet's class name, and its config.json


def planned(index: Mapping[str, Any]) -> dict[str, str]:
    """The class names of the parts of model_index.json that are shared, by the part's name. A transformer without a plan is one of them."""
    classes = {name: entry[1] for name, entry in index.items() if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[1]}
    return {name: model for name, model in classes.items() if name == "transformer" or find_plan(model)}


def default_layout(world_size: int, pipeline: str, parts: Sequence[Part], guided: bool) -> ParallelConfig:
    """The layout we pick for the diffusers pipeline `pipeline` with these parts; `guided`: its calls have guidance unless they say otherwise."""
    return ParallelConfig.auto(world_size, heads=fewest_heads(parts), guidance=guided and has_halves(pipeline, parts))


def has_halves(pipeline: str, parts: Sequence[Part]) -> bool:
    """Whether the pipeline gives its models both halves of guidance as one batch."""
    plans = [find_plan(model) for model, _ in parts]  # a model that runs by its own `_cp_plan` has none
    return pipeline not in NOT_HALVED and all(plan is not None and plan.guidance == "batch" for plan in plans)


def fewest_heads(parts: Sequence[Part]) -> int | None:
    """What bounds ulysses_degree; None if no config says."""
    return min((heads for part in parts if (heads := _heads(part)) is not None), default=None)


def _heads(part: Part) -> int | None:
    plan = find_plan(part[0])
    return plan.num_heads(part[1]) if plan else part[1].get("num_attention_heads")


def check_layout(parallel: ParallelConfig, pipeline: str, parts: Sequence[Part]) -> None:
    """Refuse what the pipeline cannot do.

    Raises:
        UnsupportedError: fewer heads than ulysses_degree, guidance that is not two halves of one batch with cfg_degree=2, or data_degree > 1
            where a call makes one thing, or its things depend on one another.
    """
    for part in parts:
        if (heads := _heads(part)) is not None:
            parallel.check_heads(heads, part[0])
    if parallel.cfg_degree > 1 and not has_halves(pipeline, parts):
        reason = f"{pipeline} does not make: {NOT_HALVED[pipeline]}" if pipeline in NOT_HALVED else f"{parts[0][0]} does not get from its pipelines"
        raise UnsupportedError(
            f"cfg_degree=2 needs guidance as two halves of one batch, which {reason}. Try {without_cfg(parallel, fewest_heads(parts))}."
        )
    if parallel.data_degree > 1 and pipeline in NOT_DEALT:
        ranks = parallel.data_degree * parallel.sequence_degree
        raise UnsupportedError(
            f"data_degree={parallel.data_degree} deals several results of a call over replicas, but {pipeline} {NOT_DEALT[pipeline]}. "
            f"Try data_degree=1 with {sequence_degrees(ranks, fewest_heads(parts))}."
        )


def without_cfg(parallel: ParallelConfig, heads: int | None) -> str:
    """The degrees that put the ranks of both halves of guidance to use where there is none."""
    return f"cfg_degree=1 with {sequence_degrees(parallel.cfg_degree * parallel.sequence_degree, heads)}"


def sequence_degrees(ranks: int, heads: int | None) -> str:
    """How so many ranks would share a sequence."""
    other = ParallelConfig.auto(ranks, heads=heads)
    return f"ulysses_degree={other.ulysses_degree} ring_degree={other.ring_degree}"

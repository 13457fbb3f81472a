"""Whether a pipeline can take a layout, from its JSON files alone: before weights are loaded, and before the first collective."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.models import find_plan
from dit_usp.pipelines.table import IGNORES_TRUE, NO_GUIDANCE, NOT_DEALT, NOT_HALVED, TRUE_SCALE

Part = tuple[str, Mapping[str, Any]]  # a transformer's or a ControlNet's class name, and its config.json


def planned(index: Mapping[str, Any]) -> dict[str, str]:
    """The class names of the parts of model_index.json that are shared, by the part's name. A transformer without a plan is one of them."""
    classes = {name: entry[1] for name, entry in index.items() if isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[1]}
    return {name: model for name, model in classes.items() if name == "transformer" or find_plan(model)}


def default_layout(world_size: int, pipeline: str, parts: Sequence[Part], guided: bool) -> ParallelConfig:
    """The layout we pick for the diffusers pipeline `pipeline` with these parts; `guided`: its calls have guidance unless they say otherwise."""
    return ParallelConfig.auto(world_size, heads=fewest_heads(parts), guidance=guided and has_halves(pipeline, parts))


def has_halves(pipeline: str, parts: Sequence[Part]) -> bool:
    """Whether the pipeline gives its models both halves of guidance, as one batch or in two calls."""
    plans = [find_plan(model) for model, _ in parts]  # a model that runs by its own `_cp_plan` has none
    kinds = {plan.guidance if plan else "" for plan in plans}
    return pipeline not in NOT_HALVED and (kinds <= {"batch"} or "calls" in kinds <= {"calls", "whole"})


def may_be_unguided(index: Mapping[str, Any]) -> bool:
    """Whether a pipeline's model_index.json, or its config, says that it makes no second call a step, or leaves that to a guider's settings."""
    return bool(index.get("is_distilled")) or "guider" in index


def off(pipeline: str, parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """What switches the guidance off in a call of the pipeline, and what would switch it on; None: nothing that its arguments tell.

    Args:
        parameters: those of diffusers' call, by name.
        arguments: those given.
    """
    name = contrast(pipeline, parameters)
    scale = arguments.get(name, parameters[name].default) if name in parameters else None
    if isinstance(scale, (int, float)) and scale <= (none := NO_GUIDANCE.get(pipeline, 1)):
        return f"{name}={scale:g}", f"{name} above {none}"
    if name == TRUE_SCALE and all(arguments.get(negative) is None for negative in ("negative_prompt", "negative_prompt_embeds")):
        return "a missing negative_prompt", "negative_prompt=' '"
    return None


def contrast(pipeline: str, parameters: Collection[str]) -> str:
    """The prompt's strength against the negative one. Where that is true_cfg_scale, guidance_scale is another thing, told to a distilled model."""
    return TRUE_SCALE if TRUE_SCALE in parameters and pipeline not in IGNORES_TRUE else "guidance_scale"


def fewest_heads(parts: Sequence[Part]) -> int | None:
    """What bounds ulysses_degree; None if no config says."""
    return min((heads for part in parts if (heads := _heads(part)) is not None), default=None)


def _heads(part: Part) -> int | None:
    plan = find_plan(part[0])
    return plan.num_heads(part[1]) if plan else part[1].get("num_attention_heads")


def check_layout(parallel: ParallelConfig, pipeline: str, parts: Sequence[Part]) -> None:
    """Refuse what the pipeline cannot do.

    Raises:
        UnsupportedError: fewer heads than ulysses_degree, guidance that cannot be shared with cfg_degree=2, or data_degree > 1
            where a call makes one thing, or its things depend on one another.
    """
    for part in parts:
        if (heads := _heads(part)) is not None:
            parallel.check_heads(heads, part[0])
    if parallel.cfg_degree > 1 and not has_halves(pipeline, parts):
        reason = f"{pipeline} does not make: {NOT_HALVED[pipeline]}" if pipeline in NOT_HALVED else f"{parts[0][0]} does not get from its pipelines"
        raise UnsupportedError(
            f"cfg_degree=2 needs guidance as two halves of one batch or two calls a step, which {reason}. "
            f"Try {without_cfg(parallel, fewest_heads(parts))}."
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
    method = " ring_method='gather'" if other.ring_degree > 1 and other.ring_method == "gather" else ""
    return f"ulysses_degree={other.ulysses_degree} ring_degree={other.ring_degree}{method}"

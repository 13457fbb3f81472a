"""diffusers' own context-parallel plan, `_cp_plan`, read as a shard plan: for transformers that dit_usp.models does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from dit_usp.plan import LEARN, Call, Exchange, Gather, Place, ShardPlan, Split, Word


def translated(transformer: nn.Module) -> ShardPlan | None:
    """The shard plan that the transformer's `_cp_plan` amounts to, or None where it has none.

    Such a plan does not name the attentions that see every token, nor say which tensors hold the same tokens. So every processor is rebound, and the
    calls that pass diffusers' own mark on (parallel_config) are exchanged, as diffusers does; lengths are learnt, once for each input shape.
    """
    plan = getattr(transformer, "_cp_plan", None)
    if not plan:
        return None
    attentions = tuple(name for name, module in transformer.named_modules() if hasattr(module, "processor"))
    words = [word for module, entry in plan.items() for word in _words(module, entry)]
    streams = tuple(stream for word in words if isinstance(word, Split) for stream in word.streams)
    return ShardPlan(type(transformer).__name__, (*words, Exchange(attentions, Call(LEARN, LEARN, marked=True))), full=streams)


def _words(module: str, entry: Any) -> Iterator[Word]:
    if not isinstance(entry, dict):
        yield Gather(Place(module, None, ()), entry.gather_dim, LEARN)
        return
    for key, inputs in entry.items():
        several = isinstance(inputs, (list, tuple))
        for index, item in enumerate(inputs if several else (inputs,)):
            path = (index,) if several else ()
            place = Place(module, None, (key, *path)) if item.split_output else Place(module, key, path)
            yield Split((place,), item.split_dim, (str(place),), item.expected_dims)

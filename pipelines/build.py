"""USP classes made from diffusers' classes, and the one that a saved pipeline asks for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import diffusers

from dit_usp import pipelines
from dit_usp.config import ParallelConfig
from dit_usp.embedded import located
from dit_usp.errors import UnsupportedError
from dit_usp.pipelines.base import USPPipelineMixin, hub_options
from dit_usp.pipelines.table import BY_HAND, NAMES

# They put layers of PEFT's around those that a plan names, or take them away: a hook on the inner layer would miss what the outer one adds.
_REBUILDS = ("load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora", "load_ip_adapter", "unload_ip_adapter")


def usp_class(name: str) -> type[USPPipelineMixin]:
    """The diffusers pipeline `name` with its call shared over ranks. Signature and documentation of the call are diffusers' own."""
    base = getattr(diffusers, name)

    @functools.wraps(base.__call__)
    def call(self: USPPipelineMixin, *args: Any, **kwargs: Any) -> Any:
        return self._share_call(base.__call__, args, kwargs)

    members: dict[str, Any] = {"__call__": call, "__module__": pipelines.__name__, "__doc__": inspect.getdoc(base)}
    members |= {method: _on_plain(getattr(base, method)) for method in _REBUILDS if hasattr(base, method)}
    if hasattr(base, "from_single_file"):
        members["from_single_file"] = USPPipelineMixin.__dict__["_from_single_file"]
    return type(f"USP{name}", (USPPipelineMixin, base), members)


def _on_plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` on transformers without our hooks, which then go on again."""

    @functools.wraps(method)
    def rebuilding(self: USPPipelineMixin, *args: Any, **kwargs: Any) -> Any:
        with self._plain_transformers():
            return method(self, *args, **kwargs)

    return rebuilding


def auto_pipeline(path: Any, parallel: ParallelConfig | None = None, **options: Any) -> USPPipelineMixin:
    """Load the pipeline at `path` in the USP class that its model_index.json names.

    Args:
        path: a hub id, a local folder, or the name of an embedded model.
        parallel: the degrees (None: `ParallelConfig.auto` for the ranks there are).
        options: what diffusers' from_pretrained takes, and `on_stage`, `on_step`.

    Raises:
        UnsupportedError: a pipeline without a USP class, or a layout that its model cannot take.
    """
    path = located(path)
    name = str(_index(path, hub_options(options))["_class_name"])
    if name.endswith("ModularPipeline"):
        raise UnsupportedError(f"{name} at {path} {BY_HAND}.")
    if name not in NAMES:
        nearest = get_close_matches(name, NAMES, n=3, cutoff=0.3) or NAMES
        raise UnsupportedError(f"{name} at {path} has no USP pipeline. The nearest that have one: {', '.join(nearest)}.")
    return getattr(pipelines, f"USP{name}").from_pretrained(path, parallel=parallel, **options)


def _index(path: Any, hub: dict[str, Any]) -> dict[str, Any]:
    """model_index.json, or a modular pipeline's."""
    try:
        return diffusers.DiffusionPipeline.load_config(path, **hub)
    except OSError:
        with suppress(OSError):
            return diffusers.ModularPipeline.load_config(path, **hub)
        raise

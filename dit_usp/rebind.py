"""A function's twin: the same code, with other attention behind the names it calls.

diffusers' processors attend by two names of their module: `dispatch_attention_fn(...)` in (batch, tokens, heads, size), or
`F.scaled_dot_product_attention(...)` in (batch, heads, tokens, size). A twin finds ours there. Nothing global is patched, the signature survives
(diffusers filters keyword arguments by it), and torch.compile traces through: a TorchFunctionMode breaks its graph.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F


@dataclass(frozen=True)
class Attention:
    """What a twin calls: the stand-ins for diffusers' dispatch_attention_fn and torch's scaled_dot_product_attention."""

    dispatch: Callable[..., Any]
    sdpa: Callable[..., Any]


def twin(function: Callable[..., Any], attention: Attention) -> Callable[..., Any] | None:
    """The same code with `attention` in place of its own, or None where it calls neither name, itself or through a helper of diffusers."""
    return _twin(inspect.unwrap(function), attention, set())


def _twin(function: Any, attention: Attention, seen: set[types.CodeType]) -> Callable[..., Any] | None:
    if not isinstance(function, types.FunctionType) or function.__code__ in seen:
        return None
    seen.add(function.__code__)
    names: dict[str, Any] = {}
    for name in set(_names(function.__code__)):
        value = function.__globals__.get(name)
        if name == "dispatch_attention_fn":
            names[name] = attention.dispatch
        elif value is F and "scaled_dot_product_attention" in _names(function.__code__):
            names[name] = _functional(attention.sdpa)
        elif getattr(value, "__module__", "").startswith("diffusers.") and (helper := _twin(value, attention, seen)):
            names[name] = helper
    return _rebind(function, names) if names else None


def _names(code: types.CodeType) -> Iterator[str]:
    """The global and attribute names that `code` and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _functional(sdpa: Callable[..., Any]) -> types.ModuleType:
    """torch.nn.functional with another scaled_dot_product_attention."""
    module = types.ModuleType("functional")
    module.__dict__.update(F.__dict__)
    module.scaled_dot_product_attention = sdpa  # type: ignore[attr-defined]
    return module


def _rebind(function: types.FunctionType, names: dict[str, Any]) -> types.FunctionType:
    scope = {**function.__globals__, **names}
    scope.pop("__name__", None)  # with it, Dynamo would look the names up in the original module
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__doc__, copy.__qualname__, copy.__annotations__ = function.__doc__, function.__qualname__, function.__annotations__
    return copy

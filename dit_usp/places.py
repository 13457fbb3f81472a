"""Finding the places of a plan in a model, and changing the tensors there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from dit_usp.errors import UnsupportedError


def modules_at(model: nn.Module, path: str) -> list[nn.Module]:
    """The submodules that `path` names: parts may be globs ("blocks.*", "*_blocks.*") or count from the end ("blocks.-1"); "" is the model."""
    found = [model]
    for part in path.split(".") if path else ():
        found = [child for module in found for child in _children(module, part)]
    return found


def _children(module: nn.Module, part: str) -> Iterator[nn.Module]:
    children = dict(module.named_children())
    if part.startswith("-"):
        yield list(children.values())[int(part)]
    else:
        yield from (child for name, child in children.items() if fnmatchcase(name, part))


def argument_names(module: nn.Module) -> list[str]:
    """The names of the forward's arguments, in order."""
    return list(inspect.signature(module.forward).parameters)


def by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their name: blocks are called by keyword, by position, and both."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def change(value: Any, path: Sequence[int | str], function: Callable[[Any], Any], kind: Any = Tensor) -> Any:
    """`value` with function applied to every tensor (every `kind`) at `path` inside it. Containers on the way are copied, never changed in place."""
    if isinstance(value, kind) and not isinstance(value, bool):
        return value if path else function(value)
    if isinstance(value, dict):
        items = {key: change(item, path[1:], function, kind) if not path or key == path[0] else item for key, item in value.items()}
        return replace(value, **items) if is_dataclass(value) else type(value)(items)  # a ModelOutput is both; its fields that are None are no keys
    if isinstance(value, (list, tuple)):
        return type(value)(change(item, path[1:], function, kind) if not path or i == path[0] else item for i, item in enumerate(value))
    return value


def require(model: nn.Module, path: str, argument: str | None = None) -> list[nn.Module]:
    """`modules_at`, none missing.

    Raises:
        UnsupportedError: the installed diffusers' model has no such submodule, or its forward no such argument.
    """
    modules = modules_at(model, path)
    if not modules:
        raise UnsupportedError(_mismatch(model, f"submodule {path!r}"))
    if argument and any(argument not in argument_names(module) for module in modules):
        raise UnsupportedError(_mismatch(model, f"argument {argument!r} in the forward of {path or 'the model'!r}"))
    return modules


def _mismatch(model: nn.Module, missing: str) -> str:
    import diffusers

    name = type(model).__name__
    return f"{name} of diffusers {diffusers.__version__} has no {missing}, which its shard plan names; see CONTRIBUTING, 'add a model'."

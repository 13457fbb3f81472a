"""Answers that hold for as long as certain tensors are what they were, so that the CPU asks for them once and not at every step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from dit_usp.calls import PLAIN

A = TypeVar("A")
MOST = 16


class Remembered(Generic[A]):
    """Answers by what they depend on: plain values, and tensors that must be the very same objects.

    Every rank runs the same program, and replaces a tensor when the others do: all know an answer or none does, though the tensors' sizes may differ.
    So old answers are dropped by how often was asked, alike on all ranks. How many are kept is not: an id is given again sooner here than there.
    """

    def __init__(self) -> None:
        self._answers: dict[Hashable, tuple[list[weakref.ref[Tensor]], A]] = {}
        self._asked = 0

    def get(self, key: Hashable, tensors: list[Tensor], ask: Callable[[], A]) -> A:
        """The answer, asked for unless it is known. Without tensors nothing tells how long it holds: it is asked for."""
        key = (key, tuple(map(id, tensors)))  # the id of a tensor that is gone may be another's
        known, answer = self._answers.get(key, ([], None))
        if not known or any(ref() is not tensor for ref, tensor in zip(known, tensors, strict=True)):
            if self._asked % MOST == 0:
                self._answers.clear()
            self._asked += 1
            answer = ask()
            self._answers[key] = ([weakref.ref(tensor) for tensor in tensors], answer)
        return answer  # type: ignore[return-value]


def numbers_of(tensor: Tensor, remembered: Remembered[tuple[Any, ...]]) -> tuple[Any, ...]:
    """A tensor's values. Reading them stops the CPU until the GPU has come so far, so they are read anew only where it has changed.

    As torch counts changes: writes through `.data`, numpy or a collective into the same tensor are not seen; pass another tensor.
    """
    read = lambda: tuple(tensor.flatten().tolist())  # noqa: E731
    if torch.compiler.is_compiling() or tensor.is_inference():  # those do not count their changes
        return read()
    whole = tensor if tensor._base is None else tensor._base  # a half of it is another view at every step
    return remembered.get((tensor._version, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()), [whole], read)


def contents(holder: Any) -> tuple[tuple[Any, ...], list[Tensor]]:
    """The plain values and the tensors that an object holds: in its attributes, lists and dicts, and in those of the objects there."""
    found = list(_found(holder, set()))
    return tuple(item for item in found if not isinstance(item, Tensor)), [item for item in found if isinstance(item, Tensor)]


def _found(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, (Tensor, *PLAIN)):
        yield value
    elif id(value) not in seen and not isinstance(value, nn.Module):
        seen.add(id(value))
        parts = value if isinstance(value, (list, tuple)) else (value if isinstance(value, dict) else getattr(value, "__dict__", {})).values()
        for part in parts:
            yield from _found(part, seen)

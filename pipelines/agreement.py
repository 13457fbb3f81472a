"""Do all ranks mean the same call? Compared at its start and at the first step, so that nobody gets half of one picture and half of another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dit_usp import collectives
from dit_usp.mesh import Mesh

Mark = tuple[str, str]  # a hash to compare, and a text to show

NOT_COMPARED = ("generator", "latents", "output_type", "return_dict")  # the first two come from the first rank, the others concern only its result


def from_first(value: Any, mesh: Mesh) -> Any:
    """The first rank's `value` on every rank."""
    for group in (mesh.data, mesh.cfg, mesh.sequence):  # each hands on what it got from the one before
        value = collectives.broadcast(value, group)
    return value


def gather_objects(value: Any, group: dist.ProcessGroup) -> list[Any]:
    """Every rank's picklable `value`, in rank order."""
    values: list[Any] = [value]
    if group.size() > 1:
        values = [None] * group.size()
        dist.all_gather_object(values, value, group=group)
    return values


def check_arguments(arguments: Mapping[str, Any], mesh: Mesh) -> None:
    """Every rank was called with the same arguments.

    Raises:
        ValueError: on every rank; names the rank that differs, and both values.
    """
    own = {name: mark(value) for name, value in arguments.items() if name not in NOT_COMPARED}
    nested = gather_objects(gather_objects(gather_objects(own, mesh.sequence), mesh.cfg), mesh.data)
    marks = [marks for replica in nested for half in replica for marks in half]
    if found := first_difference(marks):
        rank, name = found
        texts = [marks[i][name][1] if name in marks[i] else "nothing" for i in (rank, 0)]
        raise ValueError(f"rank {rank} was called with {name}={texts[0]}, rank 0 with {name}={texts[1]}: give every rank the same arguments.")


def check_first_step(arguments: Mapping[str, Any], mesh: Mesh) -> None:
    """The ranks of one replica enter the transformer with the same tensors.

    Raises:
        ValueError: on every rank of the replica; names the rank that differs, and the argument.
    """
    marks = [marks for half in gather_objects(gather_objects(_tensor_marks(arguments), mesh.sequence), mesh.cfg) for marks in half]
    if found := first_difference(marks):
        rank, name = found
        first = mesh.data.rank() * len(marks)
        texts = [marks[i][name][1] if name in marks[i] else "nothing" for i in (rank, 0)]
        what = "other numbers" if texts[0] == texts[1] else texts[0]
        raise ValueError(
            f"rank {first + rank} enters the first step with {what} in {name}, where rank {first} has {texts[1]}: "
            "the ranks hold different weights, schedulers or libraries."
        )


def first_difference(marks: list[dict[str, Mark]]) -> tuple[int, str] | None:
    """The first (rank, name) whose mark is not rank 0's."""
    for rank, own in enumerate(marks):
        for name in {**marks[0], **own}:
            if own.get(name, ("",))[0] != marks[0].get(name, ("",))[0]:
                return rank, name
    return None


def _tensor_marks(arguments: Mapping[str, Any]) -> dict[str, Mark]:
    return {name: mark(value) for name, value in arguments.items() if has_tensor(value)}


def has_tensor(value: Any) -> bool:
    """Whether there is a tensor in the dicts, lists and tuples of `value`."""
    if isinstance(value, Mapping):
        return any(map(has_tensor, value.values()))
    return any(map(has_tensor, value)) if isinstance(value, (list, tuple)) else isinstance(value, torch.Tensor)


def mark(value: Any) -> Mark:
    """What to compare of an argument, and how to show it. Functions and other objects are not compared: they are each rank's own."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest.update, value)
    return digest.hexdigest(), _shown(value)


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, torch.Tensor):
        update(_shown(value).encode())
        update(value.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        _feed(update, torch.from_numpy(np.ascontiguousarray(value)))
    elif hasattr(value, "tobytes"):  # a picture
        update(value.tobytes())
    elif is_dataclass(value):  # a condition: a picture and where it belongs
        _feed(update, vars(value))
    elif isinstance(value, Mapping):
        _feed(update, list(value.items()))
    elif isinstance(value, (list, tuple)):
        update(f"[{len(value)}]".encode())
        for item in value:
            _feed(update, item)
    elif value is None or isinstance(value, (str, int, float)):
        update(repr(value).encode())


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    text = " ".join(repr(value).split()) if _is_plain(value) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))

"""Dealing the images of one call over replicas: prompts x images a prompt, in order, in contiguous runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Generator

from dit_usp import collectives
from dit_usp.errors import UnsupportedError
from dit_usp.mesh import Mesh
from dit_usp.pipelines.agreement import gather_objects
from dit_usp.places import change
from dit_usp.signature import PER_PROMPT

# In the names of arguments that may be a list with an entry for each prompt
_DEALT = ("prompt", "class_labels", "lyrics", "vocal_language", "audio_codes", "decode_timestep", "decode_noise_scale")
_NOT_DEALT = ("system_prompt", "chi_prompt", "segments", "llama3", "cu_seqlens")  # but not in these: one for all, or in another order


@dataclass(frozen=True)
class Share:
    """What one replica does of a call.

    Attributes:
        rows: its images' numbers among all.
        total: images in all.
        arguments: its own call's arguments; it makes one image an entry.
    """

    rows: range
    total: int
    arguments: dict[str, Any]

    @property
    def generators(self) -> Sequence[Generator]:
        """Its images' own generators; none if all images share one."""
        own = self.arguments.get("generator")
        return own if isinstance(own, (list, tuple)) else ()


def deal(arguments: Mapping[str, Any], mesh: Mesh, per_prompt: str | None) -> Share:
    """This replica's share: image i is image i % n of prompt i // n, where n are the images a prompt.

    Args:
        per_prompt: the argument that says how many images a prompt gets; None: always one.

    Raises:
        UnsupportedError: an argument of which we do not know whose image it belongs to, or several images a prompt of a pipeline that cannot.
        ValueError: a list of another length than the prompts, or the generators than the images.
    """
    for name in PER_PROMPT:
        if name != per_prompt and arguments.get(name, 1) > 1:
            raise UnsupportedError(f"{name}={arguments[name]}: this pipeline of diffusers makes one a prompt; repeat the prompt instead.")
    prompts, each = _num_prompts(arguments), int(arguments.get(per_prompt or "", 1) or 1)
    total = prompts * each
    sizes = collectives.split_sizes(total, mesh.data.size())
    start = sum(sizes[: mesh.data.rank()])
    rows = range(start, start + sizes[mesh.data.rank()])
    by_prompt, shared = [row // each for row in rows], {}
    for name, value in arguments.items():
        if name in ("generator", "latents"):
            shared[name] = _picked(name, value, rows, total)
        elif name not in PER_PROMPT:
            shared[name] = _picked(name, value, by_prompt, prompts) if _is_dealt(name) else _whole(name, value, mesh)
    if per_prompt:
        shared[per_prompt] = 1
    return Share(rows, total, shared)


def _is_dealt(name: str) -> bool:
    return any(word in name for word in _DEALT) and not any(word in name for word in _NOT_DEALT)


def _num_prompts(arguments: Mapping[str, Any]) -> int:
    given = next((arguments[name] for name in ("prompt", "class_labels", "prompt_embeds") if arguments.get(name) is not None), "")
    return 1 if isinstance(given, str) else len(given)


def _picked(name: str, value: Any, rows: Sequence[int], total: int) -> Any:
    """The entries of `value` at `rows`; one text is every prompt's, one generator is everybody's."""
    if isinstance(value, str):
        return [value] * len(rows)
    if not isinstance(value, (list, tuple, torch.Tensor)):
        return value
    if len(value) != total:
        raise ValueError(f"{name} has {len(value)} entries for {total} {'images' if name in ('generator', 'latents') else 'prompts'}.")
    return value[list(rows)] if isinstance(value, torch.Tensor) else [value[row] for row in rows]


def _whole(name: str, value: Any, mesh: Mesh) -> Any:
    """Settings go to every replica alike; pictures and tensors may belong to single images."""
    if has_picture(value):
        degree = mesh.data.size()
        raise UnsupportedError(
            f"data_degree={degree} cannot deal out {name} to replicas. Try data_degree=1 with ulysses_degree or ring_degree {degree}."
        )
    return value


def has_picture(value: Any) -> bool:
    """Whether there is a picture, an array or a tensor in the dicts, lists, tuples and dataclasses of `value`."""
    if is_dataclass(value):
        return has_picture(vars(value))
    if isinstance(value, Mapping):
        return any(map(has_picture, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(has_picture, value))
    return isinstance(value, (torch.Tensor, np.ndarray)) or hasattr(value, "getbands")


def collect(output: Any, failure: Exception | None, share: Share, mesh: Mesh) -> tuple[Any, list[Any]]:
    """The whole call's output on the first rank, an output without images on the others; and the (row, state) of the images' generators.

    Args:
        output: this replica's; None if it had no image or failed.
        failure: what it raised.

    Raises:
        Exception: this replica's own failure, or another's, so that no replica waits for one that is gone.
    """
    told = gather_objects((_sent(failure), blank(output)), mesh.data)
    if failure:
        raise failure
    for replica, (sent, _) in enumerate(told):
        if sent:
            raise sent[0](f"replica {replica}: {sent[1]}")
    if mesh.cfg.rank() or mesh.sequence.rank():
        return told[0][1], []
    states = [(row, generator.get_state()) for row, generator in zip(share.rows, share.generators, strict=False)]
    parts: list[Any] = [None] * mesh.data.size()
    part = (change(output, (), torch.Tensor.cpu), states)  # on the CPU: it would come out of the pickle on the sender's GPU
    dist.gather_object(part, parts if mesh.is_first else None, group=mesh.data, group_dst=0)
    if not mesh.is_first:
        return told[0][1], []
    whole = join_outputs([output for output, _ in parts if output is not None])
    return change(whole, (), lambda tensor: tensor.to(mesh.device)), [state for _, states in parts for state in states]


def _sent(failure: Exception | None) -> tuple[type[Exception], str] | None:
    """A failure as it travels: a refusal stays one."""
    if failure is None:
        return None
    return next(kind for kind in (UnsupportedError, ValueError, TypeError, RuntimeError, Exception) if isinstance(failure, kind)), str(failure)


def join_outputs(outputs: Sequence[Any]) -> Any:
    """The replicas' results as one: tuples and diffusers' outputs by field, pictures and arrays end to end."""
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return tuple(join_outputs(parts) for parts in zip(*outputs, strict=True))
    if isinstance(first, dict):
        return type(first)(**{name: join_outputs([getattr(output, name) for output in outputs]) for name in _fields(first)})
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs))
    return np.concatenate(outputs) if isinstance(first, np.ndarray) else [item for output in outputs for item in output]


def blank(output: Any) -> Any:
    """The same output without its images: None in every field, or in a tuple as long."""
    if output is None:
        return None
    return (None,) * len(output) if isinstance(output, tuple) else type(output)(**dict.fromkeys(_fields(output)))


def _fields(output: Any) -> list[str]:
    """The names of an output's fields; those that are None are no keys of it."""
    return [field.name for field in fields(output)]

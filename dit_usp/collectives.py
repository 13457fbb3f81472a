"""Communication between the ranks of one group. Every function takes the group it uses.

There is one primitive, an all-to-all with split sizes on a flat buffer: Ulysses is one each way, a ring pass is one with a single
non-zero split, an uneven gather is one of the repeated local piece. It runs eagerly and compiled, forward and backward, on gloo and
NCCL (where it is a group of sends and receives that skips the empty ones), and does not block until it is waited for. Compiled and
for gradients it is torch's functional operator; eagerly the plain one, which costs the CPU a tenth of that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
# What gloo and NCCL both carry. Other types travel as their bytes.
_WIRE_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8, torch.int8)


def split_sizes(length: int, parts: int) -> tuple[int, ...]:
    """Sizes of `parts` contiguous pieces of `length`, by the rule of torch.tensor_split: the first `length % parts` are one longer."""
    return tuple(length // parts + (part < length % parts) for part in range(parts))


def split(tensor: Tensor, dim: int, group: dist.ProcessGroup) -> Tensor:
    """This rank's piece of `tensor` along `dim`, a view. Pieces may be empty."""
    sizes = split_sizes(tensor.shape[dim], group.size())
    return tensor.narrow(dim, sum(sizes[: group.rank()]), sizes[group.rank()])


def gather(tensor: Tensor, dim: int, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Every rank's piece along `dim`, concatenated in rank order, on every rank. One collective.

    Args:
        sizes: the pieces' lengths along `dim` in rank order.
    """
    if group.size() == 1:
        return tensor
    rows = tensor.movedim(dim, 0)
    flat = rows.reshape(-1).contiguous()  # one column of a tensor is flat already, with gaps
    per_row = rows[:1].numel() if rows.shape[0] else _numel(rows.shape[1:])
    if len(set(sizes)) == 1 and not wants_grad(flat):
        gathered = _carried(flat, lambda wire, _: _all_gather(wire, group))
    else:  # its backward returns each rank's gradient to the owner, which sums them: a reduce-scatter
        gathered = exchange(flat.repeat(group.size()), [flat.numel()] * group.size(), [size * per_row for size in sizes], group)
    return gathered.view(sum(sizes), *rows.shape[1:]).movedim(0, dim)


def exchange(flat: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Send consecutive runs of `flat` to the ranks in order, and return what they sent, in rank order. One collective.

    Args:
        flat: (sum of send_sizes,), contiguous.
        send_sizes: elements for each rank; zeros are allowed.
        receive_sizes: elements from each rank.
    """
    if group.size() == 1:
        return flat

    def all_to_all(wire: Tensor, factor: int) -> Tensor:
        return wait(post(wire, [size * factor for size in send_sizes], [size * factor for size in receive_sizes], group))

    return _carried(flat, all_to_all)


class Pending(NamedTuple):
    """What `post` has begun: the tensor that will be there, and eagerly its work."""

    tensor: Tensor
    work: Any = None


def post(flat: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int], group: dist.ProcessGroup) -> Pending:
    """Begin an exchange of a floating `flat`; the result is had by `wait`. Differentiable."""
    if wants_grad(flat):
        return Pending(_AllToAll.apply(flat, tuple(send_sizes), tuple(receive_sizes), group.group_name))
    if torch.compiler.is_compiling():
        return Pending(_all_to_all(flat, send_sizes, receive_sizes, group.group_name))
    arriving = flat.new_empty(sum(receive_sizes))
    # With sizes even where all are equal: that is this rank's own knowledge, and another rank might make the other call.
    return Pending(arriving, dist.all_to_all_single(arriving, flat, list(receive_sizes), list(send_sizes), group=group, async_op=True))


def wait(pending: Pending) -> Tensor:
    """The result of `post`, arrived. Blocks the CPU on gloo, the current stream on NCCL."""
    tensor, work = pending
    if work is not None:
        work.wait()
        return tensor
    return _Wait.apply(tensor) if wants_grad(tensor) else torch.ops._c10d_functional.wait_tensor(tensor)


def total(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of every rank's `tensor`, on every rank. One collective."""
    if torch.compiler.is_compiling():
        return wait(Pending(torch.ops._c10d_functional.all_reduce(tensor.contiguous(), "sum", group.group_name)))
    summed = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed, group=group)
    return summed


def exchange_lengths(length: int, group: dist.ProcessGroup) -> tuple[int, ...]:
    """Every rank's `length`, in rank order. Eager; stops the CPU until all ranks have called."""
    own = torch.tensor([length], device=_device(group))
    return tuple(gather(own, 0, (1,) * group.size(), group).tolist())


def told_by_store(values: tuple[int, ...], group: dist.ProcessGroup) -> list[tuple[int, ...]]:
    """Every rank's `values`, in rank order, through the group's store: slower than a collective, but it needs no agreement on sizes."""
    store = group.get_group_store()
    turn = store.add(f"told/{group.rank()}", 1)
    store.set(f"told/{turn}/{group.rank()}", ",".join(map(str, values)))
    return [tuple(map(int, store.get(f"told/{turn}/{rank}").split(b","))) for rank in range(group.size())]


def broadcast(value: Any, group: dist.ProcessGroup, device: torch.device | None = None) -> Any:
    """The `value` of the group's rank 0, on every rank: any picklable value; tensors inside dicts, lists and tuples travel as tensors.

    Args:
        value: read on rank 0 only.
        device: where the tensors live on every rank (None: the group's own device).
    """
    if group.size() == 1:
        return value
    device = device or _device(group)
    tensors: list[Tensor] = []
    outline = [_map_tensors(value, lambda tensor: _Outline(tensor, tensors)) if group.rank() == 0 else None]
    dist.broadcast_object_list(outline, group=group, group_src=0, device=_device(group))
    if group.rank() != 0:
        _map_tensors(outline[0], lambda slot: tensors.append(slot.empty(device)), _Outline)
    for index, tensor in enumerate(tensors):
        tensors[index] = tensor.detach().to(_device(group)).contiguous()
        dist.broadcast(_bytes(tensors[index]), group=group, group_src=0)
    arrived = iter(tensors)
    return _map_tensors(outline[0], lambda _: next(arrived).to(device), _Outline)


class _Outline:
    """Stands for a tensor in a pickled structure."""

    def __init__(self, tensor: Tensor, collected: list[Tensor]) -> None:
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        collected.append(tensor)

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


def _map_tensors(value: Any, function: Callable[[Any], Any], leaf: type = Tensor) -> Any:
    """`value` with every `leaf` in its dicts, lists and tuples replaced by function(leaf), in a fixed order."""
    if isinstance(value, leaf):
        return function(value)
    if isinstance(value, dict):
        items = {key: _map_tensors(item, function, leaf) for key, item in value.items()}
        return type(value)(**items) if dataclasses.is_dataclass(value) else type(value)(items)  # diffusers' outputs are both
    if isinstance(value, list):
        return [_map_tensors(item, function, leaf) for item in value]
    if isinstance(value, tuple):
        parts = [_map_tensors(item, function, leaf) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _carried(flat: Tensor, collective: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Run collective(wire, factor) on `flat` in a type that every backend carries; factor: wire elements per element."""
    if flat.dtype in _WIRE_TYPES:
        return collective(flat, 1)
    if flat.dtype == torch.bool:  # not viewed as bytes: inductor of torch 2.11 cannot
        return collective(flat.to(torch.uint8), 1).to(torch.bool)
    if flat.is_complex():
        return torch.view_as_complex(collective(torch.view_as_real(flat).reshape(-1), 2).view(-1, 2))
    return collective(flat.view(torch.uint8), flat.itemsize).view(flat.dtype)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def wants_grad(*tensors: Tensor) -> bool:
    """Whether what is computed from any of them is recorded for gradients."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _numel(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _device(group: dist.ProcessGroup) -> torch.device:
    """Where the group's backend wants tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend(group) else torch.device("cpu")


def _all_gather(flat: Tensor, group: dist.ProcessGroup) -> Tensor:
    if torch.compiler.is_compiling():
        return wait(Pending(torch.ops._c10d_functional.all_gather_into_tensor(flat, group.size(), group.group_name)))
    gathered = flat.new_empty(group.size() * flat.numel())
    gather_into(gathered, flat, group=group)
    return gathered


def _all_to_all(flat: Tensor, send_sizes: Sequence[int], receive_sizes: Sequence[int], group_name: str) -> Tensor:
    return torch.ops._c10d_functional.all_to_all_single(flat, list(receive_sizes), list(send_sizes), group_name)


# torch registers gradients for these two operators itself since 2.13 only; ours also serve 2.11 and 2.12.
class _AllToAll(torch.autograd.Function):
    """all_to_all_single; its backward is the inverse all-to-all."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, send_sizes: tuple[int, ...], receive_sizes: tuple[int, ...], group_name: str) -> Tensor:
        ctx.sizes, ctx.group_name = (receive_sizes, send_sizes), group_name  # what came from a rank goes back to it
        return _all_to_all(flat, send_sizes, receive_sizes, group_name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        send_sizes, receive_sizes = ctx.sizes
        pending = _all_to_all(grads[0].contiguous(), send_sizes, receive_sizes, ctx.group_name)
        return torch.ops._c10d_functional.wait_tensor(pending), None, None, None


class _Wait(torch.autograd.Function):
    """wait_tensor; its backward is the identity."""

    @staticmethod
    def forward(ctx: Any, pending: Tensor) -> Tensor:
        return torch.ops._c10d_functional.wait_tensor(pending)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0]

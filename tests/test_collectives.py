"""Collectives against what arithmetic says, on 1 to 4 gloo ranks: uneven and empty pieces, every dtype, gradients, nested structures."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from diffusers.utils import BaseOutput

from dit_usp.collectives import broadcast, exchange, exchange_lengths, gather, split, split_sizes

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int16, torch.int64, torch.complex64, torch.float8_e4m3fn)


@pytest.mark.parametrize("parts", range(1, 6))
def test_split_sizes_follow_tensor_split(parts):
    for length in range(12):
        assert split_sizes(length, parts) == tuple(len(piece) for piece in torch.arange(length).tensor_split(parts))


def split_then_gather():
    group = dist.group.WORLD
    for length in (0, 1, 2, 3, 7, 8):
        for dim in range(3):
            shape = [2, 3, 4]
            shape[dim] = length
            whole = torch.arange(torch.tensor(shape).prod().item()).view(shape).float()
            piece = split(whole, dim, group)
            assert piece.shape[dim] == split_sizes(length, group.size())[group.rank()]
            torch.testing.assert_close(gather(piece, dim, split_sizes(length, group.size()), group), whole)
            torch.testing.assert_close(gather(piece.requires_grad_(), dim, split_sizes(length, group.size()), group), whole)


def gather_every_dtype():
    group = dist.group.WORLD
    for sizes in ((2,) * group.size(), (3, 0, 1, 2)[: group.size()]):
        for dtype in DTYPES:
            whole = (torch.arange(sum(sizes) * 2).view(-1, 2) % 3).to(dtype)
            start = sum(sizes[: group.rank()])
            gathered = gather(whole[start : start + sizes[group.rank()]], 0, sizes, group)
            assert gathered.dtype == dtype
            assert torch.equal(gathered.view(torch.uint8), whole.view(torch.uint8)), (dtype, sizes)


def gather_gradient():
    """Rank r weighs the whole by r + 1, so each piece's gradient is the sum of all weights."""
    group = dist.group.WORLD
    for sizes in ((2,) * group.size(), (3, 0, 1, 2)[: group.size()]):
        piece = torch.ones(sizes[group.rank()], 2, requires_grad=True)
        (gather(piece, 0, sizes, group) * (group.rank() + 1)).sum().backward()
        torch.testing.assert_close(piece.grad, torch.full_like(piece, group.size() * (group.size() + 1) / 2))


def exchange_counts():
    """Rank s sends s + 2d elements of value 10 s + d to rank d; the gradient comes back the same way."""
    group = dist.group.WORLD
    rank, ranks = group.rank(), group.size()
    send_sizes = [rank + 2 * d for d in range(ranks)]
    flat = torch.cat([torch.full((n,), 10.0 * rank + d) for d, n in enumerate(send_sizes)]).requires_grad_()
    received = exchange(flat, send_sizes, [s + 2 * rank for s in range(ranks)], group)
    assert received.tolist() == [10 * s + rank for s in range(ranks) for _ in range(s + 2 * rank)]
    (received * (rank + 1)).sum().backward()
    assert flat.grad.tolist() == [d + 1 for d, n in enumerate(send_sizes) for _ in range(n)]


def lengths_of_all():
    return exchange_lengths(5 * dist.get_rank(), dist.group.WORLD)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_exchanges(ranks, world_size):
    for check in (split_then_gather, gather_every_dtype, gather_gradient, exchange_counts):
        ranks(world_size, check)
    assert ranks(world_size, lengths_of_all) == [tuple(5 * rank for rank in range(world_size))] * world_size


Pair = namedtuple("Pair", "first second")


@dataclass
class Output(BaseOutput):
    sample: torch.Tensor


def structure():
    return {
        "plain": [1, "two", None, {3.0}],
        "tensors": (torch.arange(6).view(2, 3)[:, ::2], torch.tensor(True), torch.empty(0, 3), torch.tensor(2.5, dtype=torch.bfloat16)),
        "ordered": OrderedDict(a=torch.ones(2, requires_grad=True), b=Pair(torch.zeros(1), [torch.tensor([1 + 2j])])),
        "output": Output(sample=torch.ones(1, 2)),
        7: "not only string keys",
    }


def receive_structure():
    value = broadcast(structure() if dist.get_rank() == 0 else "ignored", dist.group.WORLD)
    assert type(value["ordered"]) is OrderedDict
    assert type(value["ordered"]["b"]) is Pair
    assert type(value["output"]) is Output
    flat = [*value["tensors"], value["ordered"]["a"], value["ordered"]["b"].first, value["ordered"]["b"].second[0], value["output"].sample]
    return value["plain"], value[7], [(tensor.dtype, tensor.tolist()) for tensor in flat]


def test_broadcast_of_a_nested_structure(ranks):
    expected = structure()
    flat = [*expected["tensors"], expected["ordered"]["a"], torch.zeros(1), torch.tensor([1 + 2j]), torch.ones(1, 2)]
    for world_size in (1, 3):
        for plain, other, tensors in ranks(world_size, receive_structure):
            assert plain == expected["plain"]
            assert other == expected[7]
            assert tensors == [(tensor.dtype, tensor.tolist()) for tensor in flat]

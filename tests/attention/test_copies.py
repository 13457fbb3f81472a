"""Packing for an exchange, and unpacking after it, read and write every tensor at most once. Each way, of any heads, lengths and batch."""

import pytest
import torch
from copies import Copies

from dit_usp.attention import heads_to_sequence, ring, sequence_to_heads, split_heads
from dit_usp.bench import alone

SIZE = 8


@pytest.fixture
def group(monkeypatch):
    """Three ranks, of which this is the first and the others are copies; what they send is not counted."""
    alone.start(3)
    for name in ("exchange", "collect"):
        monkeypatch.setattr(alone.Alone, name, lambda *_: alone.Done())
    return torch.distributed.group.WORLD


def tokens(batch, length, heads, strided, size=SIZE):
    """(B, L, H, D), or the same as a view of (B, H, L, D)."""
    return torch.randn(batch, heads, length, size).transpose(1, 2) if strided else torch.randn(batch, length, heads, size)


def packed(function, *sent):
    """What `function` returns, and its copies, which are compared with one of each tensor sent."""
    nbytes = sum(x.nbytes for x in sent)
    with Copies() as copies, torch.no_grad():
        result = function()
    return result, copies, (nbytes, nbytes)


CALLS = pytest.mark.parametrize(("batch", "heads", "kv_heads", "lengths"), [
    (1, 6, 6, (5, 5, 5)), (2, 6, 6, (5, 5, 5)), (2, 6, 3, (5, 5, 5)),
    (1, 7, 7, (5, 5, 5)), (2, 7, 7, (5, 5, 5)), (1, 6, 6, (6, 5, 5)), (2, 7, 7, (6, 5, 0)),
])  # fmt: skip


@CALLS
@pytest.mark.parametrize("strided", [False, True])
def test_heads_to_sequence_is_one_copy_and_views(group, batch, heads, kv_heads, lengths, strided):
    sent = [tokens(batch, lengths[0], count, strided) for count in (heads, kv_heads, kv_heads)]
    result, copies, once = packed(lambda: heads_to_sequence(*sent, group, lengths, lengths), *sent)
    assert (copies.read, copies.written) == once, copies.operators
    assert len({x.untyped_storage().data_ptr() for x in result}) == 1


@pytest.mark.parametrize("heads", [6, 7])
def test_keys_of_another_length_are_packed_once_and_sorted_once(group, heads):
    sent = [tokens(2, length, heads, False) for length in (5, 4, 4)]
    result, copies, once = packed(lambda: heads_to_sequence(*sent, group, (5, 5, 5), (4, 4, 4)), *sent)
    assert copies.written == once[1] + sum(x.nbytes for x in result), copies.operators


@CALLS
@pytest.mark.parametrize("strided", [False, True])
def test_sequence_to_heads_is_one_copy_each_side(group, batch, heads, kv_heads, lengths, strided):
    own = split_heads(heads, kv_heads, 3).query
    sent = tokens(batch, sum(lengths), own[0], strided)
    result, copies, _ = packed(lambda: sequence_to_heads(sent, group, own, lengths), sent)
    packing = 0 if batch == 1 and not strided else sent.nbytes
    assert copies.read == copies.written == packing + result.nbytes, copies.operators
    assert result.is_contiguous()  # the model's own flatten of heads is a view


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("value_size", [SIZE, 2 * SIZE])
def test_a_ring_packs_keys_and_values_once(group, strided, value_size):
    k, v = tokens(2, 5, 4, strided), tokens(2, 5, 4, strided, value_size)
    blocks, copies, once = packed(lambda: list(ring.passed_blocks(k, v, (5, 5, 5), group)), k, v)
    assert len(blocks) == 3
    assert (copies.read, copies.written) == once, copies.operators
    _, copies, once = packed(lambda: ring.gather_keys(k, v, (5, 5, 5), group), k, v)
    assert (copies.read, copies.written) == once, copies.operators

"""Where every element goes: each carries (batch, token, head), and after the exchange each must be where arithmetic says."""

import pytest
import torch
import torch.distributed as dist

from dit_usp.attention.ulysses import heads_to_sequence, sequence_to_heads, split_heads
from dit_usp.collectives import split_sizes

BATCH, SIZE = 2, 3


def labelled(tokens, heads, size=SIZE):
    """(B, tokens, heads, size), each element its own number: batch, token, head, feature in decimal places."""
    places = [torch.tensor(list(place), dtype=torch.long) for place in (range(BATCH), tokens, heads, range(size))]
    batch, token, head, feature = torch.meshgrid(*places, indexing="ij")
    return (batch * 1_000_000 + token * 1000 + head * 10 + feature).double()


def own(sizes, rank):
    return list(range(sum(sizes[:rank]), sum(sizes[: rank + 1])))


def check_layout(heads, kv_heads, lengths, kv_lengths, value_size):
    group = dist.group.WORLD
    rank = group.rank()
    tokens, kv_tokens = own(lengths, rank), own(kv_lengths, rank)
    q = labelled(tokens, list(range(heads)))
    k, v = labelled(kv_tokens, list(range(kv_heads))), labelled(kv_tokens, list(range(kv_heads)), value_size)
    equal = len(set(lengths)) == len(set(kv_lengths)) == 1
    sizes = (None, None) if equal else (lengths, kv_lengths)
    q_all, k_all, v_all = heads_to_sequence(q, k, -v, group, *sizes)

    dealt = split_heads(heads, kv_heads, group.size())
    mine = own(dealt.query, rank)
    kv_mine = [head // dealt.repeats for head in own(dealt.kv, rank)]
    everything, kv_everything = list(range(sum(lengths))), list(range(sum(kv_lengths)))
    assert torch.equal(q_all, labelled(everything, mine))
    assert torch.equal(k_all, labelled(kv_everything, kv_mine))
    assert torch.equal(v_all, -labelled(kv_everything, kv_mine, value_size))
    assert [head // (heads // kv_heads) for head in mine] == [head for head in kv_mine for _ in range(len(mine) // len(kv_mine))]
    assert torch.equal(sequence_to_heads(q_all, group, dealt.query, sizes[0]), q)


def layout_hash(heads, kv_heads):
    ranks = dist.get_world_size()
    for length in range(1, 51):
        lengths = split_sizes(length, ranks)
        check_layout(heads, kv_heads, lengths, lengths, SIZE)
        check_layout(heads, kv_heads, lengths, lengths[::-1], SIZE)
    for lengths in ((5, 0, 0, 2), (0, 0, 7, 1), (1, 1, 1, 1)):
        check_layout(heads, kv_heads, lengths[:ranks], (3, 4, 0, 1)[:ranks], SIZE + 1)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (5, 5), (7, 7), (8, 8), (4, 2), (6, 2), (6, 3), (8, 1), (12, 6)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_element_is_where_arithmetic_says(ranks, world_size, heads, kv_heads):
    if heads < world_size:
        pytest.skip("refused: fewer heads than ranks")
    ranks(world_size, layout_hash, heads, kv_heads)


def views_of_one_buffer():
    """Equal lengths and heads: q, k and v are views of what arrived, with the head dimension contiguous."""
    q, k, v = heads_to_sequence(*(torch.randn(2, 6, 4, 8) for _ in range(3)), dist.group.WORLD)
    return len({x.untyped_storage().data_ptr() for x in (q, k, v)}), [x.stride(3) for x in (q, k, v)]


def test_no_second_copy(ranks):
    assert ranks(2, views_of_one_buffer) == [(1, [1, 1, 1])] * 2


def test_heads_are_dealt_together_with_their_keys():
    assert split_heads(30, 30, 4) == ((8, 8, 7, 7), (8, 8, 7, 7), 1)
    assert split_heads(32, 8, 4) == ((8, 8, 8, 8), (2, 2, 2, 2), 1)
    assert split_heads(8, 1, 4) == ((2, 2, 2, 2), (1, 1, 1, 1), 4)
    assert split_heads(6, 2, 3) == ((2, 2, 2), (2, 2, 2), 3)
    assert split_heads(6, 2, 4) == ((2, 2, 1, 1), (2, 2, 1, 1), 3)
    assert split_heads(32, 4, 8) == ((4,) * 8, (1,) * 8, 2)

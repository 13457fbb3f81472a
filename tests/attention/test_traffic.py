"""Collectives are counted and their bytes compared with the formulas (M = B S H D e bytes, G = query heads per key/value head, N = U R ranks):
Ulysses (2 + 2/G) M/N (U-1)/U, ring and gather (2/G) M/N (R-1), both together the sum."""

from fractions import Fraction

import pytest
import torch
from traffic import Traffic

from dit_usp import ParallelConfig, init_mesh, usp_attention
from dit_usp.attention import attend, prepare_mask

BATCH, SIZE = 2, 16


def traffic_of(ulysses, ring, method, heads, kv_heads, lengths, dtype, causal=False):
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    length = lengths[mesh.sequence.rank()]
    q, k, v = (torch.randn(BATCH, count, length, SIZE).to(dtype) for count in (heads, kv_heads, kv_heads))
    with Traffic() as traffic, torch.no_grad():
        usp_attention(q, k, v, mesh=mesh, enable_gqa=heads != kv_heads, lengths=lengths, is_causal=causal)
    return traffic.collectives, traffic.sent


def expected_bytes(ulysses, ring, heads, kv_heads, lengths, dtype):
    """Of all ranks together."""
    whole, kv = BATCH * sum(lengths) * heads * SIZE * dtype.itemsize, Fraction(2 * kv_heads, heads)
    return (2 + kv) * whole * Fraction(ulysses - 1, ulysses) + kv * whole * (ring - 1)


@pytest.mark.parametrize(("heads", "kv_heads"), [(12, 12), (12, 4)])
@pytest.mark.parametrize(
    ("ulysses", "ring", "method"),
    [(1, 1, "rotate"), (2, 1, "rotate"), (4, 1, "rotate"), (1, 2, "gather"), (1, 4, "gather"), (1, 3, "rotate"), (2, 2, "rotate"), (2, 2, "gather")],
)
def test_collectives_and_bytes(ranks, ulysses, ring, method, heads, kv_heads):
    degree = ulysses * ring
    for lengths, dtype in (((6,) * degree, torch.float32), ((6,) * degree, torch.bfloat16), ((7, 5, 0, 1)[:degree], torch.float32)):
        results = ranks(degree, traffic_of, ulysses, ring, method, heads, kv_heads, lengths, dtype)
        for collectives, sent in results:
            assert len(collectives) == (2 if ulysses > 1 else 0) + ((ring - 1 if method == "rotate" else 1) if ring > 1 else 0)
            if len(set(lengths)) == 1:
                assert sent == expected_bytes(ulysses, ring, heads, kv_heads, lengths, dtype) / degree
        # Nothing is padded: with uneven lengths the sum over ranks is the same formula.
        assert sum(sent for _, sent in results) == expected_bytes(ulysses, ring, heads, kv_heads, lengths, dtype)


def test_causal_rotate_adds_one_exchange_each_way(ranks):
    for collectives, _ in ranks(3, traffic_of, 1, 3, "rotate", 4, 4, (5, 5, 5), torch.float32, True):
        assert len(collectives) == 2 + 2


def test_equal_gather_is_an_all_gather(ranks):
    for collectives, _ in ranks(2, traffic_of, 1, 2, "gather", 4, 4, (5, 5), torch.float32):
        assert collectives == ["all_gather"]


def collectives_with_prepared_mask():
    mesh = init_mesh(ParallelConfig(2, 1), "cpu")
    q, k, v = (torch.randn(1, 3, 4, 16) for _ in range(3))
    with Traffic() as preparing:
        mask = prepare_mask(torch.ones(1, 4, 3, 6, dtype=torch.bool), mesh, heads=4, lengths=(3, 3))
    with Traffic() as attending:
        attend(q, k, v, mesh, attn_mask=mask, lengths=(3, 3))
    with Traffic() as key_mask:
        attend(q, k, v, mesh, attn_mask=torch.ones(1, 1, 1, 6, dtype=torch.bool), lengths=(3, 3))
    return len(preparing.collectives), len(attending.collectives), len(key_mask.collectives)


def test_a_prepared_mask_costs_its_exchange_once_and_a_whole_key_mask_none(ranks):
    assert ranks(2, collectives_with_prepared_mask) == [(1, 2, 2)] * 2

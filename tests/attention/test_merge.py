"""Merging attention over sets of keys: equal to attending to all of them, in any order, with and without empty rows."""

import itertools

import torch

from dit_usp.attention.kernels import run
from dit_usp.attention.merge import merge


def blocks_of(mask, parts=(0, 3, 4, 9)):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 8, generator=generator) * 2 for length in (5, 9, 9))
    blocks = [run("math", q, k[:, a:b], v[:, a:b], None if mask is None else mask[..., a:b]) for a, b in itertools.pairwise(parts)]
    return blocks, run("math", q, k, v, mask)


def merged(blocks):
    out = lse = None
    for block in blocks:
        out, lse = merge(out, lse, *block)
    return out, lse


def some_rows_empty():
    mask = torch.rand(2, 1, 5, 9, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[0, :, 2] = False  # no key at all
    mask[1, :, 3, :4] = False  # none in the first two blocks
    return mask


def test_merge_is_attention_over_the_union_in_any_order():
    for mask in (None, some_rows_empty()):
        blocks, (out, lse) = blocks_of(mask)
        for order in itertools.permutations(blocks):
            got_out, got_lse = merged(order)
            torch.testing.assert_close(got_out, out, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(got_lse, lse, rtol=1e-6, atol=1e-6)


def test_merge_is_associative():
    (a, b, c), _ = blocks_of(some_rows_empty())
    left, right = merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c))
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_empty_rows_stay_empty_and_do_not_poison():
    mask = some_rows_empty()
    blocks, _ = blocks_of(mask)
    out, lse = merged(blocks)
    assert (out[0, 2] == 0).all()
    assert (lse[0, :, 2] == -torch.inf).all()
    assert out.isfinite().all()


def test_merge_survives_large_scores():
    a, b = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 4.0)
    out, lse = merge(a, torch.full((1, 1, 1), 3e4), b, torch.full((1, 1, 1), 3e4))
    assert out.item() == 3.0
    assert abs(lse.item() - 3e4) < 1


def test_merge_accumulates_in_fp32():
    out, lse = merge(None, None, torch.ones(1, 2, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, 2))
    assert out.dtype == lse.dtype == torch.float32


def test_merge_has_the_right_gradient():
    generator = torch.Generator().manual_seed(2)
    out, block = (torch.randn(1, 2, 1, 2, dtype=torch.double, generator=generator, requires_grad=True) for _ in range(2))
    lse, block_lse = (torch.randn(1, 1, 2, dtype=torch.double, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(merge, (out, lse, block, block_lse))
    empty = torch.full((1, 1, 2), -torch.inf, requires_grad=True)
    merged_out, _ = merge(out.float(), empty, block.float(), empty)
    merged_out.sum().backward()
    assert empty.grad.isfinite().all()

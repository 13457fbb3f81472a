"""usp_attention on 1 to 4 ranks against scaled_dot_product_attention on one, over lengths, heads, masks, types, head sizes and layouts."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from dit_usp import ParallelConfig, init_mesh, usp_attention
from dit_usp.attention import attend, prepare_mask

LAYOUTS = [
    (1, 1, "rotate"),
    (2, 1, "rotate"),
    (1, 2, "rotate"),
    (1, 2, "gather"),
    (3, 1, "rotate"),
    (1, 3, "rotate"),
    (1, 3, "gather"),
    (2, 2, "rotate"),
    (2, 2, "gather"),
    (4, 1, "rotate"),
    (1, 4, "rotate"),
    (1, 4, "gather"),
]
LENGTHS = {
    1: [(7,)],
    2: [(6, 6), (5, 1), (7, 4), (1, 0), (0, 3), (1, 1)],
    3: [(4, 4, 4), (5, 4, 4), (4, 0, 1), (1, 1, 0), (0, 5, 0)],
    4: [(3, 3, 3, 3), (6, 5, 5, 5), (5, 1, 0, 3), (1, 0, 0, 0), (0, 0, 7, 2), (1, 1, 1, 0)],
}
HEADS = [(4, 4), (5, 5), (7, 7), (6, 2), (8, 1), (12, 6), (3, 3)]
MASKS = [
    "none",
    "causal",
    "key",
    "local key",
    "key of each head",
    "dense",
    "dense of each head",
    "additive",
    "additive key",
    "empty rows",
    "far rows",
    "one column",
    "two dims",
]
SIZES = [16, 40, 64, 72, 128, 256]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    heads: tuple[int, int] = (4, 4)
    mask: str = "none"
    dtype: torch.dtype = torch.float32
    size: int = 16
    value_size: int = 0  # 0: as the keys'


def inputs(case):
    """Whole q, k, v (B, H, S, D), and the mask (B or 1, H or 1, Sq or 1, Sk or 1)."""
    generator = torch.Generator().manual_seed(hash((case.lengths, case.heads, case.size)) % 2**31)
    (heads, kv_heads), queries, keys = case.heads, sum(case.lengths), sum(case.kv_lengths)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(case.dtype)

    q, k = draw(2, heads, queries, case.size), draw(2, kv_heads, keys, case.size)
    v = draw(2, kv_heads, keys, case.value_size or case.size)
    shape = {
        "key": (2, 1, 1, keys),
        "local key": (2, 1, 1, keys),
        "key of each head": (1, heads, 1, keys),
        "dense": (2, 1, queries, keys),
        "dense of each head": (2, heads, queries, keys),
        "additive": (1, heads, queries, keys),
        "additive key": (2, 1, 1, keys),
        "empty rows": (2, 1, queries, keys),
        "far rows": (2, 1, queries, keys),
        "one column": (2, 1, queries, 1),
        "two dims": (queries, keys),
    }.get(case.mask)
    if shape is None:
        return q, k, v, None
    mask = torch.rand(shape, generator=generator) > 0.4
    if case.mask.startswith("additive"):
        mask = torch.randn(shape, generator=generator).masked_fill(~mask, -torch.inf).to(case.dtype)
    if case.mask == "empty rows":
        mask[:, :, ::2] = False
    if case.mask == "far rows":  # hidden by finite numbers: everywhere, or in a whole block
        lowest = torch.finfo(case.dtype).min
        mask = torch.zeros(shape).masked_fill(~mask, lowest)
        mask[:, :, ::3] = -1e9
        mask[:, :, 1::6, : keys // 2] = -1e9
        mask[:, :, 2::6] = lowest
        mask = mask.to(case.dtype)
    return q, k, v, mask


def one_process(case, q, k, v, mask):
    """SDPA; a query without a key gives 0."""
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=case.mask == "causal", enable_gqa=q.shape[1] != k.shape[1])
    if mask is None or not out.numel():
        return out
    allowed = mask if mask.dtype == torch.bool else mask != -torch.inf
    return torch.where(allowed.any(dim=-1, keepdim=True), out, 0)


def piece(x, lengths, rank, dim):
    return x.narrow(dim, sum(lengths[:rank]), lengths[rank])


def shard(case, q, k, v, mask, rank):
    """What this rank passes to usp_attention."""
    if mask is not None and mask.shape[-2] > 1:
        mask = piece(mask, case.lengths, rank, -2)
    if case.mask == "local key":
        mask = piece(mask, case.kv_lengths, rank, -1)
    return piece(q, case.lengths, rank, 2), piece(k, case.kv_lengths, rank, 2), piece(v, case.kv_lengths, rank, 2), mask


def relative(got, want, whole, floor=1e-3):
    return ((got.float() - want.float()).abs().max() / whole.float().abs().max().clamp(min=floor)).item() if got.numel() else 0.0


def options(case, mesh):
    equal = case.kv_lengths == case.lengths and len(set(case.lengths)) == 1
    lengths = {} if equal else {"lengths": case.lengths, "kv_lengths": case.kv_lengths}
    return {"mesh": mesh, "is_causal": case.mask == "causal", "enable_gqa": case.heads[0] != case.heads[1], **lengths}


def errors_of(cases, ulysses, ring, method):
    """Relative error of each case's output, against the whole."""
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    rank, errors = mesh.sequence.rank(), []
    for case in cases:
        q, k, v, mask = inputs(case)
        whole = one_process(replace(case, dtype=torch.float32), *(x if x is None or x.dtype == torch.bool else x.float() for x in (q, k, v, mask)))
        with torch.no_grad():
            *tensors, own_mask = shard(case, q, k, v, mask, rank)
            out = usp_attention(*tensors, attn_mask=own_mask, **options(case, mesh))
        assert out.dtype == case.dtype
        assert out.shape == (2, case.heads[0], case.lengths[rank], case.value_size or case.size)
        errors.append(relative(out, piece(whole, case.lengths, rank, 2), whole) if whole.numel() else 0.0)
    return errors


def legal(case, ulysses):
    one_row = sum(case.lengths) == 1 or 1 in case.lengths  # such rows cannot be told from a key's
    return (
        case.heads[0] >= ulysses
        and not (case.mask == "one column" and (1 in case.kv_lengths or sum(case.kv_lengths) in case.kv_lengths or one_row))
        and not (case.mask == "far rows" and case.dtype == torch.float16)  # -1e9 is -inf there
        and not (case.mask in ("key", "local key", "key of each head", "additive key") and case.lengths == ())
    )


def matrix(ulysses, ring, seed=0, count=90):
    """`count` cases drawn from all combinations, besides each mask on each of the lengths."""
    chosen = random.Random(seed)
    lengths = LENGTHS[ulysses * ring]
    cases = [Case(a, a, mask=mask) for a, mask in itertools.product(lengths, MASKS)]
    cases += [Case(a, b, mask=mask) for (a, b), mask in itertools.product(zip(lengths, reversed(lengths), strict=True), MASKS)]
    for _ in range(count):
        a = chosen.choice(lengths)
        cases.append(
            Case(
                a,
                chosen.choice([a, chosen.choice(lengths)]),
                chosen.choice(HEADS),
                chosen.choice(MASKS),
                chosen.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16]),
                chosen.choice(SIZES),
                chosen.choice([0, 0, 24]),
            )
        )
    return [case for case in cases if legal(case, ulysses)]


@pytest.mark.parametrize(("ulysses", "ring", "method"), LAYOUTS)
def test_equals_one_process(ranks, ulysses, ring, method):
    cases = matrix(ulysses, ring)
    for rank, errors in enumerate(ranks(ulysses * ring, errors_of, cases, ulysses, ring, method)):
        wrong = [(error, case) for error, case in zip(errors, cases, strict=True) if not error <= TOLERANCE[case.dtype]]
        assert not wrong, f"rank {rank}: {len(wrong)} of {len(cases)}, worst {max(wrong, key=lambda pair: pair[0])}"


def test_the_matrix_holds_every_kind_of_case():
    cases = [case for ulysses, ring, _ in LAYOUTS for case in matrix(ulysses, ring)]
    assert {case.mask for case in cases} == set(MASKS)
    assert {case.heads for case in cases} == set(HEADS)
    assert {case.size for case in cases} == set(SIZES)
    assert {case.dtype for case in cases} == set(TOLERANCE)
    assert any(case.lengths != case.kv_lengths and case.mask == "causal" for case in cases)


# Gradients


def gradient_errors(cases, ulysses, ring, method):
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    rank, errors = mesh.sequence.rank(), []
    for case in cases:
        q, k, v, mask = inputs(case)
        wholes = [x.clone().requires_grad_() for x in (q, k, v)]
        out = one_process(case, *wholes, mask)
        towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        expected = torch.autograd.grad(out, wholes, towards)
        *pieces, own_mask = shard(case, q, k, v, mask, rank)
        pieces = [x.clone().requires_grad_() for x in pieces]
        own = usp_attention(*pieces, attn_mask=own_mask, **options(case, mesh))
        got = torch.autograd.grad(own, pieces, piece(towards, case.lengths, rank, 2))
        lengths = (case.lengths, case.kv_lengths, case.kv_lengths)
        # The floor: a query's gradient is zero where it has a single key, and what is left is rounding.
        errors.append(max(relative(g, piece(e, n, rank, 2), e, floor=1.0) for g, e, n in zip(got, expected, lengths, strict=True)))
    return errors


@pytest.mark.parametrize(("ulysses", "ring", "method"), LAYOUTS[1:])
def test_gradients_equal_one_process(ranks, ulysses, ring, method):
    lengths = LENGTHS[ulysses * ring]
    masks = ["none", "causal", "key", "dense of each head", "additive", "local key"]
    cases = [Case(a, a, heads, mask) for a, (mask, heads) in itertools.product(lengths[:4], zip(masks, [(4, 4), (6, 2)] * 3, strict=True))]
    cases += [Case(a, b, mask=mask) for (a, b), mask in zip(itertools.pairwise(lengths), ["none", "causal", "dense", "key", "causal"], strict=False)]
    cases.append(Case(lengths[0], lengths[0], value_size=24))
    for errors in ranks(ulysses * ring, gradient_errors, cases, ulysses, ring, method):
        wrong = [(error, case) for error, case in zip(errors, cases, strict=True) if not error <= 2e-6]
        assert not wrong, wrong


def empty_row_gradient():
    mesh = init_mesh(ParallelConfig(1, 2), "cpu")
    q, k, v = (torch.randn(1, 2, 3, 16, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, 3, 6, dtype=torch.bool)
    mask[:, :, 1] = False
    out = usp_attention(q, k, v, mesh=mesh, attn_mask=mask)
    out.square().sum().backward()
    return bool((out[:, :, 1] == 0).all() and (q.grad[:, :, 1] == 0).all() and all(x.grad.isfinite().all() for x in (q, k, v)))


def test_a_query_without_keys_gives_zero_and_no_gradient(ranks):
    assert ranks(2, empty_row_gradient) == [True, True]


# Keys that every rank has, prepared masks, the caller's own kernel


def shared_key_errors(ulysses, ring, method, lengths, heads, masked, prepared):
    """[shared | sharded] keys on one process against shared= on several."""
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    rank = mesh.sequence.rank()
    case = Case(lengths, lengths, heads, "dense of each head" if masked else "none")
    q, k, v, mask = inputs(case)
    generator = torch.Generator().manual_seed(5)
    key, value = (torch.randn(2, heads[1], 5, 16, generator=generator) for _ in range(2))
    shared_mask = torch.rand(2, 1, 1, 5, generator=generator) > 0.5 if masked else None
    whole_mask = torch.cat([shared_mask.expand(2, heads[0], q.shape[2], 5), mask], dim=3) if masked else None
    whole = one_process(case, q, torch.cat([key, k], dim=2), torch.cat([value, v], dim=2), whole_mask)
    *pieces, own_mask = shard(case, q, k, v, mask, rank)
    if prepared and masked:
        own_mask = prepare_mask(own_mask, mesh, heads=heads[0], kv_heads=heads[1], lengths=lengths, shared_length=5, shared_mask=shared_mask)
    out = attend(
        *(x.transpose(1, 2) for x in pieces),
        mesh,
        attn_mask=own_mask,
        enable_gqa=heads[0] != heads[1],
        lengths=lengths,
        shared=(key.transpose(1, 2), value.transpose(1, 2), shared_mask),
    )
    return relative(out.transpose(1, 2), piece(whole, lengths, rank, 2), whole)


@pytest.mark.parametrize(("ulysses", "ring", "method"), LAYOUTS)
def test_shared_keys_are_counted_once(ranks, ulysses, ring, method):
    for lengths, heads, (masked, prepared) in itertools.product(
        LENGTHS[ulysses * ring][:3], [(4, 4), (6, 2)], [(False, False), (True, False), (True, True)]
    ):
        assert max(ranks(ulysses * ring, shared_key_errors, ulysses, ring, method, lengths, heads, masked, prepared)) <= 1e-6


def only_the_shared_part_is_masked():
    mesh = init_mesh(ParallelConfig(1, 2), "cpu")
    q, k, v = (torch.randn(1, 3, 2, 16, generator=torch.Generator().manual_seed(i + 3 * mesh.sequence.rank())) for i in range(3))
    key, value = (torch.randn(1, 2, 2, 16, generator=torch.Generator().manual_seed(9 + i)) for i in range(2))
    hidden = attend(q, k, v, mesh, shared=(key, value, torch.zeros(1, 1, 1, 2, dtype=torch.bool)))
    torch.testing.assert_close(hidden, attend(q, k, v, mesh), rtol=0, atol=1e-6)


def test_a_mask_of_the_shared_part_alone_is_not_dropped(ranks):
    ranks(2, only_the_shared_part_is_masked)


def with_own_kernel(ulysses, ring, method):
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    calls = []

    def local(q, k, v, attn_mask, is_causal, scale, enable_gqa):
        calls.append((is_causal, enable_gqa))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa).transpose(1, 2)

    rank, errors = mesh.sequence.rank(), []
    for lengths, mask in itertools.product(((5, 1), (0, 3)), ("none", "causal", "empty rows", "key")):
        case = Case(lengths, lengths, (6, 2), mask)
        q, k, v, whole_mask = inputs(case)
        whole = one_process(case, q, k, v, whole_mask)
        *pieces, own_mask = shard(case, q, k, v, whole_mask, rank)
        out = attend(
            *(x.transpose(1, 2) for x in pieces), mesh, attn_mask=own_mask, is_causal=mask == "causal", enable_gqa=True, lengths=lengths, local=local
        )
        errors.append(relative(out.transpose(1, 2), piece(whole, lengths, rank, 2), whole))
    return max(errors), bool(calls)


@pytest.mark.parametrize(("ulysses", "ring", "method"), [(2, 1, "rotate"), (1, 2, "gather")])
def test_the_callers_own_kernel(ranks, ulysses, ring, method):
    for error, _ in ranks(2, with_own_kernel, ulysses, ring, method):
        assert error <= 1e-6


def test_the_callers_own_kernel_is_called(ranks):
    assert all(called for _, called in ranks(2, with_own_kernel, 2, 1, "rotate"))


def scaled_error(ulysses, ring, method):
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    case = Case((4, 4), (4, 4))
    q, k, v, _ = inputs(case)
    whole = F.scaled_dot_product_attention(q, k, v, scale=0.7)
    *pieces, _ = shard(case, q, k, v, None, mesh.sequence.rank())
    return relative(usp_attention(*pieces, mesh=mesh, scale=0.7), piece(whole, case.lengths, mesh.sequence.rank(), 2), whole)


@pytest.mark.parametrize(("ulysses", "ring", "method"), LAYOUTS[1:4])
def test_scale(ranks, ulysses, ring, method):
    assert max(ranks(2, scaled_error, ulysses, ring, method)) <= 1e-6

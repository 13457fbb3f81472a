"""torch.compile(fullgraph=True) of usp_attention: no graph break, the same result, forward and backward."""

import pytest
import torch
from test_usp_attention import Case, inputs, one_process, options, piece, relative, shard

from dit_usp import ParallelConfig, init_mesh, usp_attention

CASES = [
    (2, 1, "rotate", Case((4, 4), (4, 4))),
    (2, 1, "rotate", Case((5, 3), (5, 3), (5, 5), "dense of each head")),
    (1, 2, "rotate", Case((4, 4), (4, 4), (6, 2), "key")),
    (1, 2, "rotate", Case((5, 3), (5, 3), mask="causal")),
    (1, 2, "gather", Case((4, 4), (4, 4), mask="additive")),
    (2, 2, "rotate", Case((5, 2, 0, 3), (5, 2, 0, 3), (6, 2), "local key")),
    (2, 2, "gather", Case((3, 3, 3, 3), (3, 3, 3, 3), mask="causal")),
]


def compiled_errors(ulysses, ring, method, case, backend, grad):
    torch._dynamo.reset()
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    rank = mesh.sequence.rank()
    q, k, v, mask = inputs(case)
    wholes = [x.clone().requires_grad_(grad) for x in (q, k, v)]
    whole = one_process(case, *wholes, mask)
    *pieces, own_mask = shard(case, q, k, v, mask, rank)
    pieces = [x.clone().requires_grad_(grad) for x in pieces]

    def attention(q, k, v, mask):
        return usp_attention(q * 2, k / 2, v, attn_mask=mask, **options(case, mesh)) + 1

    with torch.set_grad_enabled(grad):
        out = torch.compile(attention, fullgraph=True, backend=backend)(*pieces, own_mask)
    errors = [relative(out - 1, piece(whole, case.lengths, rank, 2), whole)]
    if grad:
        towards = torch.randn(whole.shape, generator=torch.Generator().manual_seed(3))
        expected = torch.autograd.grad(whole, wholes, towards)
        got = torch.autograd.grad(out, pieces, piece(towards, case.lengths, rank, 2))
        errors += [relative(g, piece(e, case.lengths, rank, 2), e) for g, e in zip(got, expected, strict=True)]
    return max(errors)


@pytest.mark.parametrize(("ulysses", "ring", "method", "case"), CASES)
def test_compiled_equals_one_process(ranks, ulysses, ring, method, case):
    assert max(ranks(ulysses * ring, compiled_errors, ulysses, ring, method, case, "aot_eager", False)) <= 1e-6


@pytest.mark.parametrize(("ulysses", "ring", "method", "case"), [CASES[i] for i in (1, 3)])
def test_compiled_gradients(ranks, ulysses, ring, method, case):
    assert max(ranks(ulysses * ring, compiled_errors, ulysses, ring, method, case, "aot_eager", True)) <= 2e-6


def other_shapes(ulysses, ring, method):
    """One compiled function, called with other lengths: Dynamo makes them symbolic, and the exchange sizes with them."""
    torch._dynamo.reset()
    mesh = init_mesh(ParallelConfig(ulysses, ring, ring_method=method), "cpu")
    attention = torch.compile(usp_attention, fullgraph=True, backend="aot_eager")
    errors = []
    for length in (3, 5, 6, 9):
        case = Case((length,) * mesh.sequence.size(), (length,) * mesh.sequence.size())
        q, k, v, _ = inputs(case)
        whole = one_process(case, q, k, v, None)
        *pieces, _ = shard(case, q, k, v, None, mesh.sequence.rank())
        errors.append(relative(attention(*pieces, mesh=mesh), piece(whole, case.lengths, mesh.sequence.rank(), 2), whole))
    return max(errors)


@pytest.mark.parametrize(("ulysses", "ring", "method"), [(2, 1, "rotate"), (1, 2, "rotate"), (1, 2, "gather")])
def test_compiled_takes_other_lengths(ranks, ulysses, ring, method):
    assert max(ranks(2, other_shapes, ulysses, ring, method)) <= 1e-6

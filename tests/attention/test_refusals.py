"""What usp_attention refuses, before the first collective and with one line that says what works."""

import pytest
import torch
from traffic import Traffic

from dit_usp import ParallelConfig, init_mesh, usp_attention
from dit_usp.attention import attend, prepare_mask


def refusal(config, shapes, options):
    mesh = init_mesh(config, "cpu")
    query, key, value = (torch.randn(shape) for shape in shapes)
    if "mask" in options:
        options["attn_mask"] = torch.ones(options.pop("mask"), dtype=torch.bool)
    with Traffic() as traffic:
        try:
            usp_attention(query, key, value, mesh=mesh, **options)
        except ValueError as error:
            return type(error).__name__, str(error), traffic.collectives
    return None


SAME = [(1, 4, 3, 16)] * 3
EQUAL = {"lengths": (3, 3)}  # said, so that nobody asks
U2, R2 = ParallelConfig(2), ParallelConfig(1, 2)
REFUSALS = [
    (
        ParallelConfig(3),
        [(1, 2, 3, 16)] * 3,
        {},
        "UnsupportedError",
        "ulysses_degree=3 needs at least 3 heads; the query has 2. Try ulysses_degree=1 ring_degree=3 or ulysses_degree=2.",
    ),
    (
        U2,
        [(1, 4, 3, 16), (1, 2, 3, 16), (1, 2, 3, 16)],
        {},
        "ValueError",
        "query has 4 heads, key and value 2: they need as many, or enable_gqa=True.",
    ),
    (
        U2,
        [(1, 4, 3, 16), (1, 3, 3, 16), (1, 3, 3, 16)],
        {"enable_gqa": True},
        "ValueError",
        "query has 4 heads, key and value 3: they need a divisor of them.",
    ),
    (U2, [(4, 3, 16)] * 3, {}, "ValueError", "query, key and value have 3, 3 and 3 dimensions; pass 4."),
    (U2, [(1, 4, 3, 16), (1, 4, 3, 8), (1, 4, 3, 16)], {}, "ValueError", "do not fit together."),
    (U2, [(1, 4, 3, 16), (2, 4, 3, 16), (2, 4, 3, 16)], {}, "ValueError", "do not fit together."),
    (U2, SAME, {"is_causal": True, "mask": (1, 1, 3, 6)}, "ValueError", "is_causal=True and an attn_mask exclude one another"),
    (U2, SAME, {"lengths": (3,)}, "ValueError", "lengths has 1 entries; the sequence lies on 2 ranks."),
    (U2, SAME, {"lengths": (4, 4)}, "ValueError", "which has 3."),
    (
        U2,
        [(1, 4, 3, 16), (1, 4, 5, 16), (1, 4, 5, 16)],
        {"lengths": (3, 3)},
        "ValueError",
        "which has 5; pass kv_lengths for keys of another sequence.",
    ),
    (U2, SAME, {"backend": "cuddn"}, "ValueError", "backend='cuddn' is unknown. Nearest: cudnn"),
    (R2, SAME, {"backend": "sdpa"}, "UnsupportedError", "backend='sdpa' gives no LSE. These take the call: cpu, math."),
    (R2, SAME, EQUAL | {"mask": (1, 1, 2, 6)}, "ValueError", "attn_mask has 2 rows; this rank has 3 queries: pass 1 row or 3."),
    (
        R2,
        SAME,
        EQUAL | {"mask": (1, 1, 1, 5)},
        "ValueError",
        "attn_mask has 1 rows and 5 columns; pass a column for each of the 6 keys, or one row for this rank's 3.",
    ),
    (R2, SAME, EQUAL | {"mask": (1, 1, 3, 3)}, "ValueError", "attn_mask has 3 rows and 3 columns"),
    (R2, SAME, {"mask": (1, 3, 1, 6)}, "ValueError", "attn_mask (1, 3, 1, 6) does not broadcast to batch 1 and 4 heads."),
    (R2, SAME, {"mask": (2, 1, 1, 6)}, "ValueError", "attn_mask (2, 1, 1, 6) does not broadcast to batch 1 and 4 heads."),
]


@pytest.mark.parametrize(("config", "shapes", "options", "kind", "message"), REFUSALS)
def test_refused_alike_on_every_rank_before_any_collective(ranks, config, shapes, options, kind, message):
    for result in ranks(config.world_size, refusal, config, shapes, options):
        assert result is not None
        assert result[0] == kind
        assert message in result[1]
        assert "\n" not in result[1]
        assert result[2] == []


def unsaid(config):
    """What is said about lengths that differ, and the collectives of two calls with equal ones."""
    mesh = init_mesh(config, "cpu")
    messages, counts = [], []
    for queries, keys in ((3 + mesh.sequence.rank(), 4), (4, 3 + mesh.sequence.rank())):
        with pytest.raises(ValueError, match="tokens; pass") as refusal:
            usp_attention(torch.randn(1, 4, queries, 16), *torch.randn(2, 1, 4, keys, 16), mesh=mesh)
        messages.append(str(refusal.value))
    for _ in range(2):
        with Traffic() as traffic:
            usp_attention(*torch.randn(3, 1, 4, 5, 16), mesh=mesh)
        counts.append(len(traffic.collectives))
    return messages, counts[0] - counts[1]


@pytest.mark.parametrize("config", [U2, R2, ParallelConfig(1, 2, ring_method="gather")], ids=str)
def test_lengths_that_differ_and_are_not_said_are_refused_alike(ranks, config):
    expected = [f"the ranks hold 3, 4 tokens; pass {name}=(3, 4), the same on every rank." for name in ("lengths", "kv_lengths")]
    assert ranks(2, unsaid, config) == [(expected, 0)] * 2


def more_refusals():
    mesh = init_mesh(R2, "cpu")
    q = torch.randn(1, 3, 4, 16)
    messages = []
    for options in ({"local": lambda *_: None}, {"is_causal": True, "shared": (q, q, None)}, {"attn_mask": prepared(mesh, heads=2)}):
        try:
            attend(q, q, q, mesh, **options)
        except ValueError as error:
            messages.append(str(error))
    return messages


def prepared(mesh, heads):
    return prepare_mask(torch.ones(1, heads, 3, 7, dtype=torch.bool), mesh, heads=heads, lengths=(3, 4) if mesh.sequence.rank() == 0 else (4, 3))


def test_attend_refuses_own_kernels_on_rotate_and_causal_with_shared_keys(ranks):
    for messages in ranks(2, more_refusals):
        assert "ring_method='rotate' with ring_degree=2" in messages[0]
        assert "Try ring_method='gather'" in messages[0]
        assert "is_causal=True with shared keys" in messages[1]
        assert "prepared for 7 keys" in messages[2]

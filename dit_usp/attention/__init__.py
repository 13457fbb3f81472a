"""USP attention: Ulysses and ring together (arXiv 2405.07719), on any lengths, heads and masks.

Dimensions: B batch, L this rank's queries, N its Ulysses group's, S all keys, H and G query and key/value heads, h this rank's heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dit_usp.attention import choice, ring
from dit_usp.attention.choice import available, choose
from dit_usp.attention.kernels import nothing, run
from dit_usp.attention.masks import PreparedMask, prepare_mask
from dit_usp.attention.merge import merge
from dit_usp.attention.ulysses import HeadSplit, heads_to_sequence, sequence_to_heads, split_heads
from dit_usp.collectives import told_by_store, wants_grad
from dit_usp.errors import UnsupportedError
from dit_usp.mesh import Mesh

__all__ = [
    "HeadSplit",
    "PreparedMask",
    "attend",
    "available",
    "choose",
    "heads_to_sequence",
    "merge",
    "needs_lse",
    "prepare_mask",
    "sequence_to_heads",
    "split_heads",
    "usp_attention",
]

# What `attend` has found of calls by their shapes: a caller's own, for calls on one mesh whose lengths are given.
Plans = dict[Hashable, "_Plan"]
Local = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float | None, bool], Tensor]
Shared = tuple[Tensor, Tensor, Tensor | None]


def usp_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mesh: Mesh,
    attn_mask: Tensor | PreparedMask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    lengths: Sequence[int] | None = None,
    kv_lengths: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """scaled_dot_product_attention over a sequence whose pieces lie on the ranks of mesh.sequence in rank order: (B, H, L, D) -> (B, H, L, D).

    Args:
        query, key, value: this rank's tokens, all heads: (B, H, L, D), (B, G, L_kv, D). Pieces may differ in length and be empty.
        attn_mask: bool (True: attend) or additive, broadcastable to (B, H, L, S): rows are this rank's queries, columns all keys in rank order;
            or, with one row, (B, H, 1, L_kv), this rank's keys. A query without a key gives 0.
        is_causal: query i of the whole sequence sees its keys j <= i.
        enable_gqa: allow fewer key/value heads G, a divisor of H.
        lengths: tokens on each rank of mesh.sequence, in rank order, the same on every rank; None: all equal to this rank's, which the ranks
            compare at their first such call on a mesh; later ones are trusted.
        kv_lengths: the same of the keys; None: `lengths` if given, else all equal to this rank's.
        backend: a kernel of `available(device)`, or "auto".

    Raises:
        UnsupportedError: fewer heads than ulysses_degree; a kernel that cannot take the call.
        ValueError: shapes, lengths or names that do not fit. All before the first exchange of tokens.
    """
    out = attend(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        mesh,
        attn_mask=attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        lengths=lengths,
        kv_lengths=kv_lengths,
        backend=backend,
    )
    return out.transpose(1, 2)


def attend(
    q_BLHD: Tensor,
    k_BLGD: Tensor,
    v_BLGD: Tensor,
    mesh: Mesh,
    *,
    attn_mask: Tensor | PreparedMask | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    lengths: Sequence[int] | None = None,
    kv_lengths: Sequence[int] | None = None,
    shared: Shared | None = None,
    local: Local | None = None,
    backend: str = "auto",
    plans: Plans | None = None,
) -> Tensor:
    """`usp_attention` in the layout (B, L, H, D), with keys that every rank has and with the caller's own kernel.

    Args:
        attn_mask: as for usp_attention, or `prepare_mask` of it (and of shared's), which saves its exchanges on later calls.
        shared: (key, value, mask or None) that are the same on every rank, counted once, before all other keys: (B, T, G, D) and a mask
            broadcastable to (B, H, L, T). With a prepared attn_mask, shared's mask is already in it.
        local: the kernel to use, (q, k, v, attn_mask, is_causal, scale, enable_gqa) -> out (B, N, h, D). It gives no LSE: not for rotate.
        plans: where what follows from the shapes of calls on this mesh is kept, checked and chosen once; used where `lengths` are given.
    """
    key = None
    if plans is not None and lengths is not None and not torch.compiler.is_compiling():
        key = _key(q_BLHD, k_BLGD, v_BLGD, attn_mask, is_causal, enable_gqa, lengths, kv_lengths, shared, local, backend)
    plan = plans.get(key) if plans and key else None
    if plan is None:
        plan = _planned(q_BLHD, k_BLGD, v_BLGD, mesh, attn_mask, is_causal, enable_gqa, lengths, kv_lengths, shared, local, backend)
        if plans is not None and key:
            if len(plans) >= REMEMBERED:
                plans.clear()
            plans[key] = plan
    mask = (
        attn_mask
        if isinstance(attn_mask, PreparedMask)
        else _prepared(attn_mask, mesh, q_BLHD.shape[2], k_BLGD.shape[2], plan.lengths, plan.kv_lengths, shared)
    )
    own_shared = _own_heads(shared, plan.heads, mesh) if shared else None
    if mask and mask.mask.shape[3] != (columns := sum(plan.kv_lengths) + (shared[0].shape[1] if shared else 0)):
        raise ValueError(f"attn_mask was prepared for {mask.mask.shape[3]} keys; this call has {columns}.")

    q, k, v = heads_to_sequence(q_BLHD, k_BLGD, v_BLGD, mesh.ulysses, plan.own, plan.kv_own, plan.heads)
    if plan.rotates:
        out = _rotate(q, k, v, mesh, plan.kernel, mask, is_causal, scale, plan.lengths, plan.kv_lengths, own_shared)
    else:
        out = _attend_once(q, k, v, mesh, plan.kernel, local, mask, is_causal, scale, plan.lengths, plan.kv_lengths, own_shared)
    return sequence_to_heads(out.to(q.dtype), mesh.ulysses, plan.heads.query, plan.own)


class _Plan(NamedTuple):
    """What follows from a call's shapes, which have been checked.

    Attributes:
        kernel: of our table, "" with the caller's own.
        rotates: whether keys are passed on block by block.
        heads: of each rank of the Ulysses group.
        lengths, kv_lengths: query and key tokens on each rank.
        own, kv_own: those of this rank's Ulysses group.
    """

    kernel: str
    rotates: bool
    heads: HeadSplit
    lengths: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    own: Sequence[int]
    kv_own: Sequence[int]


REMEMBERED = 256  # kinds of call


def _key(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | PreparedMask | None,
    is_causal: bool,
    enable_gqa: bool,
    lengths: Sequence[int],
    kv_lengths: Sequence[int] | None,
    shared: Shared | None,
    local: Local | None,
    backend: str,
) -> Hashable:
    """All that `_planned` looks at, but the mesh."""
    grad = wants_grad(q, k, v)
    masked = mask.shape if isinstance(mask, Tensor) else mask is not None
    sizes = tuple(lengths), None if kv_lengths is None else tuple(kv_lengths), shared and shared[2] is not None
    return (
        q.shape,
        k.shape,
        v.shape,
        q.dtype,
        k.dtype,
        v.dtype,
        q.device,
        grad,
        masked,
        is_causal,
        enable_gqa,
        sizes,
        shared is None,
        local is None,
        backend,
    )


def _planned(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mesh: Mesh,
    mask: Tensor | PreparedMask | None,
    is_causal: bool,
    enable_gqa: bool,
    lengths: Sequence[int] | None,
    kv_lengths: Sequence[int] | None,
    shared: Shared | None,
    local: Local | None,
    backend: str,
) -> _Plan:
    """Check a call, in an order that is the same on every rank, and choose its kernel."""
    unsaid = _unsaid(q.shape[1], k.shape[1], lengths, kv_lengths)
    lengths, kv_lengths = _lengths(mesh, q.shape[1], k.shape[1], lengths, kv_lengths)
    _check(q, k, v, mesh, mask, is_causal, enable_gqa, shared)
    masked = mask is not None or (shared is not None and shared[2] is not None)
    name = _kernel(q, k, v, mesh, masked, is_causal, lengths, kv_lengths, local, backend)
    _check_equal(mesh, unsaid)
    heads = split_heads(q.shape[2], k.shape[2], mesh.ulysses.size())
    return _Plan(name, needs_lse(mesh), heads, lengths, kv_lengths, _own(lengths, mesh), _own(kv_lengths, mesh))


def _unsaid(queries: int, keys: int, lengths: Sequence[int] | None, kv_lengths: Sequence[int] | None) -> dict[str, int]:
    """The arguments that leave the other ranks' lengths to be this rank's, and what that is."""
    if lengths is not None:
        return {}
    return {"lengths": queries} if kv_lengths is not None else {"lengths": queries, "kv_lengths": keys}


def _check_equal(mesh: Mesh, unsaid: dict[str, int]) -> None:
    """Refuse, alike on every rank, lengths that differ where the caller said nothing.

    Once a mesh: all ranks know whether they have asked, but not what lengths the others have. Through the group's store: no collective.
    """
    if mesh.sequence.size() == 1 or not unsaid or torch.compiler.is_compiling() or "lengths" in mesh.asked:
        return
    held = told_by_store(tuple(unsaid.values()), mesh.sequence)
    for name, lengths in zip(unsaid, zip(*held, strict=True), strict=True):
        if len(set(lengths)) > 1:
            raise ValueError(f"the ranks hold {', '.join(map(str, lengths))} tokens; pass {name}={lengths}, the same on every rank.")
    mesh.asked.add("lengths")


def _lengths(
    mesh: Mesh, queries: int, keys: int, lengths: Sequence[int] | None, kv_lengths: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Query and key tokens on each rank, as usp_attention documents them."""
    ranks = mesh.sequence.size()
    if kv_lengths is None:
        kv_lengths = lengths if lengths is not None else (keys,) * ranks
    if lengths is None:
        lengths = (queries,) * ranks
    for name, sizes, own in (("lengths", lengths, queries), ("kv_lengths", kv_lengths, keys)):
        if len(sizes) != ranks:
            raise ValueError(f"{name} has {len(sizes)} entries; the sequence lies on {ranks} ranks.")
        if sizes[mesh.sequence.rank()] != own:
            hint = "; pass kv_lengths for keys of another sequence" if name == "kv_lengths" else ""
            raise ValueError(f"{name} says {sizes[mesh.sequence.rank()]} tokens for rank {mesh.sequence.rank()}, which has {own}{hint}.")
    return tuple(lengths), tuple(kv_lengths)


def _check(
    q: Tensor, k: Tensor, v: Tensor, mesh: Mesh, mask: Tensor | PreparedMask | None, is_causal: bool, enable_gqa: bool, shared: Shared | None
) -> None:
    """Refuse what SDPA refuses and what no rank can do, from values that all ranks share."""
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"query, key and value have {q.ndim}, {k.ndim} and {v.ndim} dimensions; pass 4.")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3]:
        raise ValueError(f"query {tuple(q.shape)}, key {tuple(k.shape)} and value {tuple(v.shape)} (batch, tokens, heads, size) do not fit together.")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"query is {q.dtype}, key {k.dtype} and value {v.dtype}; pass one type, as to scaled_dot_product_attention.")
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads != kv_heads and (not enable_gqa or heads % kv_heads):
        need = "a divisor of them" if enable_gqa else "as many, or enable_gqa=True"
        raise ValueError(f"query has {heads} heads, key and value {kv_heads}: they need {need}.")
    mesh.config.check_heads(heads, "the query")
    if is_causal and mask is not None:
        raise ValueError("is_causal=True and an attn_mask exclude one another, as in scaled_dot_product_attention; put the causal part in the mask.")
    if is_causal and shared is not None:
        raise UnsupportedError("is_causal=True with shared keys has no order between the two; pass an attn_mask.")
    if isinstance(mask, Tensor) and any(size not in (1, full) for size, full in zip(mask.shape[-4:-2][::-1], (heads, q.shape[0]), strict=False)):
        raise ValueError(f"attn_mask {tuple(mask.shape)} does not broadcast to batch {q.shape[0]} and {heads} heads.")


def _kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mesh: Mesh,
    masked: bool,
    is_causal: bool,
    lengths: Sequence[int],
    kv_lengths: Sequence[int],
    local: Local | None,
    backend: str,
) -> str:
    """The kernel of our table for this call, "" with the caller's own."""
    rotates = needs_lse(mesh)
    if local is not None:
        if rotates:
            raise UnsupportedError(
                f"ring_method='rotate' with ring_degree={mesh.config.ring_degree} merges blocks by their LSE, which the attention backend set in "
                "diffusers does not give. Try ring_method='gather', or leave the backend unset."
            )
        return ""
    in_ring = mesh.ring.size() > 1
    by_position = is_causal and in_ring and (not rotates or lengths != kv_lengths)  # causal as a mask, or in whole and masked blocks
    grad = wants_grad(q, k, v)
    square = True
    if is_causal and not rotates and sum(lengths) != sum(kv_lengths):  # an `if`, so that a symbolic length becomes a guard
        square = False
    sizes = int(q.shape[3]), int(v.shape[3])
    return choice.chosen(
        backend, q.device.type, q.dtype, *sizes, masked or by_position, is_causal and not by_position, square, rotates, grad and rotates
    )


def needs_lse(mesh: Mesh) -> bool:
    """Whether blocks are passed on and merged, for which a kernel must give its LSE."""
    return mesh.ring.size() > 1 and mesh.config.ring_method == "rotate"


def _own(lengths: Sequence[int], mesh: Mesh) -> Sequence[int]:
    """The lengths of this rank's Ulysses group."""
    first = mesh.ring.rank() * mesh.ulysses.size()
    return lengths[first : first + mesh.ulysses.size()]


def _ring_lengths(lengths: Sequence[int], mesh: Mesh) -> list[int]:
    """Tokens of each Ulysses group, in ring order."""
    ulysses = mesh.ulysses.size()
    return [sum(lengths[first : first + ulysses]) for first in range(0, len(lengths), ulysses)]


def _prepared(
    mask: Tensor | None, mesh: Mesh, heads: int, kv_heads: int, lengths: Sequence[int], kv_lengths: Sequence[int], shared: Shared | None
) -> PreparedMask | None:
    return prepare_mask(
        mask,
        mesh,
        heads=heads,
        kv_heads=kv_heads,
        lengths=lengths,
        kv_lengths=kv_lengths,
        shared_length=shared[0].shape[1] if shared else 0,
        shared_mask=shared[2] if shared else None,
    )


def _own_heads(shared: Shared, heads: HeadSplit, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The shared keys and values of this rank's heads: no traffic."""
    rank = mesh.ulysses.rank()
    key, value = (x.repeat_interleave(heads.repeats, dim=2) if heads.repeats > 1 else x for x in shared[:2])
    first = sum(heads.kv[:rank])
    return key[:, :, first : first + heads.kv[rank]], value[:, :, first : first + heads.kv[rank]]


def _rotate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mesh: Mesh,
    name: str,
    mask: PreparedMask | None,
    is_causal: bool,
    scale: float | None,
    lengths: Sequence[int],
    kv_lengths: Sequence[int],
    shared: tuple[Tensor, Tensor] | None,
) -> Tensor:
    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
        out, lse = run(name, q, k, v, mask, scale, causal)
        assert lse is not None
        return out, lse

    ring_lengths, ring_kv_lengths = _ring_lengths(lengths, mesh), _ring_lengths(kv_lengths, mesh)
    if mask and mask.blind is not None:
        q = torch.where(mask.blind.transpose(1, 2), 0, q)
    if not is_causal:
        return ring.rotate(q, k, v, kernel, mesh.ring, ring_kv_lengths, mask.mask if mask else None, shared)
    if lengths == kv_lengths:
        return ring.rotate_causal(q, k, v, kernel, mesh.ring, ring_lengths)
    return ring.rotate_causal_cross(q, k, v, kernel, mesh.ring, ring_lengths, ring_kv_lengths)


def _attend_once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mesh: Mesh,
    name: str,
    local: Local | None,
    mask: PreparedMask | None,
    is_causal: bool,
    scale: float | None,
    lengths: Sequence[int],
    kv_lengths: Sequence[int],
    shared: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """One kernel over all keys, collected first where there is a ring."""
    bias, has_key = (mask.opened, mask.has_key) if mask else (None, None)
    if mesh.ring.size() > 1:
        k, v = ring.gather_keys(k, v, _ring_lengths(kv_lengths, mesh), mesh.ring)
        if is_causal:
            first = sum(_ring_lengths(lengths, mesh)[: mesh.ring.rank()])
            seen = range(min(k.shape[1], first + q.shape[1]))
            k, v, is_causal = k[:, : len(seen)], v[:, : len(seen)], False
            bias, has_key = ring.causal_mask(range(first, first + q.shape[1]), seen, q.device), None
    if shared:
        k, v = (torch.cat(pair, dim=1) for pair in zip(shared, (k, v), strict=True))
    if not local:
        return run(name, q, k, v, bias, scale, is_causal, has_key)[0]
    if 0 in (*q.shape, *k.shape):
        return nothing(q, k, v)[0]
    out = local(q, k, v, bias, is_causal, scale, q.shape[2] != k.shape[2])
    return out if has_key is None else torch.where(has_key.transpose(1, 2), out, 0)

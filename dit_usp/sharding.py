"""What a rebound processor calls: attention over the pieces of every rank, as the plan's `exchange` words say."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_usp import collectives
from dit_usp.attention import Plans, PreparedMask, attend, needs_lse, prepare_mask
from dit_usp.errors import UnsupportedError
from dit_usp.mesh import Mesh
from dit_usp.plan import LEARN, Call, ShardPlan
from dit_usp.rebind import Attention
from dit_usp.streams import StreamState

# diffusers' names for torch's own kernels, and ours. Any other backend that a user sets runs as it is, between the exchanges.
NATIVE = {"native": "auto", "_native_cudnn": "cudnn", "_native_flash": "flash", "_native_efficient": "efficient", "_native_math": "math"}
# But where a ring merges blocks by their LSE, which diffusers' call does not give, our call of the same package does.
WITH_LSE = {"flash": "flash-attn-2", "_flash_3": "flash-attn-3", "sage": "sage", "xformers": "xformers"}


class Sharding:
    """The attention of one parallelized transformer. Its hooks and its processors share this object, and nothing else does.

    Attributes:
        streams: the lengths and pieces of the forward under way.
        turn: attention calls since the attention module was entered; only processors that attend more than once need it.
        late: the whole mask that a `late` word took from the module under way.
    """

    def __init__(self, plan: ShardPlan, mesh: Mesh) -> None:
        self.mesh, self.streams = mesh, StreamState(plan.model, mesh.sequence, plan.short, plan.full)
        self.turn = 0
        self.late: Tensor | None = None
        self._masks: dict[object, tuple[Tensor, PreparedMask | None]] = {}  # for each kind of call of this forward its last mask, and made ready

        self._plans: Plans = {}

    def begin(self) -> None:
        """A forward starts: the last one's masks are not this one's, wherever it ended."""
        self._masks.clear()
        self.late, self.turn = None, 0

    def attention(self, calls: tuple[Call, ...]) -> Attention:
        """The stand-ins for a processor that makes these calls in turn."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        def next_call() -> Call:
            if len(calls) == 1:
                return calls[0]  # no counting: torch.compile would compile anew for every count
            self.turn += 1
            return calls[min(self.turn, len(calls)) - 1]

        def dispatch(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
            attention_kwargs: dict[str, Any] | None = None,
            *,
            backend: Any = None,
            parallel_config: Any = None,
        ) -> Tensor:
            call = next_call()
            if call.local or (call.marked and parallel_config is None):
                return dispatch_attention_fn(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs, backend=backend)
            if dropout_p or attention_kwargs:
                raise UnsupportedError(f"attention across ranks takes no dropout_p={dropout_p} and no attention_kwargs={attention_kwargs}.")
            if attn_mask is not None and attn_mask.ndim == 2:
                attn_mask = attn_mask[:, None, None, :]  # diffusers: a 2-D mask is (batch, keys)
            name, local = _backend(backend, needs_lse(self.mesh))
            if call.mask == "native" and (local or name in WITH_LSE.values()):
                raise UnsupportedError(f"{self.streams.owner}: its window of attention is shared over ranks with torch's own backends; set 'native'.")
            return self.attend(call, query, key, value, attn_mask, is_causal, scale, enable_gqa, name, local)

        def sdpa(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Tensor:
            call = next_call()
            if call.local:
                return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
            if dropout_p:
                raise UnsupportedError(f"attention across ranks takes no dropout_p={dropout_p}.")
            q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            name = NATIVE.get(_active_backend().value, "auto")  # such processors know no other backends
            return self.attend(call, q, k, v, attn_mask, is_causal, scale, enable_gqa, name, None).transpose(1, 2)

        return Attention(dispatch, sdpa)

    def attend(
        self,
        call: Call,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
        backend: str,
        local: Any,
    ) -> Tensor:
        """One call in (batch, tokens, heads, size), its keys exchanged as `call` says."""
        lengths = self.streams.learn(query.shape[1]) if call.queries == LEARN else self.streams.sizes(call.queries)
        kv_lengths = self._key_lengths(call, lengths, key.shape[1])
        mask = attn_mask if self.late is None else self.late
        side = call.shared or self.streams.shared(None if call.keys == LEARN else call.keys)
        if side and call.keys == LEARN:
            raise UnsupportedError(f"{self.streams.owner}: {self.streams.shortage()}; use fewer ranks.")
        own, common = _parted(side, kv_lengths[self.mesh.sequence.rank()], key.shape[1]) if side or mask is not None else _ALL
        prepared = None if mask is None else self._prepared(call, mask, own, common, (query.shape[2], key.shape[2]), lengths, kv_lengths)
        shared = (key[:, common], value[:, common], None) if side else None
        if side:
            key, value = key[:, own], value[:, own]
        return attend(
            query,
            key,
            value,
            self.mesh,
            attn_mask=prepared,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            lengths=lengths,
            kv_lengths=kv_lengths,
            shared=shared,
            local=local,
            backend=backend,
            plans=self._plans,
        )

    def _prepared(
        self, call: Call, mask: Tensor, own: slice, common: slice, heads: tuple[int, int], lengths: tuple[int, ...], kv_lengths: tuple[int, ...]
    ) -> PreparedMask | None:
        """The mask with its exchanges done: once a forward where all blocks are handed the same one."""
        use = (call, heads, lengths, kv_lengths)
        # What is a view on a rank with one token or none may be a copy on the others: then no rank looks back, or their exchanges part.
        remade = call.mask in ("outer", "identity")
        lasting = remade or min(*lengths, *kv_lengths) > 1
        if lasting and use in self._masks and (remade or _same(self._masks[use][0], mask)):
            return self._masks[use][1]
        rows = mask[..., :1, :] if mask.stride(-2) == 0 else mask  # one row, expanded: a mask of keys (Lumina-Next)
        if remade:
            rows = self._outer(mask, own, common, kv_lengths) if call.mask == "outer" else self._identity(mask, call, kv_lengths)
            own, common = slice(sum(kv_lengths)), slice(sum(kv_lengths), None)
        elif mask is self.late:
            rows = self._own_rows(mask, lengths)
        elif rows.shape[-2] == sum(lengths) != lengths[self.mesh.sequence.rank()]:
            raise UnsupportedError(
                f"{self.streams.owner}: an attention mask with a row for each of {sum(lengths)} queries came whole to ranks with a piece of them; "
                "pass a mask of keys, or write a shard plan that splits its rows."
            )
        elif rows.shape[-1] == sum(kv_lengths) != kv_lengths[self.mesh.sequence.rank()] and self.streams.interleaved(call.keys):
            raise UnsupportedError(
                f"an attention mask over all {rows.shape[-1]} keys came whole to one of several ranks, which hold the keys in another order; "
                "its shard plan must split it like the tokens."
            )
        prepared = prepare_mask(
            rows[..., own],
            self.mesh,
            heads=heads[0],
            kv_heads=heads[1],
            lengths=lengths,
            kv_lengths=kv_lengths,
            shared_length=rows[..., common].shape[-1],
            shared_mask=rows[..., common] if rows[..., common].shape[-1] else None,
        )
        if not torch.compiler.is_compiling():
            self._masks[use] = (mask, prepared)
        return prepared

    def _key_lengths(self, call: Call, lengths: tuple[int, ...], own: int) -> tuple[int, ...]:
        """Keys on each rank, without those that every rank holds."""
        if call.keys == LEARN:
            return lengths if call.queries == LEARN else self.streams.learn(own)
        return self.streams.key_sizes(call.keys, own)

    def _outer(self, mask_BHLL: Tensor, own: slice, common: slice, kv_lengths: tuple[int, ...]) -> Tensor:
        """The processor's product m m^T over its own piece, remade over all keys, those that every rank holds last.

        m stands on the diagonal: 0 and 1 are their own squares.
        """
        m = mask_BHLL.diagonal(dim1=-2, dim2=-1)
        keys = torch.cat([collectives.gather(m[..., own], -1, kv_lengths, self.mesh.sequence), m[..., common]], -1)
        return m[..., :, None] * keys[..., None, :]

    def _identity(self, mask: Tensor, call: Call, kv_lengths: tuple[int, ...]) -> Tensor:
        """The processor's mask over its own piece, remade over all keys: this rank's diagonal, and nothing of its stream on the others."""
        rank, stream = self.mesh.sequence.rank(), self.streams.sizes(call.keys and call.keys[:1])
        pieces = [mask.new_zeros(*mask.shape[:-1], length) for length in kv_lengths]
        for piece, length in zip(pieces, stream, strict=True):
            piece[..., : stream[rank], :length] = -torch.inf
        pieces[rank] = mask
        return torch.cat(pieces, -1)

    def _own_rows(self, mask: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """This rank's rows of a mask (batch, queries, keys) or (batch, heads, queries, keys)."""
        rank = self.mesh.sequence.rank()
        rows = mask.narrow(-2, sum(lengths[:rank]), lengths[rank])
        return rows[:, None] if rows.ndim == 3 else rows


_ALL = slice(None), slice(0)


def _same(mask: Tensor, other: Tensor) -> bool:
    """Whether both are one piece of memory: processors make a view of the mask anew in every block, mask[:, None, None, :]."""
    layouts = [(m.data_ptr(), m.dtype, m.shape, m.stride()) for m in (mask, other)]
    return layouts[0] == layouts[1]


def _parted(shared: str, own: int, total: int) -> tuple[slice, slice]:
    """Where this rank's own keys and the common ones lie among the `total` keys of a call."""
    if not shared:
        return _ALL
    if shared == "prefix":
        return slice(total - own, None), slice(total - own)
    return slice(own), slice(own, None)


def _active_backend() -> Any:
    """The one set in diffusers for the whole process: by set_attention_backend, attention_backend or DIFFUSERS_ATTN_BACKEND."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    return _AttentionBackendRegistry.get_active_backend()[0]


def _backend(backend: Any, with_lse: bool) -> tuple[str, Any]:
    """Our kernel for the backend a user set in diffusers, or that backend itself as a local kernel."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    chosen = _active_backend() if backend is None else AttentionBackendName(backend)
    kernels = NATIVE | WITH_LSE if with_lse else NATIVE
    if chosen.value in kernels:
        return kernels[chosen.value], None

    def local(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool) -> Tensor:
        return dispatch_attention_fn(q, k, v, attn_mask, 0.0, is_causal, scale, enable_gqa, backend=chosen)

    return "auto", local

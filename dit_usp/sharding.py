"""What carries a plan out during a forward: the streams' lengths, the cuts, the exchanges and the collections of one parallelised transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_usp import collectives
from dit_usp.attention import attend
from dit_usp.errors import UnsupportedError
from dit_usp.mesh import Mesh
from dit_usp.plan import Call, Gather, ShardPlan, Split, Streams
from dit_usp.rebind import Attention

# diffusers' names for torch's own kernels, and ours. Any other backend that a user sets runs as it is, between the exchanges.
NATIVE = {"native": "auto", "_native_cudnn": "cudnn", "_native_flash": "flash", "_native_efficient": "efficient", "_native_math": "math"}


class Sharding:
    """The state of one transformer's forward. Its hooks and its attentions share this object, and nothing else does."""

    def __init__(self, plan: ShardPlan, mesh: Mesh) -> None:
        self.plan, self.mesh = plan, mesh
        self.lengths: dict[str, int] = {}  # of the streams met so far, whole
        self.gathered: set[int] = set()  # which Gather words have acted
        self.turn = 0  # attention calls since the attention module was entered

    def begin(self) -> None:
        """A forward starts: nothing is cut yet."""
        self.lengths.clear()
        self.gathered.clear()

    def end(self) -> None:
        """A forward ends: all that the plan collects has been collected. A -1 in an unpatchify would hide a missing piece."""
        for word in self.plan.of(Gather):
            if id(word) not in self.gathered:
                raise RuntimeError(f"{self.plan.model} returned without gathering {word.place}: its shard plan does not fit this call.")

    def cut(self, tensor: Tensor, word: Split, place: object) -> Tensor:
        """This rank's piece of `tensor` along word.dim, each of its streams on its own."""
        if word.ndim not in (None, tensor.ndim):
            return tensor
        pieces = tensor.split(self._measure(word.streams, tensor.shape[word.dim], place), word.dim)
        cut = [collectives.split(piece, word.dim, self.mesh.sequence) for piece in pieces]
        # Contiguous once here: the model's own .view calls expect what an unsharded forward gives them.
        return self._joined(cut, word.dim).contiguous()

    def collect(self, tensor: Tensor, word: Gather) -> Tensor:
        """Every rank's piece of `tensor` along word.dim, in the order of an unsharded forward."""
        self.gathered.add(id(word))
        sizes = [self.sizes((stream,)) for stream in word.streams]
        pieces = tensor.split([size[self.mesh.sequence.rank()] for size in sizes], word.dim)
        whole = [collectives.gather(piece, word.dim, size, self.mesh.sequence) for piece, size in zip(pieces, sizes, strict=True)]
        return self._joined(whole, word.dim)

    @staticmethod
    def _joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
        return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim)

    def _measure(self, streams: Streams, total: int, place: object) -> list[int]:
        """The whole length of each stream in a dim of `total`; a stream met for the first time takes what the others leave."""
        new = [stream for stream in streams if stream not in self.lengths]
        known = sum(self.lengths.get(stream, 0) for stream in streams)
        if len(new) == 1 and total >= known:
            self.lengths[new[0]] = total - known
        elif new or total != known:
            expected = " + ".join(f"{stream} {self.lengths.get(stream, '?')}" for stream in streams)
            raise UnsupportedError(f"{self.plan.model}: {place} holds {total} tokens where the shard plan expects {expected}.")
        return [self.lengths[stream] for stream in streams]

    def sizes(self, streams: Streams | None) -> tuple[int, ...]:
        """Tokens of these streams (None: of all met so far) on each rank of the sequence, together."""
        ranks = self.mesh.sequence.size()
        pieces = [collectives.split_sizes(self.lengths[stream], ranks) for stream in (self.lengths if streams is None else streams)]
        return tuple(map(sum, zip(*pieces, strict=True)))

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
            if call.local:
                return dispatch_attention_fn(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs, backend=backend)
            if dropout_p or attention_kwargs:
                raise UnsupportedError(f"attention across ranks takes no dropout_p={dropout_p} and no attention_kwargs={attention_kwargs}.")
            if attn_mask is not None and attn_mask.ndim == 2:
                attn_mask = attn_mask[:, None, None, :]  # diffusers: a 2-D mask is (batch, keys)
            name, local = _backend(backend)
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
            return self.attend(call, q, k, v, attn_mask, is_causal, scale, enable_gqa, "auto", None).transpose(1, 2)

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
        lengths, kv_lengths = self.sizes(call.queries), self.sizes(call.keys)
        shared = None
        if call.shared:
            own, common = _parted(call.shared, kv_lengths[self.mesh.sequence.rank()], key.shape[1])
            shared = (key[:, common], value[:, common], None if attn_mask is None else attn_mask[..., common])
            key, value, attn_mask = key[:, own], value[:, own], None if attn_mask is None else attn_mask[..., own]
        return attend(
            query,
            key,
            value,
            self.mesh,
            attn_mask=attn_mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            lengths=lengths,
            kv_lengths=kv_lengths,
            shared=shared,
            local=local,
            backend=backend,
        )


def _parted(shared: str, own: int, total: int) -> tuple[slice, slice]:
    """Where this rank's own keys and the common ones lie among the `total` keys of a call."""
    if shared == "prefix":
        return slice(total - own, None), slice(total - own)
    return slice(own), slice(own, None)


def _backend(backend: Any) -> tuple[str, Any]:
    """Our kernel for the backend a user set in diffusers, or that backend itself as a local kernel."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn

    chosen = _AttentionBackendRegistry.get_active_backend()[0] if backend is None else AttentionBackendName(backend)
    if chosen.value in NATIVE:
        return NATIVE[chosen.value], None

    def local(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool) -> Tensor:
        return dispatch_attention_fn(q, k, v, attn_mask, 0.0, is_causal, scale, enable_gqa, backend=chosen)

    return "auto", local

"""The token streams of one forward: how long each is, who holds which piece, and how tensors are cut and put together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_usp import collectives
from dit_usp.errors import UnsupportedError
from dit_usp.plan import KEEP, LEARN, Streams
from dit_usp.remembered import Remembered, contents

MOST = 256  # kinds of forward whose sizes are remembered


class StreamState:
    """What is known of the streams since the forward began. Every rank knows every piece from the whole lengths alone: nothing is asked.

    Args:
        owner: the model's name, for errors.
        group: the ranks that share the sequence.
        short, full: as in ShardPlan.
    """

    def __init__(self, owner: str, group: dist.ProcessGroup, short: Mapping[str, str], full: Streams = ()) -> None:
        self.owner, self.group, self.full = owner, group, full
        self.short = dict(short)  # Dynamo does not trace through a read-only view
        self.lengths: dict[str, int] = {}
        self._sums: dict[Hashable, tuple[int, ...]] = {}
        self.units: Mapping[str, int] = {}
        self.signature: Hashable = ()
        self._learned: dict[Hashable, tuple[int, ...]] = {}
        self._agreed: set[Hashable] = set()
        self._asked = 0
        self._cached: tuple[int, ...] | None = ()
        self._cache: tuple[Hashable, list[Tensor]] = ((), [])
        self._known: Remembered[tuple[int, ...]] = Remembered()

    def begin(self, units: Mapping[str, int], signature: Hashable, cache: Any = None, uses: Hashable = ()) -> None:
        """A forward starts.

        Args:
            units: tokens a piece must hold a multiple of, by stream.
            signature: the shapes of all inputs: alike on every rank, it tells one kind of forward from another.
            cache: what this forward is given with keys of earlier ones.
            uses: the plain arguments, which say how it uses them.
        """
        self.lengths.clear()
        self.units, self.signature, self._asked = units, signature, 0
        self._cached = () if cache is None else None
        if cache is not None and not torch.compiler.is_compiling():  # it may be written to before its keys are counted
            held, tensors = contents(cache)
            self._cache = (signature, uses, held), tensors

    def pieces(self, stream: str) -> tuple[int, ...]:
        """Tokens of a stream on each rank: torch.tensor_split's sizes, in whole units."""
        if self.is_whole(stream):
            return (self.lengths[stream],) * self.group.size()
        unit, length = self.units.get(stream, 1), self.lengths[stream]
        if length % unit:
            raise UnsupportedError(f"{self.owner}: {length} tokens of {stream} are not whole rows or frames of {unit}.")
        return tuple(size * unit for size in collectives.split_sizes(length // unit, self.group.size()))

    def sizes(self, streams: Streams | None) -> tuple[int, ...]:
        """Tokens of these streams together (None: of all met so far) on each rank."""
        if torch.compiler.is_compiling():  # a guard on what is remembered would have every block compiled anew
            return self._sum(streams)
        key = (streams, tuple(self.lengths.items()), tuple(self.units.items()))
        if key not in self._sums:  # every attention of every forward asks
            if len(self._sums) >= MOST:
                self._sums.clear()
            self._sums[key] = self._sum(streams)
        return self._sums[key]

    def _sum(self, streams: Streams | None) -> tuple[int, ...]:
        pieces = [self.pieces(stream) for stream in (self.lengths if streams is None else streams)]
        return tuple(map(sum, zip(*pieces, strict=True)))

    def is_whole(self, stream: str) -> bool:
        """Whether a stream is too short to be cut: every rank holds all of it."""
        return stream in self.short and self.lengths[stream] < self.group.size()

    def shortage(self) -> str:
        """Which streams are too short to be cut, in words."""
        return ", ".join(
            f"{self.lengths[stream]} tokens of {stream} on {self.group.size()} ranks" for stream in self.lengths if self.is_whole(stream)
        )

    def shared(self, streams: Streams | None) -> str:
        """Where, among the keys of these streams (None: all), those lie that every rank holds: "prefix", "suffix" or "" for none."""
        if not self.short:
            return ""
        return next((side for stream, side in self.short.items() if stream in (streams or self.lengths) and self.is_whole(stream)), "")

    def key_sizes(self, streams: Streams | None, own: int) -> tuple[int, ...]:
        """Keys on each rank that no other rank holds: those of these streams (None: of all), and those in a cache.

        Args:
            own: this rank's, those held by every rank left out or not.
        """
        if self.short:
            streams_cut = tuple(stream for stream in (streams or self.lengths) if not self.is_whole(stream))
            sizes = self.sizes(streams_cut) or (0,) * self.group.size()
        else:
            sizes = self.sizes(streams or None) or (0,) * self.group.size()
        if self._cached is None:
            if torch.compiler.is_compiling():
                raise RuntimeError(f"{self.owner} asks how many keys a cache holds; run it without torch.compile.")
            here = own - self.sizes(streams)[self.group.rank()]
            self._cached = self._known.get(*self._cache, lambda: collectives.exchange_lengths(here, self.group))
        return tuple(map(sum, zip(sizes, self._cached, strict=True))) if self._cached else sizes

    def interleaved(self, streams: Streams | None) -> bool:
        """Whether the ranks' pieces, one after the other, are in another order than the model's own: several streams, each cut on its own."""
        return len(self.lengths if streams is None else streams) > 1

    def learn(self, own: int) -> tuple[int, ...]:
        """Everyone's `own`: asked for once for each call of a kind of forward, remembered after."""
        self._asked += 1
        key = (self.signature, self._asked)
        if key not in self._learned:
            if torch.compiler.is_compiling():
                raise RuntimeError(f"{self.owner} exchanges lengths that no rule tells; run it once before torch.compile.")
            self._learned[key] = collectives.exchange_lengths(own, self.group)
        return self._learned[key]

    def agree(self, what: str, place: object, own: int, expected: tuple[int, ...]) -> None:
        """Refuse, on all ranks or on none, that a rank holds another number at `place` than expected. Asked once for each kind of forward."""
        key = (self.signature, what, str(place))
        if key in self._agreed or torch.compiler.is_compiling():
            return
        if not all(collectives.exchange_lengths(int(own == expected[self.group.rank()]), self.group)):
            held = collectives.exchange_lengths(own, self.group)
            raise UnsupportedError(f"{self.owner}: {place} has {_listed(held)} {what} on the ranks where the shard plan expects {_listed(expected)}.")
        self._agreed.add(key)

    def own(self, stream: str) -> tuple[int, int]:
        """First token and number of tokens of this rank's piece."""
        pieces, rank = self.pieces(stream), self.group.rank()
        if self.is_whole(stream):
            return 0, pieces[rank]
        return sum(pieces[:rank]), pieces[rank]

    def count(self, stream: str, n: int, in_units: bool) -> int:
        """How many of the stream's first n tokens (units) this rank holds; n measures a stream not met before."""
        unit = self.units.get(stream, 1) if in_units else 1
        if stream not in self.lengths:
            self._meet(stream, n * unit)
        first, size = self.own(stream)
        return max(0, min(n * unit - first, size)) // unit

    def log_base(self, stream: str, base: float) -> float:
        """A base whose logarithm of this rank's tokens is that of all tokens to `base`: not of one token, whose logarithm is 0 to any base."""
        if min(self.pieces(stream)) < 2:
            raise self._too_few(stream, f"{self.lengths[stream]} tokens", "two")
        return base ** (math.log(self.own(stream)[1]) / math.log(self.lengths[stream]))

    def forget(self, streams: Streams) -> None:
        """The next cut measures these streams anew."""
        for stream in streams:
            self.lengths.pop(stream, None)

    def cut(self, tensor: Tensor, dim: int, streams: Streams, place: object) -> Tensor:
        """This rank's piece of `tensor` along `dim`, each of its streams on its own. One value for a whole stream (a time a sample) stays."""
        if tensor.shape[dim] == 1 < sum(self.lengths.get(stream, 0) for stream in streams):
            return tensor
        segments = tensor.split(self._measure(streams, tensor.shape[dim], place), dim)
        pieces = [segment if stream == KEEP else segment.narrow(dim, *self.own(stream)) for stream, segment in zip(streams, segments, strict=True)]
        # Contiguous once here: the model's own .view calls expect what an unsharded forward gives them.
        return _joined(pieces, dim).contiguous()

    def collect(self, tensor: Tensor, dim: int, streams: Streams, place: object) -> Tensor:
        """Every rank's piece of `tensor` along `dim`, in the order of an unsharded forward."""
        sizes = [self.learn(tensor.shape[dim])] if streams == LEARN else [self.pieces(stream) for stream in streams]
        self.agree("tokens", place, tensor.shape[dim], tuple(map(sum, zip(*sizes, strict=True))))
        pieces = tensor.split([size[self.group.rank()] for size in sizes], dim)
        gathered = (
            piece if self.is_whole(stream) else collectives.gather(piece, dim, size, self.group)
            for stream, piece, size in zip(streams, pieces, sizes, strict=True)
        )
        return _joined(list(gathered), dim).contiguous()  # for the model's own .view

    def _meet(self, stream: str, length: int) -> None:
        """A stream's length is known from here on."""
        self.lengths[stream] = length
        units = length // (unit := self.units.get(stream, 1))
        if stream in self.full and not self.is_whole(stream) and 0 < units < self.group.size():
            raise self._too_few(stream, f"{units} {'tokens' if unit == 1 else 'rows or frames'}", "one")

    def _too_few(self, stream: str, held: str, needed: str) -> UnsupportedError:
        return UnsupportedError(f"{self.owner}: {held} of {stream} are too few for {self.group.size()} ranks; each needs {needed}.")

    def _measure(self, streams: Streams, total: int, place: object) -> list[int]:
        """The length of each segment in a dim of `total`; the one that is not known yet takes what the others leave."""
        known = [self.lengths.get(stream) for stream in streams]
        rest = total - sum(length for length in known if length is not None)
        if rest < 0 or known.count(None) != (1 if rest or None in known else 0):
            expected = " + ".join(f"{stream} {self.lengths.get(stream, '?')}" for stream in streams)
            raise UnsupportedError(f"{self.owner}: {place} holds {total} tokens where the shard plan expects {expected}.")
        for stream, length in zip(streams, known, strict=True):
            if length is None and stream != KEEP:
                self._meet(stream, rest)
        return [rest if length is None else length for length in known]


def _joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

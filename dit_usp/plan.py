"""The words of a shard plan. A plan is data: where a model's tokens enter, which attentions need everybody's keys, and where they leave.

Places are written as text:
    "proj_out"                      the output of the submodule `proj_out`
    "rope[0]", "rope[query]"        one element of its output: a tuple's index or a dict's key
    "blocks.0:hidden_states"        the argument `hidden_states` of the submodule `blocks.0`
    "blocks.*:temb"                 ... of every child of `blocks`; "blocks.-1" is the last one
    ":hidden_states"                an argument of the model's own forward
    ":attention_kwargs.mask"        an entry of a dict argument; ":freqs[1]" an element of a tuple argument
A place that holds a list, tuple or dict means every tensor in it; None and plain numbers are left alone.

A stream is a run of tokens that travels through the model, "image" unless a word says otherwise. It is cut by the rule of torch.tensor_split,
so its pieces are known on every rank from its length alone. A tensor handed to every block is cut at every block ("blocks.*:temb"); one that flows
from block to block only at the first ("blocks.0:hidden_states").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Streams = tuple[str, ...]

_PLACE = re.compile(r"(?P<module>[\w.*-]*)(?::(?P<argument>\w+))?(?P<path>(?:\[\w+\]|\.\w+)*)")
_STEP = re.compile(r"\[(\w+)\]|\.(\w+)")


@dataclass(frozen=True)
class Place:
    """Where a tensor is caught: an argument of a module (argument is set) or its output; path leads into tuples and dicts."""

    module: str
    argument: str | None
    path: tuple[int | str, ...]

    @classmethod
    def parse(cls, text: str) -> Place:
        match = _PLACE.fullmatch(text)
        if not match:
            raise ValueError(f"{text!r} is not a place: write module, module[i], module:argument or :argument.")
        path = tuple(int(index) if index.isdigit() else index for index in (a or b for a, b in _STEP.findall(match["path"])))
        return cls(match["module"], match["argument"], path)

    def __str__(self) -> str:
        argument = f":{self.argument}" if self.argument else ""
        return self.module + argument + "".join(f"[{step}]" for step in self.path)


@dataclass(frozen=True)
class Split:
    """Keep this rank's piece of each place along `dim`; see `split`."""

    places: tuple[Place, ...]
    dim: int
    streams: Streams
    ndim: int | None = None
    per_sample: bool = False
    anew: bool = False


@dataclass(frozen=True)
class Gather:
    """Collect all pieces of a place along `dim`; see `gather`."""

    place: Place
    dim: int
    streams: Streams


@dataclass(frozen=True)
class Call:
    """One attention call of a processor.

    Attributes:
        queries, keys: the streams they belong to; None: every stream cut so far; "?" learns the lengths by asking, once for every input shape.
        shared: "prefix" or "suffix" where the keys begin or end with some that every rank holds alike (an adapter's tokens, a cache), however many.
        local: every rank holds all keys already: nothing to exchange.
        marked: exchange only calls that pass diffusers' parallel_config (see dit_usp.translate).
        mask: "outer" where the processor builds the outer product of a key mask with itself: over its own piece, so ours is built from all pieces,
            once a forward: such models have one mask for all blocks.
            "identity" where tokens of the first stream see of their own stream themselves alone (perturbed attention): a diagonal over its own piece.
            "native" where the model makes it for torch's own backends only, and gives others a window that they would count from their own piece.
    """

    queries: Streams | None = None
    keys: Streams | None = None
    shared: Literal["", "prefix", "suffix"] = ""
    local: bool = False
    marked: bool = False
    mask: Literal["", "outer", "identity", "native"] = ""


@dataclass(frozen=True)
class Exchange:
    """Attention modules that need all ranks' keys; see `exchange`."""

    modules: tuple[str, ...]
    call: Call
    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class Count:
    """A number of tokens becomes this rank's share of it; see `local_int`."""

    places: tuple[Place, ...]
    stream: str
    in_units: bool
    optional: bool


@dataclass(frozen=True)
class LogBase:
    """The base of a logarithm of the number of tokens; see `log_base`."""

    places: tuple[Place, ...]
    stream: str


@dataclass(frozen=True)
class Late:
    """A mask over whole rows and columns goes around the processor; see `late`."""

    places: tuple[Place, ...]


@dataclass(frozen=True)
class Replicate:
    """Modules that run whole on every rank; see `replicate`."""

    modules: tuple[str, ...]
    arguments: tuple[str, ...]
    why: str
    dim: int
    streams: Streams
    when: tuple[str, Any] | None


@dataclass(frozen=True)
class Neighbour:
    """Convolutions that look over the edge of this rank's piece; see `neighbour`."""

    modules: tuple[str, ...]
    dim: int
    n: int


@dataclass(frozen=True)
class Reduce:
    """Linear attentions whose state is a sum over all tokens; see `reduce`."""

    modules: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Arguments whose batch lies elsewhere than in dim 0; see `batch`."""

    places: tuple[Place, ...]
    dim: int | None
    listed: bool


Word = Split | Gather | Exchange | Count | LogBase | Late | Replicate | Neighbour | Reduce | Batch
W = TypeVar("W", Split, Gather, Exchange, Count, LogBase, Late, Replicate, Neighbour, Reduce, Batch)

KEEP = "*"  # in a list of streams: a segment that stays as it is, because every rank needs it or it is local already
LEARN: Streams = ("?",)


def split(*places: str, dim: int, stream: str | Streams = "image", ndim: int | None = None, per_sample: bool = False, anew: bool = False) -> Split:
    """Keep this rank's piece of `places` along `dim`.

    Args:
        stream: the stream(s) the dim holds. Several mean a concatenation, and each is cut on its own; at most one of them may be met here first.
            KEEP names a segment that stays.
        ndim: act only on tensors of that many dims (Cosmos' modulation is per sample or per token). A tensor that has no such dim stays anyway:
            Wan's timestep is per sample (batch,) or per token (batch, tokens).
        per_sample: the dim holds the stream once for every sample of the batch, one after the other (Latte).
        anew: the stream begins here, whatever its length was before: layers that run twice in a forward, over other tokens (Z-Image's ControlNet).
    """
    return Split(_places(places), dim, _streams(stream), ndim, per_sample, anew)


def gather(place: str, dim: int, stream: str | Streams = "image") -> Gather:
    """Collect every rank's piece of the output at `place` along `dim`, in the stream's own order.

    A place with an argument names an attribute of an object that the module is handed and writes to, such as a cache: it is collected afterwards.
    """
    return Gather(Place.parse(place), dim, _streams(stream))


def exchange(
    *modules: str,
    queries: str | Streams | None = None,
    keys: str | Streams | None = None,
    shared: Literal["", "prefix", "suffix"] = "",
    mask: Literal["", "outer", "native"] = "",
    calls: Mapping[str, tuple[Call, ...]] | None = None,
    optional: bool = False,
) -> Exchange:
    """Let every query of these attention modules see all ranks' keys.

    Args:
        queries, keys, shared, mask: as in `Call`, for processors that attend once.
        calls: for processors that attend more than once: the class name and its calls in order; the last one stands for all that follow.
        optional: some configs of the model have no such module.
    """
    call = Call(_streams(queries) if queries else None, _streams(keys) if keys else None, shared, mask=mask)
    return Exchange(modules, call, dict(calls or {}), optional)


def local_int(*places: str, stream: str = "image", in_units: bool = False, optional: bool = False) -> Count:
    """Turn a number n of tokens into how many of the stream's first n tokens this rank holds. Measures a stream that was not met before.

    Args:
        in_units: the number counts the stream's units (rows, frames), not tokens.
        optional: some configs of the model have modules without this argument.
    """
    return Count(_places(places), stream, in_units, optional)


def log_base(*places: str, stream: str = "image") -> LogBase:
    """Make log_b(tokens) come out as that of the whole stream, where the model counts its own piece: b becomes b^(log piece / log whole).

    For attention whose softmax scale grows with the logarithm of the number of tokens (Lumina-Next).
    """
    return LogBase(_places(places), stream)


def late(*places: str) -> Late:
    """Take a mask (..., queries, keys) over the whole stream away from the processor, and apply this rank's rows of it inside the attention.

    For processors that would reshape or pad it by local lengths. The module's stream must be a single one, so that columns are in rank order.
    """
    return Late(_places(places))


def replicate(
    *modules: str, arguments: Sequence[str], why: str, dim: int = 1, stream: str | Streams = "image", when: tuple[str, Any] | None = None
) -> Replicate:
    """Run modules whole on every rank: their token `arguments` are collected along `dim`, their outputs cut again. Exact, not parallel.

    Args:
        when: an entry of the model's config and its value, for modules that are exchanged, or local, in other configs. Such a word stands before
            the `exchange` of the same modules, which leaves alone what runs whole.
    """
    return Replicate(modules, tuple(arguments), why, dim, _streams(stream), when)


def neighbour(*modules: str, dim: int, n: int) -> Neighbour:
    """Give a convolution along `dim` the n slices beyond each edge of this rank's piece, and cut them off its output."""
    return Neighbour(modules, dim, n)


def reduce(*modules: str) -> Reduce:
    """Add up the key-value state of a linear attention over all ranks: a sum over tokens, small, then local again."""
    return Reduce(modules)


def batch(*places: str, dim: int | None = 0, listed: bool = False) -> Batch:
    """Where the batch of an argument lies when it is not dim 0 of its tensors: cfg_degree=2 halves it there.

    Args:
        dim: -1: nowhere, leave it whole; None: it cannot be halved, and a call with it is refused.
        listed: the argument is a list with an item for every sample.
    """
    return Batch(_places(places), dim, listed)


def _places(texts: tuple[str, ...]) -> tuple[Place, ...]:
    return tuple(map(Place.parse, texts))


def _streams(stream: str | Streams) -> Streams:
    return (stream,) if isinstance(stream, str) else stream


@dataclass(frozen=True)
class ShardPlan:
    """How one transformer class is sharded.

    Attributes:
        model: the class's name in diffusers.
        words: what is cut, exchanged and collected.
        guidance: what cfg_degree=2 shares: "batch" where pipelines put the conditional and the unconditional half in one call, "calls" where they
            make a call for each and read no result before the second. "whole" for ControlNets beside these: both halves of the ranks compute them.
            "": nothing.
        unguided: arguments that mark calls outside guidance: both halves of the ranks compute them whole.
        units: streams whose pieces end on whole rows or frames of latent patches: {"image": "row"}, {"image": "frame"}.
        short: streams that stay whole on every rank while they have fewer tokens than there are ranks, and where their keys then lie in a call, as
            `shared` says: {"text": "suffix"}. For models that slice a stream off by its length: [:, :-0] is empty.
        full: streams of which every rank needs a token, unless there are none at all: fewer are refused. Of the others a piece may be empty, if it is
            short: models reshape with a -1, which has no meaning for an empty tensor.
        cache: an argument that holds keys of earlier forwards, each rank its own. How many they are is asked once for each content of it.
        ragged: a mask by which the model drops words: its values, not only its shape, decide how many keys the calls of stream "?" have.
        refused: arguments that cannot be shared over ranks, unless modules run whole by their config, and why.
        heads: the entry of the model's config that counts its attention heads.
    """

    model: str
    words: tuple[Word, ...]
    guidance: Literal["", "batch", "calls", "whole"] = ""
    unguided: Streams = ()
    units: Mapping[str, Literal["row", "frame"]] = field(default_factory=dict)
    short: Mapping[str, Literal["prefix", "suffix"]] = field(default_factory=dict)
    full: Streams = ("image",)
    cache: str = ""
    ragged: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    heads: str = "num_attention_heads"

    def __post_init__(self) -> None:
        if self.streams and not self.of(Gather):  # a -1 in an unpatchify would make a smaller batch or picture of one rank's piece
            raise ValueError(f"the shard plan of {self.model} cuts {', '.join(self.streams)} and gathers nothing; name where its tokens leave.")

    def num_heads(self, config: Mapping[str, Any]) -> int | None:
        """Attention heads of a model with this config (config.json, read), or None where it does not say."""
        return config.get(self.heads)

    def of(self, kind: type[W]) -> list[W]:
        """The plan's words of one kind, in order."""
        return [word for word in self.words if isinstance(word, kind)]

    @property
    def streams(self) -> Streams:
        """The streams that are cut, in the plan's order."""
        return tuple(dict.fromkeys(stream for word in self.of(Split) for stream in word.streams if stream != KEEP))


def shard_plan(model: str, *words: Word, **facts: Any) -> ShardPlan:
    """A ShardPlan with its words listed after the name, as models.py writes them."""
    return ShardPlan(model, words, **facts)

"""Latents larger than a model was trained on: real configurations dry-run on the meta device, and values at tiny width.

A dry run computes nothing: tensors have shapes and no values, collectives change shapes. Each rank runs in turn in the test's own process, so
what the ranks do can be put side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from real import REAL, Real, onto_meta
from test_parity import error, forward
from tiny.large import LARGE, TOO_LARGE
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import dit_usp.attention.ring
import dit_usp.sharding
from dit_usp import collectives
from dit_usp.collectives import Pending
from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize, unparallelize
from dit_usp.mesh import Mesh, init_mesh
from dit_usp.places import modules_at
from dit_usp.streams import StreamState

LAYOUTS = [(2, 1), (1, 3), (2, 2), (5, 1), (3, 2), (7, 1), (8, 1)]  # (ulysses, ring)
BLOCKS = ("transformer_blocks.*", "single_transformer_blocks.*", "blocks.*")


@dataclass(frozen=True)
class Ranks:
    """Stands in for a process group: on meta nobody needs to be there."""

    own: int
    number: int
    group_name: str

    def rank(self) -> int:
        return self.own

    def size(self) -> int:
        return self.number


def mesh_of(rank: int, ulysses: int, ring: int) -> Mesh:
    one, config = Ranks(0, 1, "one"), ParallelConfig(ulysses, ring)
    groups = Ranks(rank % ulysses, ulysses, "ulysses"), Ranks(rank // ulysses, ring, "ring"), Ranks(rank, ulysses * ring, "sequence")
    return Mesh(config, torch.device("meta"), *groups, one, one)  # type: ignore[arg-type]


@dataclass
class Dry:
    """What one rank did in a forward."""

    shape: tuple[int, ...] = ()
    lengths: list[tuple[int, ...]] = field(default_factory=list)  # tokens on each rank, of each call of an attention
    sent: list[int] = field(default_factory=list)  # bytes, of each call
    queries: list[torch.Size] = field(default_factory=list)
    table: list[Tensor] = field(default_factory=list)


class Watch(TorchDispatchMode):
    """In the blocks there is no tensor of all tokens, but for the attention's own; and what collectives send."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.local = False
        self.sent = 0

    def post(self, flat: Tensor, send_sizes: list[int], receive_sizes: list[int], group: Any) -> Pending:
        self.sent += (sum(send_sizes) - send_sizes[group.rank()]) * flat.itemsize
        return Pending(flat.new_empty(sum(receive_sizes)), SimpleNamespace(wait=lambda: None))

    def all_gather(self, flat: Tensor, group: Any) -> Tensor:
        self.sent += flat.numel() * flat.itemsize * (group.size() - 1)
        return flat.new_empty(flat.numel() * group.size())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.local:
            for tensor in tree_leaves(out):
                # linear layers look at their rows as a matrix; a mask or a row of channels is small
                if isinstance(tensor, Tensor) and tensor.ndim > 2 and tensor.numel() > 1000 * self.tokens:
                    assert max(tensor.shape) < self.tokens, (func, tensor.shape)
        return out


def pieces(length: int, ranks: int, first: int | None = None) -> list[int]:
    """How many of the `first` tokens (None: of all) of a stream each rank holds."""
    own = [len(piece) for piece in torch.arange(length).tensor_split(ranks)]
    starts = [sum(own[:rank]) for rank in range(ranks)]
    return [max(0, min(size, (length if first is None else first) - start)) for start, size in zip(starts, own, strict=True)]


def expected_lengths(case: Real, ranks: int) -> list[tuple[int, ...]]:
    """Tokens on each rank, of the calls of an attention."""
    image = pieces(case.image, ranks)
    return [tuple(map(sum, zip(image, pieces(case.text, ranks, first), strict=True))) for first in case.words or (case.text,)]


def values(value: Any) -> Any:
    """Arguments of a module that makes a table, moved to the CPU: a table depends on shapes, and on numbers that any will do for."""
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return torch.linspace(0, 1, value.numel()).view(value.shape) if isinstance(value, Tensor) and value.is_meta else value


def dry_run(case: Real, model: nn.Module, inputs: dict[str, Any], mesh: Mesh, patch: pytest.MonkeyPatch) -> Dry:
    """One rank's forward."""
    dry, watch, ranks = Dry(), Watch(case.image), mesh.sequence.size()
    calls = expected_lengths(case, ranks)

    def attend(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        watch.local, sent = False, watch.sent
        out = dit_usp.attention.attend(query, *args, **kwargs)
        dry.lengths.append(kwargs["lengths"])
        dry.queries.append(query.shape)
        dry.sent.append(watch.sent - sent)
        watch.local = ranks > 1
        return out

    def learn(streams: StreamState, own: int) -> tuple[int, ...]:
        return calls[len(dry.lengths) % len(calls)]

    def agree(streams: StreamState, what: str, place: object, own: int, expected: tuple[int, ...]) -> None:
        assert own == expected[mesh.sequence.rank()], (what, place)

    for module in (collectives, dit_usp.attention.ring):
        patch.setattr(module, "post", watch.post)
    patch.setattr(collectives, "_all_gather", watch.all_gather)
    patch.setattr(dit_usp.sharding, "attend", attend)
    patch.setattr(StreamState, "learn", learn)
    patch.setattr(StreamState, "agree", agree)
    parallelize(model, mesh)
    handles = capture(case, model, dry)
    for block in (block for place in BLOCKS for block in modules_at(model, place)):
        handles.append(block.register_forward_pre_hook(lambda *_: setattr(watch, "local", ranks > 1)))
        handles.append(block.register_forward_hook(lambda *_: setattr(watch, "local", False)))
    with watch, torch.no_grad():
        dry.shape = tuple(model(**inputs, return_dict=False)[0].shape)
    for handle in handles:
        handle.remove()
    unparallelize(model)
    return dry


def capture(case: Real, model: nn.Module, dry: Dry) -> list[Any]:
    """Keep this rank's part of the table, as the plan has cut it; the model goes on with its shape."""

    def keep(value: Any) -> Any:
        dry.table[:] = tree_leaves(value)
        return onto_meta(value)

    if case.table.startswith(":"):
        name = case.table[1:]
        return [model.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {name: keep(kwargs[name])}), with_kwargs=True)]
    return [model.get_submodule(case.table).register_forward_hook(lambda _, args, output: keep(output))] if case.table else []


def table_on_cpu(case: Real, model: nn.Module) -> None:
    """The module that makes the table makes it with values."""
    if case.table and not case.table.startswith(":"):
        module = model.get_submodule(case.table)
        forward, made = module.forward, []

        def with_values(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, Tensor) and not leaf.is_meta for leaf in args):  # this rank's positions: FLUX
                return forward(*args, **kwargs)
            if not made:
                args, kwargs = tree_map(values, (args, kwargs))
                made.append(forward(*args, **kwargs))
            return made[0]

        module.forward = with_values
    if case.masked:
        model.get_submodule(case.masked).register_forward_pre_hook(lambda _, args: onto_meta(args))


@pytest.fixture
def kernels_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local attention: shapes."""

    def run(name: str, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)

    monkeypatch.setattr(dit_usp.attention, "run", run)
    monkeypatch.setattr(dit_usp.attention.choice, "chosen", lambda *call: "math")


@pytest.mark.filterwarnings("ignore:.*autocast")  # Mochi asks for fp32, which it has
@pytest.mark.usefixtures("kernels_on_meta")
@pytest.mark.parametrize("name", REAL)
def test_real_sizes_on_one_to_eight_ranks(name, monkeypatch):
    case = REAL[name]
    model, inputs = case.build(), case.inputs()
    table_on_cpu(case, model)
    whole = dry_run(case, model, inputs, mesh_of(0, 1, 1), monkeypatch)
    attentions = case.depth * len(case.case.layers)
    for ulysses, ring in LAYOUTS:
        ranks = ulysses * ring
        wanted = expected_lengths(case, ranks)
        for rank in range(ranks) if ranks <= 4 else (0, ranks - 1):
            mesh = mesh_of(rank, ulysses, ring)
            run = dry_run(case, model, inputs, mesh, monkeypatch)
            assert run.shape == whole.shape
            assert run.lengths == wanted * attentions
            assert [query[1] for query in run.queries] == [lengths[rank] for lengths in run.lengths]
            assert run.sent == [bytes_sent(query, lengths, mesh) for query, lengths in zip(run.queries, run.lengths, strict=True)]
            check_table(case, run.table, whole.table, rank, ranks)


def bytes_sent(query: torch.Size, lengths: tuple[int, ...], mesh: Mesh) -> int:
    """Of one rank in one attention: in the sum over ranks 4 M (U-1)/U + 2 M (R-1)."""
    batch, own, heads, size = query
    place, ulysses = mesh.ulysses.rank(), mesh.ulysses.size()
    own_heads = pieces(heads, ulysses)[place]
    ring = [sum(lengths[start : start + ulysses]) for start in range(0, len(lengths), ulysses)]
    here, following = ring[mesh.ring.rank()], ring[(mesh.ring.rank() + 1) % len(ring)]
    traded = 3 * own * (heads - own_heads) + (here - own) * own_heads
    passed = 2 * (sum(ring) - following) * own_heads  # every block but the one that the next rank began with
    return 2 * batch * size * (traded + passed)


def check_table(case: Real, own: list[Tensor], whole: list[Tensor], rank: int, ranks: int) -> None:
    """A rank's part of the rotary table is that part of what diffusers makes."""
    lengths = {"image": case.image, "text": case.text}
    for tensor, table, streams in zip(own, whole, case.table_streams, strict=case.table != ""):
        sizes = [pieces(lengths[stream], ranks) for stream in streams]
        of_streams = table.split([lengths[stream] for stream in streams], case.table_dim)
        parts = [part.split(size, case.table_dim)[rank] for part, size in zip(of_streams, sizes, strict=True)]
        assert torch.equal(tensor, torch.cat(parts, case.table_dim))


def error_of(name: str) -> float:
    model, inputs = LARGE[name]()
    expected = forward(model, inputs)
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    out = forward(model, inputs)
    assert [o.shape for o in out] == [e.shape for e in expected]
    return max(error(o, e) for o, e in zip(out, expected, strict=True))


@pytest.mark.parametrize("name", LARGE)
def test_positions_beyond_the_training_size_are_those_of_one_process(ranks, name):
    assert max(ranks(2, error_of, name)) <= 1e-5


def refusals(name: str) -> list[str]:
    """What one process says, and this rank."""
    model, inputs = TOO_LARGE[name]()
    said = []
    for shared in (False, True):
        if shared:
            parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
        with pytest.raises((ValueError, RuntimeError)) as refusal:
            forward(model, inputs)
        said.append(f"{refusal.type.__name__}: {refusal.value}")
    return said


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_size_that_diffusers_refuses_is_refused_in_its_words_on_every_rank(ranks, name):
    (alone, first), (_, second) = ranks(2, refusals, name)
    assert alone == first == second

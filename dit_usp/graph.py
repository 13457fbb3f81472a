"""A transformer's whole call as a CUDA graph: for steps that the CPU launches more slowly than the GPU computes them.

A call is recorded once for each signature of its arguments (shapes, types, plain values) and replayed from then on, collectives included.
What cannot be replayed safely runs as before, on every rank alike, and the reason is logged.
"""

from __future__ import annotations

import logging
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from dit_usp import collectives
from dit_usp.calls import PLAIN, kind_of_call, odd_argument, slot_of
from dit_usp.mesh import Mesh

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)

When = Literal["auto"] | bool
MOST = 4  # recordings kept for a model: each holds the memory of one forward
LAUNCH_BOUND = 0.9  # of the GPU's time: with a CPU that is done only then, the GPU has waited for it
TOLERANCE = 1e-2  # relative, of a replay against the same call run plainly: bf16 rounds to 4e-3, a stale input is far off
REMEMBERED = 64  # kinds of call
_TORCHS = frozenset(vars(nn.Module()))  # the attributes of every module

Replay = Callable[[], None]
Record = Callable[[Callable[[], Any]], tuple[Replay, Any]]
Watch = Callable[[Callable[[], Any]], tuple[Any, str, float]]


def graph(transformer: M, mesh: Mesh | None = None, *, when: When = "auto") -> M:
    """Replay this transformer's calls as CUDA graphs, in place. Put on last: after `parallelize` and `compile_blocks`.

    The first two calls of a signature run plainly (kernels are chosen, lengths learnt), the third is recorded, the fourth run both ways and
    compared, later ones are replayed. Replays see the weights where they were and every setting as it was: after layers, processors, adapters or
    the config have changed, call `refresh`. A module that is compiled as a whole already stays as it is.

    Args:
        mesh: the ranks that share the calls; None: this process alone.
        when: "auto": only calls whose launches keep the GPU waiting; True: all that can be.
    """
    ungraph(transformer)
    slot = slot_of(transformer)
    if slot._compiled_call_impl is not None:
        logger.info("CUDA graph of %s: not recorded: it is compiled as a whole", type(transformer).__name__)
        return transformer
    sharing = [mesh.sequence, mesh.cfg] if mesh else []
    if slot is not transformer:  # each half of the ranks has calls of its own
        sharing = sharing[:1]
    groups = [group for group in sharing if group.size() > 1]
    slot._compiled_call_impl = CallGraph(transformer, groups, when)  # what nn.Module calls in place of itself, hooks and all
    return transformer


def ungraph(transformer: nn.Module) -> None:
    """Undo `graph`, and free what was recorded."""
    if graphed := graph_of(transformer):
        graphed.clear()
        slot_of(transformer)._compiled_call_impl = None


def graph_of(transformer: nn.Module) -> CallGraph | None:
    """What `graph` has put on a transformer."""
    call = slot_of(transformer)._compiled_call_impl
    return call if isinstance(call, CallGraph) else None


@dataclass
class _Entry:
    """What is known of the calls of one signature.

    Attributes:
        calls: how many there have been.
        refused: why they are not replayed, if they are not.
        inputs: the tensors that a replay reads.
        trusted: a replay has been compared with a plain call.
    """

    calls: int = 0
    refused: str = ""
    inputs: list[Tensor] | None = None
    replay: Replay | None = None
    output: Any = None
    trusted: bool = False


class CallGraph:
    """The calls of one module, recorded and replayed. Every rank of `groups` makes the same calls.

    Attributes:
        before: called once with the arguments of the next call, outside of what is recorded.
        told: why calls were not replayed, each reason once.
    """

    def __init__(
        self, module: nn.Module, groups: Sequence[ProcessGroup], when: When, record: Record | None = None, watch: Watch | None = None
    ) -> None:
        self.module, self.groups, self.when = module, groups, when
        self.before: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None
        self._record, self._watch = record or _Recorder(), watch or _watch
        self.told: list[str] = []
        self._entries: dict[Any, _Entry] = {}  # the most recently replayed last
        self._state: Any = None
        self._barred = ""
        self._begun, self._paused = True, ""
        # NCCL does not take its communicators down while a recording uses them: a process would hang in its exit.
        weakref.finalize(self, self._entries.clear)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.module._call_impl(*args, **kwargs)
        if self._begun:
            self._begun = False
            self.refresh()
        before, self.before = self.before, None
        if before:
            before(args, kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        if reason := self._unfit(leaves):
            self._tell(reason)
            return self.module._call_impl(*args, **kwargs)
        entry = self._entry(kind_of_call(leaves, spec))
        plain = lambda: self.module._call_impl(*args, **kwargs)  # noqa: E731
        if entry.refused or entry.calls == 1:
            return plain()
        if entry.calls == 2:
            return self._watched(plain, entry)
        if entry.replay is None:
            self._prepare(leaves, spec, entry)
            return plain()
        return self._replayed(leaves, entry) if entry.trusted else self._compared(plain, leaves, entry)

    def begin(self, paused: str = "") -> None:
        """A pipeline's call starts: its first forward looks whether the module has changed.

        Args:
            paused: why nothing of this call may be replayed.
        """
        self._begun, self._paused = True, paused

    def clear(self) -> None:
        """Free every recording. Needed before `dist.destroy_process_group`, which hangs while there are any; done when the process ends."""
        self._entries.clear()

    def refresh(self) -> None:
        """Forget what was recorded if layers, processors, adapters, their settings or the places of weights have changed on any rank.

        Takes some milliseconds. Every rank calls it.
        """
        state, self._barred = _state(self.module), _stateful(self.module)
        if self._any(state != self._state):
            self._entries.clear()
        self._state = state

    def report(self) -> list[str]:
        """For each kind of call so far, whether it is replayed, or why not."""
        known = [entry.refused or ("replayed" if entry.trusted else "not yet recorded") for entry in self._entries.values()]
        return known or self.told

    def _entry(self, key: Any) -> _Entry:
        entry = self._entries.pop(key, None) or _Entry()
        self._entries[key] = entry
        entry.calls += 1
        if len(self._entries) > REMEMBERED:
            del self._entries[next(iter(self._entries))]
        return entry

    def _unfit(self, leaves: Sequence[Any]) -> str:
        if self._paused or self._barred:
            return self._paused or self._barred
        if torch.is_grad_enabled():
            return "gradients are recorded; call it under torch.no_grad()"
        if torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled():
            return "autocast keeps copies of the weights that end with it"
        device = next(self.module.parameters()).device
        if any(isinstance(leaf, Tensor) and leaf.device != device for leaf in leaves):
            return f"an input is not on {device}"
        if odd := odd_argument(leaves):
            return f"it is called with a {odd}"
        return ""

    def _watched(self, plain: Callable[[], Any], entry: _Entry) -> Any:
        """A plain call, with an eye on what forbids or does not need a recording."""
        output, waits, launch_share = self._watch(plain)
        if waits:
            entry.refused = f"the CPU waits for the GPU in it: {waits}"
        elif self.when == "auto" and launch_share < LAUNCH_BOUND:
            entry.refused = f"the GPU is busy: all was launched in {launch_share:.0%} of its time"
        # One rank that waits for its launches holds up the others; one that cannot record stops all.
        if self._any(bool(waits)):
            entry.refused = entry.refused or "another rank cannot be recorded"
        elif self._any(not entry.refused):
            entry.refused = ""
        self._say(entry)
        return output

    def _prepare(self, leaves: Sequence[Any], spec: TreeSpec, entry: _Entry) -> None:
        """Record the call on inputs of its own."""
        inputs = [leaf.clone(memory_format=torch.contiguous_format) for leaf in leaves if isinstance(leaf, Tensor)]
        stills = iter(inputs)
        args, kwargs = tree_unflatten([next(stills) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
        self._make_room()
        try:
            entry.replay, entry.output = self._record(lambda: self.module._call_impl(*args, **kwargs))
            entry.inputs = inputs
        except Exception as error:  # whatever a model or a library does that no graph holds
            entry.refused = f"it cannot be recorded: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if self._any(bool(entry.refused)):
            self._refuse(entry, entry.refused or "another rank cannot record it")

    def _compared(self, plain: Callable[[], Any], leaves: Sequence[Any], entry: _Entry) -> Any:
        """A plain call, and the recording on the same inputs: values that it ought to have read from them show up here."""
        replayed, output = self._replayed(leaves, entry), plain()
        error = max((_error(*pair) for pair in zip(_tensors(replayed), _tensors(output), strict=True)), default=0.0)
        if self._any(not error <= TOLERANCE):
            self._refuse(entry, f"a replay differs from the plain call by {error:.1e} here")
        entry.trusted = not entry.refused
        self._say(entry)
        return output

    def _replayed(self, leaves: Sequence[Any], entry: _Entry) -> Any:
        assert entry.inputs is not None
        assert entry.replay
        fresh = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if fresh:
            torch._foreach_copy_(entry.inputs, fresh)
        entry.replay()
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, entry.output)

    def _refuse(self, entry: _Entry, reason: str) -> None:
        entry.refused, entry.replay, entry.inputs, entry.output = reason, None, None, None
        self._say(entry)

    def _make_room(self) -> None:
        """Let go of the recording that was replayed least recently; it is not made again, or five kinds of call in turn would record for ever."""
        recorded = [entry for entry in self._entries.values() if entry.replay]
        if len(recorded) >= MOST:
            self._refuse(recorded[0], f"{MOST} other kinds of call came after it")

    def _any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        for group in self.groups:
            device = next(self.module.parameters()).device
            here = bool(collectives.total(torch.tensor([float(here)], device=device), group).item())
        return here

    def _say(self, entry: _Entry) -> None:
        if entry.refused:
            self._tell(entry.refused)
        else:
            logger.info("CUDA graph of %s: %s", type(self.module).__name__, "replayed" if entry.trusted else "to be recorded")

    def _tell(self, reason: str) -> None:
        if reason not in self.told:
            self.told.append(reason)
            logger.info("CUDA graph of %s: not replayed: %s", type(self.module).__name__, reason)


class _Recorder:
    """CUDA's recordings, in one pool of memory: no two are replayed at the same time, and outputs are copied at once."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, call: Callable[[], Any]) -> tuple[Replay, Any]:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording, pool=self.pool, capture_error_mode="thread_local"):  # NCCL's own thread may ask the driver meanwhile
            output = call()
        return recording.replay, output


def _watch(plain: Callable[[], Any]) -> tuple[Any, str, float]:
    """The call's output; where in it the CPU waits for the GPU, if it does; and by which share of the GPU's time all was launched."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            began = time.perf_counter()
            start.record()
            output = plain()
            end.record()
            launched = time.perf_counter() - began
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.synchronize()
    waits = [f"{warning.filename}:{warning.lineno}" for warning in told if "synchronizing" in str(warning.message)]
    return output, (waits or [""])[0], 1000 * launched / max(start.elapsed_time(end), 1e-3)


def _state(module: nn.Module) -> Any:
    """All that a forward reads beside its arguments: layers and processors with their plain settings, where weights and tables lie, the config."""
    layers = list(module.modules())
    parts = [*layers, *(processor for layer in layers if (processor := getattr(layer, "processor", None)) is not None)]
    places = tuple(tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()))
    settings = tuple(_frozen({name: value for name, value in getattr(part, "__dict__", {}).items() if name not in _TORCHS}) for part in parts)
    return parts, settings, places, _frozen(dict(getattr(module, "config", {})))  # the parts themselves: an id may be given to another


def _stateful(module: nn.Module) -> str:
    """Why no call of the module may be replayed, if so: hooks that decide anew at every step, or that move or exchange weights."""
    for layer in module.modules():
        hooks = getattr(getattr(layer, "_diffusers_hook", None), "hooks", None)
        if hooks or hasattr(layer, "_hf_hook"):
            return f"it has hooks of its own ({', '.join(hooks) if hooks else 'offloading'})"
    return ""


def _frozen(value: Any) -> Any:
    """The plain values in a setting."""
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return tuple(map(_frozen, value))
    return value if isinstance(value, PLAIN) else type(value).__name__


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def _error(got: Tensor, wanted: Tensor) -> float:
    return ((got.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30)).item()

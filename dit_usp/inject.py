"""parallelize and unparallelize: put a plan on a transformer from outside, and take it off again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dit_usp import collectives, halo
from dit_usp.errors import UnsupportedError
from dit_usp.graph import ungraph
from dit_usp.guidance import DealtCalls
from dit_usp.linear import LINEAR, LinearProcessor
from dit_usp.mesh import Mesh
from dit_usp.models import REFUSED, find_plan
from dit_usp.places import argument_names, by_name, change, modules_at, require
from dit_usp.plan import Batch, Count, Exchange, Gather, Late, LogBase, Neighbour, Place, Reduce, Replicate, ShardPlan, Split, Word
from dit_usp.rebind import twin
from dit_usp.remembered import Remembered, numbers_of
from dit_usp.sharding import Sharding
from dit_usp.translate import translated

M = TypeVar("M", bound=nn.Module)
_MARK = "_dit_usp_injection"


def parallelize(transformer: M, mesh: Mesh, *, plan: ShardPlan | None = None) -> M:
    """Shard a diffusers transformer's forward over the mesh, in place: full inputs on every rank give the full output on every rank.

    Args:
        transformer: a model with a shard plan, or a wrapper of several such as FluxMultiControlNetModel; its weights are whole on every rank.
        mesh: from `init_mesh`. cfg_degree=2 halves the batch at the transformer's boundary, or each half of the ranks computes every other call, as
            the model gets guidance; such calls give tensors that wait for their numbers until these are read (`dit_usp.guidance`).
        plan: how to shard it; None: what dit_usp.models knows of its class.

    Returns:
        The same transformer.

    Raises:
        UnsupportedError: no plan, too few heads, a processor whose attention cannot be reached, an installed diffusers that the plan does not fit.
    """
    if hasattr(transformer, _MARK):
        raise ValueError(f"this {type(transformer).__name__} is parallelized already; call unparallelize first.")
    if getattr(transformer, "_parallel_config", None) is not None:
        raise UnsupportedError(f"this {type(transformer).__name__} runs diffusers' own enable_parallelism; load it without.")
    if plan is None and (nets := nets_of(transformer)):
        _parallelize_all(nets, mesh)
        return transformer
    injection = Injection(transformer, plan or plan_of(transformer), mesh)
    try:
        injection.install()
    except Exception:
        injection.remove()
        raise
    setattr(transformer, _MARK, injection)
    return transformer


def unparallelize(transformer: M) -> M:
    """Undo `parallelize`: the transformer is what it was, bit for bit.

    Raises:
        ValueError: it is not parallelized.
    """
    nets = [] if hasattr(transformer, _MARK) else nets_of(transformer)
    for net in nets or [transformer]:
        if not hasattr(net, _MARK):
            raise ValueError(f"this {type(net).__name__} is not parallelized.")
        ungraph(net)  # what it has recorded has our exchanges in it
        getattr(net, _MARK).remove()
        delattr(net, _MARK)
    return transformer


def mesh_of(transformer: nn.Module) -> Mesh | None:
    """The ranks that share a transformer's forward; None: it is not parallelized."""
    injection = getattr(transformer, _MARK, None)
    return injection.mesh if injection else None


def dealt_calls(transformer: nn.Module) -> DealtCalls | None:
    """What shares a transformer's calls between two halves of the ranks, if anything does; outermost again where it was compiled in place since."""
    injection = getattr(transformer, _MARK, None)
    if injection is None or injection.dealt is None:
        return None
    injection.dealt.put_on()
    return injection.dealt


def nets_of(model: nn.Module) -> list[nn.Module]:
    """What a wrapper without a plan of its own holds as its `nets`, each once; nothing for any other model."""
    if any(find_plan(cls.__name__) for cls in type(model).__mro__):
        return []
    nets = getattr(model, "nets", None)
    return list(dict.fromkeys(nets)) if isinstance(nets, nn.ModuleList) else []


def _parallelize_all(models: list[nn.Module], mesh: Mesh) -> None:
    """All of them or, if one is refused, none."""
    for index, model in enumerate(models):
        try:
            parallelize(model, mesh)
        except Exception:
            for done in models[:index]:
                unparallelize(done)
            raise


def plan_of(transformer: nn.Module) -> ShardPlan:
    """The plan of a transformer's class, or of the nearest class it is derived from, or what its `_cp_plan` amounts to.

    Raises:
        UnsupportedError: there is none.
    """
    for cls in type(transformer).__mro__:
        if plan := find_plan(cls.__name__):
            return plan
        if reason := REFUSED.get(cls.__name__):
            raise UnsupportedError(f"{cls.__name__} cannot be shared over ranks: {reason}. Give the ranks to data_degree instead.")
    if plan := translated(transformer):
        return plan
    raise UnsupportedError(f"{type(transformer).__name__} has no shard plan; CONTRIBUTING shows how to add one in ten lines ('add a model').")


class Injection:
    """The hooks and the processors that one parallelized transformer carries."""

    def __init__(self, transformer: nn.Module, plan: ShardPlan, mesh: Mesh) -> None:
        self.transformer, self.plan, self.mesh = transformer, plan, mesh
        self.sharding = Sharding(plan, mesh)
        self.unit_kinds = dict(plan.units)
        self.names = argument_names(transformer)
        self.streams = self.sharding.streams
        self.undo: list[Callable[[], Any]] = []
        self.twins: dict[tuple[int, type], type] = {}
        self.attentions: list[tuple[Exchange | Reduce, nn.Module]] = []
        self.whole: set[nn.Module] = set()  # run whole on every rank because this config says so
        self.processors: list[Any] = []  # ours, one for each of the attentions
        self.made: dict[int, list[tuple[Any, Any]]] = {}  # by attention module: processors that were met, and ours in their place
        self.gathered: set[int] = set()  # the Gather words that acted in the forward under way
        self.cuts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # of tensors that every block is handed: cut once a forward
        self.ragged: Remembered[tuple[Any, ...]] = Remembered()
        self.counts = self._counts()
        self.rows: int | None = None  # batch of the forward under way, where its first argument is a tensor that has one
        self.batch: int | None = None  # the same before it was halved; None: it was not
        self.has_halved = False  # in any forward yet
        self.dealt: DealtCalls | None = None  # where the halves of the ranks take turns at whole calls
        self.samples: list[torch.Size] = []  # the sizes of its samples, where they come as a list

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError(f"a parallelized {self.plan.model} cannot be copied: its hooks belong to the ranks. Copy it before parallelize.")

    def install(self) -> None:
        """Put everything on. What a config forbids is refused before the first hook."""
        if self.mesh.cfg.size() > 1:
            self._check_guidance()
        if self.mesh.sequence.size() > 1:
            self._check_heads()
            for word in self.plan.words:
                self._attach(word)
        if self.mesh.cfg.size() > 1 or self.mesh.sequence.size() > 1:
            before = lambda _, args, kwargs: ((), self._enter(by_name(self.names, args, kwargs)))  # noqa: E731
            self._hook(self.transformer.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            self._hook(self.transformer.register_forward_hook(lambda _, args, output: self._leave(output)))
        if self.mesh.cfg.size() > 1 and self.plan.guidance == "calls":
            self.dealt = DealtCalls(self.transformer, self.mesh.cfg, self._without_cfg())
            self.dealt.put_on()
            self.undo.append(self.dealt.take_off)

    def _counts(self) -> dict[str, int]:
        """The defaults of the forward's numbers of tokens: a stream that nobody counts is measured all the same."""
        parameters = inspect.signature(self.transformer.forward).parameters
        names = [str(place.argument) for word in self.plan.of(Count) for place in word.places if not place.module]
        return {name: parameters[name].default for name in names if name in parameters}

    def remove(self) -> None:
        """Take everything off, last first."""
        while self.undo:
            self.undo.pop()()

    # -- before and after the transformer's forward

    def _enter(self, arguments: dict[str, Any]) -> dict[str, Any]:
        arguments = self._halve(arguments)
        if self.mesh.sequence.size() > 1:
            for name, reason in self.plan.refused.items():
                if arguments.get(name) is not None and not self.whole:
                    raise UnsupportedError(f"{self.plan.model} with {name} cannot be shared over ranks: {reason}.")
            latents = arguments.get(self.names[0])
            self.rows = len(latents) if isinstance(latents, Tensor) and latents.ndim > 1 else None
            self.gathered.clear()
            self.cuts.clear()
            self.sharding.begin()
            uses = tuple((name, value) for name, value in arguments.items() if isinstance(value, (str, bool, int)))
            self.streams.begin(self._units(arguments), self._signature(arguments), arguments.get(self.plan.cache), uses)
            self._rebind_new_processors()
            arguments = self.counts | arguments
            for word in self.plan.words:
                if isinstance(word, (Split, Count)):
                    for place in word.places:
                        if not place.module and place.argument in arguments:
                            arguments[place.argument] = self._localise(arguments[place.argument], word, place)
        return arguments

    def _signature(self, arguments: dict[str, Any]) -> tuple[Any, ...]:
        """The shapes of a forward's tensor arguments, in order, and the values of the one that decides lengths."""
        tensors = [(name, value) for name, value in arguments.items() if isinstance(value, Tensor)]
        return tuple((name, numbers_of(value, self.ragged) if name == self.plan.ragged else (), tuple(value.shape)) for name, value in tensors)

    def _leave(self, output: Any) -> Any:
        if self.mesh.sequence.size() > 1:
            for word in self.plan.of(Gather):
                if word.place.argument:
                    continue
                met = any(stream in self.streams.lengths for stream in word.streams)  # a model may be called without its sound
                if met and id(word) not in self.gathered:  # a -1 in an unpatchify would hide the missing piece
                    raise RuntimeError(f"{self.plan.model} returned without gathering {word.place}: its shard plan does not fit this call.")
            if self.rows is not None:
                change(output, (), self._check_rows)
        if self.batch is None:
            return output
        if self.samples:
            return change(output, (), self._whole_list, kind=list)
        sizes = collectives.split_sizes(self.batch, self.mesh.cfg.size())
        return change(output, (), lambda tensor: collectives.gather(tensor, 0, sizes, self.mesh.cfg))

    def _check_rows(self, tensor: Tensor) -> Tensor:
        """The output has the batch of the input: a -1 in an unpatchify would make more or fewer of a piece."""
        self.streams.agree("samples", "its output", tensor.shape[0], (self.rows or 0,) * self.mesh.sequence.size())
        return tensor

    def _whole_list(self, half: list[Tensor]) -> list[Tensor]:
        """Both halves of an output that is a list of samples, each of the size of its input."""
        sizes = [sum(map(math.prod, shapes)) for shapes in _dealt(self.samples, self.mesh.cfg.size())]
        flat = collectives.gather(torch.cat([sample.flatten() for sample in half]), 0, sizes, self.mesh.cfg)
        pieces = flat.split([math.prod(shape) for shape in self.samples])
        return [piece.view(shape) for piece, shape in zip(pieces, self.samples, strict=True)]

    def _units(self, arguments: dict[str, Any]) -> dict[str, int]:
        """Tokens in a row or a frame of the latents (..., height, width), by stream."""
        if not self.unit_kinds:
            return {}
        patch = self.transformer.config.patch_size  # type: ignore[union-attr]
        patch = (patch, patch) if isinstance(patch, int) else tuple(patch)  # type: ignore[arg-type]
        height, width = (size // p for size, p in zip(arguments["hidden_states"].shape[-2:], patch[-2:], strict=True))
        return {stream: width if unit == "row" else height * width for stream, unit in self.unit_kinds.items()}

    def _halve(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Keep this rank's half of the guidance batch in every tensor that has that batch dimension."""
        self.batch = None
        if self.mesh.cfg.size() == 1 or self.plan.guidance != "batch" or any(map(arguments.get, self.plan.unguided)):
            return arguments
        latents = arguments[self.names[0]]  # of every transformer: a tensor, or a list of samples (Z-Image)
        batch = len(latents)
        if batch < 2 and self.has_halved:  # guidance was cut off under way, as diffusers' callbacks do: both halves of the ranks compute it whole
            return arguments
        if batch < 2:
            raise UnsupportedError(
                f"cfg_degree=2 halves the guidance batch, but {self.plan.model} was called with a batch of {batch}: guidance is off. "
                "Switch guidance on (guidance_scale > 1), or give those ranks to ulysses_degree or ring_degree."
            )
        self.batch, self.has_halved = batch, True
        words = {place.argument: word for word in self.plan.of(Batch) for place in word.places}
        for name, word in words.items():
            if word.dim is None and arguments.get(str(name)):
                raise UnsupportedError(f"{self.plan.model}: {name} cannot be halved for cfg_degree=2. Try cfg_degree=1.")
        dims = {name: word.dim for name, word in words.items()}
        dims |= {place.argument: -1 for word in self.plan.of(Split) if word.dim == 0 for place in word.places if not place.module}
        # a sample may itself be a list, of images to look at and last the one to paint (Z-Image)
        self.samples = [(x[-1] if isinstance(x, list) else x).shape for x in latents] if isinstance(latents, list) else []
        listed = {name for name in arguments if self.samples or (name in words and words[name].listed)}
        return {name: self._half(value, dims.get(name, 0), batch, name in listed) for name, value in arguments.items()}

    def _half(self, value: Any, dim: int | None, batch: int, listed: bool) -> Any:
        """This rank's half of a value whose batch lies in `dim` (-1: nowhere), or is the length of a list."""
        if listed and isinstance(value, list) and len(value) == batch:
            return _dealt(value, self.mesh.cfg.size())[self.mesh.cfg.rank()]

        def half(tensor: Tensor) -> Tensor:
            assert dim is not None
            return collectives.split(tensor, dim, self.mesh.cfg) if tensor.ndim > dim and tensor.shape[dim] == batch else tensor

        return value if dim is None or dim < 0 else change(value, (), half)

    def _check_guidance(self) -> None:
        if not self.plan.guidance:
            raise UnsupportedError(
                f"cfg_degree=2 needs guidance as two halves of one batch or two calls a step, which {self.plan.model} "
                f"does not get from its pipelines. Try {self._without_cfg()}."
            )

    def _without_cfg(self) -> str:
        return f"cfg_degree=1 with ulysses_degree={2 * self.mesh.config.ulysses_degree}"

    # -- the plan's words

    def _attach(self, word: Word) -> None:
        if isinstance(word, Exchange):
            self._attach_exchange(word)
        elif isinstance(word, Replicate):
            self._attach_replicate(word)
        elif isinstance(word, Neighbour):
            self._attach_neighbour(word)
        elif isinstance(word, Reduce):
            self._attach_reduce(word)
        elif isinstance(word, Gather):
            for module in require(self.transformer, word.place.module, word.place.argument):
                if word.place.argument:
                    self._hook(module.register_forward_hook(partial(self._collect_written, word, argument_names(module)), with_kwargs=True))
                else:
                    self._on_output(module, word.place.path, partial(self._collect, word=word))
        else:
            self._attach_places(word)

    def _attach_places(self, word: Split | Count | LogBase | Late | Batch) -> None:
        for place in word.places:
            for module in self._modules(word, place):
                if isinstance(word, Split) and place.argument is None:
                    self._on_output(module, place.path, partial(self._cut, word=word, place=place))
                elif isinstance(word, Late):
                    self._on_arguments(module, partial(self._take_mask, str(place.argument)))
                    self._hook(module.register_forward_hook(lambda *_: setattr(self.sharding, "late", None)))
                elif place.module and isinstance(word, (Split, Count, LogBase)):
                    self._on_arguments(module, partial(self._localise_one, word, place))

    def _modules(self, word: Word, place: Place) -> list[nn.Module]:
        if isinstance(word, Count) and word.optional:
            return [module for module in modules_at(self.transformer, place.module) if place.argument in argument_names(module)]
        return require(self.transformer, place.module, place.argument)

    def _attach_exchange(self, word: Exchange) -> None:
        for path in word.modules:
            found = modules_at(self.transformer, path) if word.optional else require(self.transformer, path)
            for module in (module for module in found if module not in self.whole):
                self._attach_processor(word, module)
                if word.calls:
                    self._hook(module.register_forward_pre_hook(self._first_turn))

    def _attach_replicate(self, word: Replicate) -> None:
        def whole(path: str, arguments: dict[str, Any]) -> dict[str, Any]:
            collect = partial(self.streams.collect, dim=word.dim, streams=word.streams, place=path)
            return {name: change(value, (), collect) if name in word.arguments else value for name, value in arguments.items()}

        config: Any = self.transformer.config
        if word.when and config.get(word.when[0]) != word.when[1]:
            return
        for path in word.modules:
            for module in require(self.transformer, path):
                self.whole |= {module} if word.when else set()
                self._on_arguments(module, partial(whole, path))
                self._on_output(module, (), partial(self.streams.cut, dim=word.dim, streams=word.streams, place=path))

    def _attach_neighbour(self, word: Neighbour) -> None:
        group = self.mesh.sequence

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            smallest = min(size // self.streams.units["image"] for size in self.streams.pieces("image"))
            return (halo.widen(args[0], word.dim, word.n, group, smallest),)

        for path in word.modules:
            for module in require(self.transformer, path):
                self._hook(module.register_forward_pre_hook(before))
                self._on_output(module, (), lambda tensor: halo.narrow(tensor, word.dim, word.n, group))

    def _attach_reduce(self, word: Reduce) -> None:
        for path in word.modules:
            for module in require(self.transformer, path):
                self._attach_processor(word, module)

    def _attach_processor(self, word: Exchange | Reduce, module: nn.Module) -> None:
        self.attentions.append((word, module))
        self.processors.append(self._rebound(word, module))

    # -- what the hooks do

    def _cut(self, tensor: Tensor, word: Split, place: Place) -> Tensor:
        if word.ndim not in (None, tensor.ndim) or tensor.ndim <= word.dim:
            return tensor
        if "*" not in place.module or torch.compiler.is_compiling():
            return self._cut_anew(tensor, word, place)
        key = (id(word), id(tensor))
        if key not in self.cuts:
            self.cuts[key] = (tensor, self._cut_anew(tensor, word, place))
        return self.cuts[key][1]

    def _cut_anew(self, tensor: Tensor, word: Split, place: Place) -> Tensor:
        if word.anew:
            self.streams.forget(word.streams)
        if not word.per_sample:
            return self.streams.cut(tensor, word.dim, word.streams, place)
        length = sum(self.streams.lengths[stream] for stream in word.streams)
        samples = tensor.unflatten(word.dim, (-1, length))
        return self.streams.cut(samples, word.dim + 1, word.streams, place).flatten(word.dim, word.dim + 1)

    def _collect(self, tensor: Tensor, word: Gather) -> Tensor:
        self.gathered.add(id(word))
        return self.streams.collect(tensor, word.dim, word.streams, word.place)

    def _collect_written(self, word: Gather, names: list[str], module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Collect what a module has left in an attribute of an object that it was handed."""
        holder, name = by_name(names, args, kwargs).get(str(word.place.argument)), str(word.place.path[0])
        if (tensor := getattr(holder, name, None)) is not None:
            setattr(holder, name, self.streams.collect(tensor, word.dim, word.streams, word.place))

    def _localise(self, value: Any, word: Split | Count | LogBase, place: Place) -> Any:
        """This rank's part of what lies at `place`: its piece of every tensor, or its share of a number of tokens."""
        if isinstance(word, Count):
            count = partial(self.streams.count, word.stream, in_units=word.in_units)
            return change(value, place.path, count, kind=int)
        if isinstance(word, LogBase):
            return change(value, place.path, partial(self.streams.log_base, word.stream), kind=int | float)
        return change(value, place.path, partial(self._cut, word=word, place=place))

    def _localise_one(self, word: Split | Count | LogBase, place: Place, arguments: dict[str, Any]) -> dict[str, Any]:
        if place.argument in arguments:
            arguments[place.argument] = self._localise(arguments[place.argument], word, place)
        return arguments

    def _take_mask(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.sharding.late = arguments.get(name)
        return arguments | {name: None}

    def _on_output(self, module: nn.Module, path: Sequence[int | str], function: Callable[[Tensor], Tensor]) -> None:
        self._hook(module.register_forward_hook(lambda _, args, output: change(output, path, function)))

    def _on_arguments(self, module: nn.Module, function: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        names = argument_names(module)
        self._hook(module.register_forward_pre_hook(lambda _, args, kwargs: ((), function(by_name(names, args, kwargs))), with_kwargs=True))

    def _hook(self, handle: Any) -> None:
        self.undo.append(handle.remove)

    def _first_turn(self, module: nn.Module, args: Any) -> None:
        self.sharding.turn = 0

    # -- attention

    def _check_heads(self) -> None:
        for word in self.plan.of(Exchange):
            for path in word.modules:
                for module in modules_at(self.transformer, path):
                    for name in ("heads", "num_heads", "n_heads"):  # an attention that has none of these is checked at its first call
                        if isinstance(heads := getattr(module, name, None), int):
                            self.mesh.config.check_heads(heads, self.plan.model)

    def _rebound(self, word: Exchange | Reduce, module: nn.Module) -> Any:
        """Give an attention module our processor in place of its own, and return it. Undone unless the user has set another one since.

        Pipelines with perturbed attention set theirs at every call, and put back what they found: ours.
        """
        original: Any = module.processor
        made = self.made.setdefault(id(module), [])
        for known, ours in made:
            if original is known or original is ours:
                module.processor = ours
                return ours
        processor = self._summed(original) if isinstance(word, Reduce) else self._twin(word, original)
        module.processor = processor
        made.append((original, processor))
        self.undo.append(lambda: setattr(module, "processor", original) if module.processor is processor else None)
        return processor

    def _summed(self, original: Any) -> Any:
        """A linear attention over all ranks."""
        if type(original).__name__ not in LINEAR:
            raise UnsupportedError(f"{type(original).__name__} of {self.plan.model} cannot be summed over ranks. Set one of {', '.join(LINEAR)}.")
        return LinearProcessor(self.mesh.sequence, LINEAR[type(original).__name__])

    def _twin(self, word: Exchange, original: Any) -> Any:
        """A processor of a twin class, which shares the original's state."""
        processor: Any = object.__new__(self._twin_class(word, type(original)))
        processor.__dict__ = original.__dict__
        return processor

    def _twin_class(self, word: Exchange, cls: type) -> type:
        """One class for all layers alike: torch.compile then compiles the first and reuses it."""
        if (id(word), cls) not in self.twins:
            calls = next((word.calls[base.__name__] for base in cls.__mro__ if base.__name__ in word.calls), (word.call,))
            call = twin(cls.__call__, self.sharding.attention(calls))
            if call is None:
                raise UnsupportedError(
                    f"{cls.__name__} of {self.plan.model} attends by its own means, which cannot be shared over ranks. "
                    "Set a processor that calls scaled_dot_product_attention or dispatch_attention_fn."
                )
            marks = {"_parallel_config": True} if calls[0].marked else {}
            body = {"__call__": call, "__module__": cls.__module__, "__doc__": cls.__doc__, **marks}
            self.twins[id(word), cls] = type(cls.__name__, (cls,), body)
        return self.twins[id(word), cls]

    def _rebind_new_processors(self) -> None:
        """A processor set after parallelize (an IP-Adapter loaded late, fused projections) is rebound before it can attend to one piece only."""
        for i, (word, module) in enumerate(self.attentions):
            if module.processor is not self.processors[i]:
                self.processors[i] = self._rebound(word, module)


def _dealt(items: list[Any], parts: int) -> list[list[Any]]:
    """`items` in runs, as torch.tensor_split would cut them."""
    ends = list(accumulate(collectives.split_sizes(len(items), parts)))
    return [items[start:end] for start, end in pairwise([0, *ends])]

"""parallelize and unparallelize: put a plan on a transformer from outside, and take it off again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from dit_usp import collectives
from dit_usp.errors import UnsupportedError
from dit_usp.mesh import Mesh
from dit_usp.models import find_plan
from dit_usp.places import argument_names, by_name, change, modules_at, require
from dit_usp.plan import Exchange, Gather, Place, ShardPlan, Split
from dit_usp.rebind import twin
from dit_usp.sharding import Sharding

M = TypeVar("M", bound=nn.Module)
_MARK = "_dit_usp_injection"


def parallelize(transformer: M, mesh: Mesh) -> M:
    """Shard a diffusers transformer's forward over the mesh, in place: full inputs on every rank give the full output on every rank.

    Args:
        transformer: a model with a shard plan; its weights are whole on every rank.
        mesh: from `init_mesh`. cfg_degree=2 halves the batch at the transformer's boundary.

    Returns:
        The same transformer.

    Raises:
        UnsupportedError: no plan, too few heads, a processor whose attention cannot be reached, an installed diffusers that the plan does not fit.
    """
    if hasattr(transformer, _MARK):
        raise ValueError(f"this {type(transformer).__name__} is parallelized already; call unparallelize first.")
    if getattr(transformer, "_parallel_config", None) is not None:
        raise UnsupportedError(f"this {type(transformer).__name__} runs diffusers' own enable_parallelism; load it without.")
    injection = Injection(transformer, plan_of(transformer), mesh)
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
    if not hasattr(transformer, _MARK):
        raise ValueError(f"this {type(transformer).__name__} is not parallelized.")
    getattr(transformer, _MARK).remove()
    delattr(transformer, _MARK)
    return transformer


def plan_of(transformer: nn.Module) -> ShardPlan:
    """The plan of a transformer's class or of the nearest class it is derived from.

    Raises:
        UnsupportedError: there is none.
    """
    for cls in type(transformer).__mro__:
        if plan := find_plan(cls.__name__):
            return plan
    raise UnsupportedError(f"{type(transformer).__name__} has no shard plan; CONTRIBUTING shows how to add one in ten lines ('add a model').")


class Injection:
    """The hooks and the processors that one parallelized transformer carries."""

    def __init__(self, transformer: nn.Module, plan: ShardPlan, mesh: Mesh) -> None:
        self.transformer = transformer
        self.plan, self.mesh = plan, mesh
        self.sharding = Sharding(plan, mesh)
        self.undo: list[Callable[[], Any]] = []
        self.twins: dict[tuple[int, type], type] = {}
        self.attentions: list[tuple[Exchange, nn.Module]] = []
        self.processors: list[Any] = []  # ours, one for each of the attentions
        self.batch: int | None = None  # of the forward under way, before it was halved

    def install(self) -> None:
        """Put everything on. What a config forbids is refused before the first hook."""
        names = argument_names(self.transformer)
        if self.mesh.cfg.size() > 1:
            self._check_guidance()
        if self.mesh.sequence.size() > 1:
            self._check_heads()
            self._attach()
        if self.mesh.cfg.size() > 1 or self.mesh.sequence.size() > 1:
            self._hook(
                self.transformer.register_forward_pre_hook(
                    lambda _, args, kwargs: ((), self._enter(by_name(names, args, kwargs))), with_kwargs=True, prepend=True
                )
            )
            self._hook(self.transformer.register_forward_hook(lambda _, args, output: self._leave(output)))

    def remove(self) -> None:
        """Take everything off, last first."""
        while self.undo:
            self.undo.pop()()

    # -- before and after the transformer's forward

    def _enter(self, arguments: dict[str, Any]) -> dict[str, Any]:
        arguments = self._halve(arguments)
        self.sharding.begin()
        if self.mesh.sequence.size() > 1:
            self._rebind_new_processors()
            for word in self.plan.of(Split):
                for place in word.places:
                    if not place.module and place.argument in arguments:
                        arguments[place.argument] = self._cut(arguments[place.argument], word, place)
        return arguments

    def _leave(self, output: Any) -> Any:
        if self.mesh.sequence.size() > 1:
            self.sharding.end()
        if self.batch is None:
            return output
        sizes = collectives.split_sizes(self.batch, self.mesh.cfg.size())
        return change(output, (), lambda tensor: collectives.gather(tensor, 0, sizes, self.mesh.cfg))

    def _halve(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Keep this rank's half of the guidance batch in every tensor that has that batch dimension."""
        self.batch = None
        if self.mesh.cfg.size() == 1 or arguments.get(self.plan.unguided) is not None:
            return arguments
        batch = arguments["hidden_states"].shape[0]
        if batch < 2:
            raise UnsupportedError(
                f"cfg_degree=2 halves the guidance batch, but {self.plan.model} was called with a batch of {batch}: guidance is off. "
                "Switch guidance on (guidance_scale > 1), or give those ranks to ulysses_degree or ring_degree."
            )
        self.batch = batch
        by_token = {place.argument for word in self.plan.of(Split) if word.dim == 0 for place in word.places if not place.module}

        def half(tensor: Tensor) -> Tensor:
            return collectives.split(tensor, 0, self.mesh.cfg) if tensor.ndim and tensor.shape[0] == batch else tensor

        return {name: value if name in by_token else change(value, (), half) for name, value in arguments.items()}

    def _check_guidance(self) -> None:
        if self.plan.guidance != "batch":
            raise UnsupportedError(
                f"cfg_degree=2 needs guidance as two halves of one batch, which {self.plan.model} does not get from its pipelines. "
                f"Try cfg_degree=1 with ulysses_degree={2 * self.mesh.config.ulysses_degree}."
            )

    # -- the plan's words

    def _attach(self) -> None:
        for word in self.plan.words:
            if isinstance(word, Split):
                self._attach_split(word)
            elif isinstance(word, Gather):
                self._attach_gather(word)
            else:
                self._attach_exchange(word)

    def _attach_split(self, word: Split) -> None:
        for place in word.places:
            for module in require(self.transformer, place.module, place.argument):
                if place.argument is None:
                    self._on_output(module, place, partial(self.sharding.cut, word=word, place=place))
                elif place.module:
                    self._on_argument(module, place.argument, word, place)

    def _attach_gather(self, word: Gather) -> None:
        for module in require(self.transformer, word.place.module):
            self._on_output(module, word.place, partial(self.sharding.collect, word=word))

    def _attach_exchange(self, word: Exchange) -> None:
        for path in word.modules:
            for module in modules_at(self.transformer, path) if word.optional else require(self.transformer, path):
                self.attentions.append((word, module))
                self.processors.append(self._rebound(word, module))
                if word.calls:
                    self._hook(module.register_forward_pre_hook(self._first_turn))

    def _on_output(self, module: nn.Module, place: Place, function: Callable[[Tensor], Tensor]) -> None:
        self._hook(module.register_forward_hook(lambda _, args, output: change(output, place.path, function)))

    def _on_argument(self, module: nn.Module, name: str, word: Split, place: Place) -> None:
        names = argument_names(module)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
            arguments = by_name(names, args, kwargs)
            if name in arguments:
                arguments[name] = self._cut(arguments[name], word, place)
            return (), arguments

        self._hook(module.register_forward_pre_hook(before, with_kwargs=True))

    def _cut(self, value: Any, word: Split, place: Place) -> Any:
        return change(value, place.path, lambda tensor: self.sharding.cut(tensor, word, place))

    def _hook(self, handle: Any) -> None:
        self.undo.append(handle.remove)

    def _first_turn(self, module: nn.Module, args: Any) -> None:
        self.sharding.turn = 0

    # -- attention

    def _check_heads(self) -> None:
        heads = [module.heads for word in self.plan.of(Exchange) for path in word.modules for module in modules_at(self.transformer, path)]
        self.mesh.config.check_heads(min(heads), self.plan.model)  # type: ignore[type-var, arg-type]

    def _rebound(self, word: Exchange, module: nn.Module) -> Any:
        """Give an attention module a processor of a twin class, which shares the original's state, and return it."""
        original = module.processor
        processor: Any = object.__new__(self._twin_class(word, type(original)))
        processor.__dict__ = original.__dict__
        module.processor = processor
        self.undo.append(lambda: setattr(module, "processor", original) if module.processor is processor else None)
        return processor

    def _twin_class(self, word: Exchange, cls: type) -> type:
        """One class for all layers alike: torch.compile then compiles the first and reuses it."""
        if (id(word), cls) not in self.twins:
            call = twin(cls.__call__, self.sharding.attention(word.calls.get(cls.__name__, (word.call,))))
            if call is None:
                raise UnsupportedError(
                    f"{cls.__name__} of {self.plan.model} attends by its own means, which cannot be shared over ranks. "
                    "Set a processor that calls scaled_dot_product_attention or dispatch_attention_fn."
                )
            self.twins[id(word), cls] = type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__, "__doc__": cls.__doc__})
        return self.twins[id(word), cls]

    def _rebind_new_processors(self) -> None:
        """A processor set after parallelize (an IP-Adapter loaded late, fused projections) is rebound before it can attend to one piece only."""
        for i, (word, module) in enumerate(self.attentions):
            if module.processor is not self.processors[i]:
                self.processors[i] = self._rebound(word, module)

"""Guidance by two calls of the transformer a step: each half of the ranks computes every other one.

What a call gives is `Awaited`: tensors whose numbers may still lie with the other half. They can be cut, reshaped and copied. The first operation
that needs their numbers, the same one on all ranks since all run the same pipeline, exchanges what was computed since the last time. So a pipeline
gets the right numbers whatever it does between its calls, and if only one of them is made (guidance ends under way), the other half is sent it.

A rank has to know what a call will give before it can leave it out: the first call of a kind is computed by both halves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from dit_usp import collectives
from dit_usp.calls import kind_of_call, kinds_of, odd_argument
from dit_usp.errors import UnsupportedError

REMEMBERED = 64  # kinds of call; one that was forgotten is computed by both halves again
_aten = torch.ops.aten
_COPIES = (_aten.clone.default, _aten._to_copy.default)
_SAME_NUMBERS = (_aten._unsafe_view.default,)  # a view, though its schema does not say so


class Round:
    """The calls since the last exchange: the first is this half's or the other's by turns, and so are their results.

    Attributes:
        is_over: every rank has the numbers of all results.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group, self.is_over = group, False
        self._results: list[list[Tensor]] = []
        self._copies: list[Callable[[], Any]] = []

    def __len__(self) -> int:
        return len(self._results)

    @property
    def is_mine(self) -> bool:
        """Whether the next call is this half's to compute."""
        return len(self) % self.group.size() == self.group.rank()

    def add(self, tensors: list[Tensor]) -> None:
        """What the next call gives: the numbers, or contiguous tensors to be filled with them."""
        self._results.append(tensors)

    def copy_later(self, target: Tensor, source: Tensor) -> None:
        """`target` is a copy of one of the results, or of a part of it."""
        self._copies.append(partial(target.copy_, source))

    def finish(self) -> None:
        """Fill all results, their views and their copies, on every rank. One collective, at the first time."""
        if self.is_over:
            return
        halves = [[_bytes(tensor) for result in self._results[half :: self.group.size()] for tensor in result] for half in range(self.group.size())]
        sizes = [sum(part.numel() for part in parts) for parts in halves]
        own = halves[self.group.rank()]
        sent = torch.cat(own) if own else _bytes(self._results[0][0])[:0]
        for half, arrived in enumerate(collectives.gather(sent, 0, sizes, self.group).split(sizes)):
            if half != self.group.rank():
                for part, numbers in zip(halves[half], arrived.split([part.numel() for part in halves[half]]), strict=True):
                    part.copy_(numbers)
        for copy in self._copies:
            copy()
        self.is_over = True


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


class Awaited(Tensor):
    """A result of a round, or a part of one. It has no memory of its own that could be read by mistake before the round is over."""

    held: Tensor
    result_of: Round

    @staticmethod
    def __new__(cls, held: Tensor, result_of: Round) -> Awaited:
        made: Any = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=held.device
        )
        made.held, made.result_of = held, result_of
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            return func.decompose(*args, **kwargs)  # under inference_mode: a reshape then says whether it is a view or a copy
        first = args[0] if args else None
        if isinstance(first, Awaited) and not first.result_of.is_over:
            if func.is_view or func in _SAME_NUMBERS:
                return tree_map_only(Tensor, lambda part: Awaited(part, first.result_of), func(first.held, *args[1:], **kwargs))
            if func in _COPIES and kwargs.get("device") in (None, first.device):
                copy = func(first.held, *args[1:], **kwargs)
                first.result_of.copy_later(copy, first.held)
                return Awaited(copy, first.result_of)
        outer = {id(one.held): one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Awaited)}
        args, kwargs = numbers((args, kwargs))
        return tree_map_only(Tensor, lambda one: outer.get(id(one), one), func(*args, **kwargs))  # what is written in place stays itself


def numbers(tree: Any) -> Any:
    """`tree` with the awaited tensors in it arrived."""

    def arrived(one: Awaited) -> Tensor:
        one.result_of.finish()
        return one.held

    return tree_map_only(Awaited, arrived, tree)


class Turns:
    """Whose turn it is. One for all transformers of a pipeline: Ideogram's has one for each call.

    Attributes:
        advice: what to do instead of cfg_degree=2, for a call without guidance.
    """

    def __init__(self, group: ProcessGroup, advice: str) -> None:
        self.group, self.advice = group, advice
        self.round: Round | None = None
        self.has_paired = False

    def begin(self) -> None:
        """A pipeline's call starts."""
        self.round, self.has_paired = None, False

    def next_round(self, model: str) -> Round:
        """The round that the next call belongs to.

        Raises:
            UnsupportedError: the very first call was alone in its round: half of the ranks would have nothing to do.
        """
        if self.round and len(self.round) > 1:
            self.has_paired = True
        if self.round is None or self.round.is_over:
            if self.round and not self.has_paired:
                raise UnsupportedError(
                    f"cfg_degree=2 shares the two calls of guidance, but the result of {model}'s first one was used before a second: "
                    f"guidance is off. Switch it on, or try {self.advice}."
                )
            self.round = Round(self.group)
        return self.round


@dataclass(frozen=True)
class _Output:
    """What calls of one kind give: plain values, and for each tensor its shape, type and device."""

    leaves: tuple[Any, ...]
    spec: TreeSpec
    kinds: tuple[Any, ...]

    @classmethod
    def of(cls, output: Any) -> _Output | None:
        """None: it has what cannot be told before it is computed."""
        leaves, spec = tree_flatten(output)
        if any(not isinstance(leaf, (Tensor, bool, type(None))) for leaf in leaves):
            return None
        empty = tuple(partial(torch.empty, x.shape, dtype=x.dtype, device=x.device) if isinstance(x, Tensor) else x for x in leaves)
        return cls(empty, spec, kinds_of(leaves))

    def check(self, output: Any, model: str) -> None:
        """Refuse an output that the other half of the ranks does not expect."""
        leaves, spec = tree_flatten(output)
        if kinds_of(leaves) != self.kinds or spec != self.spec:
            raise UnsupportedError(
                f"cfg_degree=2: a call of {model} gave {kinds_of(leaves)}, where calls of its kind gave {self.kinds} before. Try cfg_degree=1."
            )

    def empty(self) -> Any:
        """The same with tensors to be filled."""
        return tree_unflatten([leaf() if isinstance(leaf, partial) else leaf for leaf in self.leaves], self.spec)


class DealtCalls:
    """Stands before a transformer, outside of its hooks and recordings, and computes or leaves out its calls.

    Attributes:
        turns: shared with the pipeline's other transformers.
        before: called once with the arguments of the next call, whoever computes it.
    """

    def __init__(self, module: nn.Module, group: ProcessGroup, advice: str) -> None:
        self.module, self.turns = module, Turns(group, advice)
        self._compiled_call_impl: Any = None  # as nn.Module has it: what is called in place of the module's own; None: that
        self.before: Callable[[tuple[Any, ...], dict[str, Any]], Any] | None = None
        self._outputs: dict[Any, _Output | None] = {}
        self._checked = False

    def put_on(self) -> None:
        """Catch the module's calls, those of its compiled form too."""
        if self.module._compiled_call_impl is not self:
            self._compiled_call_impl, self.module._compiled_call_impl = self.module._compiled_call_impl, self

    def take_off(self) -> None:
        """Undo `put_on`."""
        if self.module._compiled_call_impl is self:
            self.module._compiled_call_impl = self._compiled_call_impl

    def begin(self) -> None:
        """A pipeline's call starts."""
        self.turns.begin()
        self._checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compute = self._compiled_call_impl or self.module._call_impl
        if torch.compiler.is_compiling():
            return compute(*args, **kwargs)
        args, kwargs = numbers((args, kwargs))
        before, self.before = self.before, None
        if before:
            before(args, kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        if torch.is_grad_enabled() or odd_argument(leaves):  # such as a cache, which both halves have to fill
            return compute(*args, **kwargs)
        self._check()
        kind = next(self.module.parameters()).dtype, kind_of_call(leaves, spec)
        return self._dealt(partial(compute, *args, **kwargs), kind)

    def _dealt(self, compute: Callable[[], Any], kind: Any) -> Any:
        if kind not in self._outputs:
            output = compute()
            self._learn(kind, output)
            return output if self._outputs[kind] is None else self._awaited(output)
        known = self._outputs[kind]
        if known is None:
            return compute()
        name = type(self.module).__name__
        if not self.turns.next_round(name).is_mine:
            return self._awaited(known.empty())
        output = compute()
        known.check(output, name)
        return self._awaited(output)

    def _awaited(self, output: Any) -> Any:
        round, tensors = self.turns.next_round(type(self.module).__name__), list[Tensor]()

        def awaited(tensor: Tensor) -> Awaited:
            tensors.append(tensor.contiguous())  # so that what is a view on one half is a view on the other
            return Awaited(tensors[-1], round)

        output = tree_map_only(Tensor, awaited, output)
        round.add(tensors)
        return output

    def _learn(self, kind: Any, output: Any) -> None:
        self._outputs[kind] = _Output.of(output)
        if len(self._outputs) > REMEMBERED:
            del self._outputs[next(iter(self._outputs))]

    def _check(self) -> None:
        """Once a pipeline's call, and whenever a cache is on."""
        if self._checked and not getattr(self.module, "is_cache_enabled", False):
            return
        if other := _patched(self.module):
            raise UnsupportedError(
                f"cfg_degree=2 gives the two calls of guidance to different ranks, but {other} stands in for the forward of "
                f"{type(self.module).__name__} and may keep what one call computed for the next. Take it off, or try {self.turns.advice}."
            )
        for layer in self.module.modules():
            hooks = getattr(getattr(layer, "_diffusers_hook", None), "hooks", {})
            if kept := next((name for name, hook in hooks.items() if hook._is_stateful), None):
                raise UnsupportedError(
                    f"cfg_degree=2 gives the two calls of guidance to different ranks, but {kept} keeps what one call computed for the next. "
                    f"Disable it, or try {self.turns.advice}."
                )
        self._checked = True


def _patched(module: nn.Module) -> str:
    """The function that someone has put in place of a module's forward, or of its class's, as caches of steps do; "" for its own.

    Not accelerate's and diffusers' wrappers, whose hooks are known.
    """
    own = vars(module).get("forward")
    if own is not None and not (hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")):
        return getattr(own, "__qualname__", str(own))
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    forward = inspect.unwrap(vars(owner)["forward"])
    home = getattr(forward, "__module__", "")
    return "" if home == owner.__module__ or home.startswith("diffusers.") else f"{home}.{forward.__qualname__}"

"""The same noise on every rank, whatever a pipeline is given as generator, and for each replica its own rows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from dit_usp.mesh import Mesh
from dit_usp.pipelines.agreement import from_first

_DRAWS = (torch.randn, torch.rand)
_DRAWS_LIKE = (torch.randn_like, torch.rand_like)


def share_noise(arguments: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The call's arguments with the first rank's `generator` and `latents`; torch's default generators are set to the first rank's too.

    A scheduler that is given no generator draws from the default ones, and so does a pipeline without `generator`: as on one process,
    torch.manual_seed before the call fixes the picture. The first rank's own objects are used, and move on as on one process.
    """
    generator, latents = arguments.get("generator"), arguments.get("latents")
    sent = {"default": _default_states(mesh), "generator": _states(generator), "latents": latents}
    sent = from_first(sent, mesh)
    if mesh.is_first:
        return arguments
    torch.set_rng_state(sent["default"][0].cpu())
    if mesh.device.type == "cuda":
        torch.cuda.set_rng_state(sent["default"][1].cpu(), mesh.device)
    shared = {"generator": _generators(sent["generator"], mesh), "latents": sent["latents"]}
    return {name: value for name, value in {**arguments, **shared}.items() if name not in shared or value is not None}


def _default_states(mesh: Mesh) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(mesh.device)] if mesh.device.type == "cuda" else [])


def _states(generator: Any) -> Any:
    """Kind of device and state of a generator, or of each in a list."""
    if isinstance(generator, (list, tuple)):
        return [_states(one) for one in generator]
    return generator if generator is None else (generator.device.type, generator.get_state())


def _generators(states: Any, mesh: Mesh) -> Any:
    if isinstance(states, list):
        return [_generators(one, mesh) for one in states]
    if states is None:
        return None
    kind, state = states
    generator = Generator("cpu" if kind == "cpu" else mesh.device)
    generator.set_state(state.cpu())
    return generator


class RowsOfBatch(TorchFunctionMode):
    """Within it, noise for this replica's images is drawn for the whole batch and cut: each image gets what one process would draw for it.

    n images of one generator come from one stream, so a replica's part of it begins where the others' ends, at every draw of a scheduler too.
    Images with a generator each need none of this.

    Args:
        rows: this replica's images.
        total: images in all.
        own: generators of one image each.
    """

    def __init__(self, rows: range, total: int, own: Sequence[Generator]) -> None:
        super().__init__()
        self.rows, self.total, self.own = rows, total, {id(generator) for generator in own}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS_LIKE:
            like = kwargs.pop("input", args[0] if args else None)
            return self._draw(_DRAWS[_DRAWS_LIKE.index(func)], like.shape, {"dtype": like.dtype, "device": like.device, **kwargs})
        if func in _DRAWS and id(kwargs.get("generator")) not in self.own:
            size = kwargs.pop("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            return self._draw(func, size, kwargs)
        return func(*args, **kwargs)

    def _draw(self, draw: Any, size: Sequence[int], options: dict[str, Any]) -> Tensor:
        copies, rest = divmod(size[0], len(self.rows)) if len(size) > 1 else (0, 0)
        if rest or copies not in (1, 2):  # not noise for the images; 2: both halves of a guidance batch, which DiT's scheduler steps on
            return draw(size, **options)
        whole = draw((copies, self.total, *size[1:]), **options)
        return whole[:, self.rows.start : self.rows.stop].reshape(size).contiguous()

    @contextmanager
    def paused_in(self, models: Sequence[nn.Module]) -> Iterator[None]:
        """The models run outside: a mode would break their compiled graphs."""
        inside: list[bool] = []  # a hook before ours may refuse the call; the one after it is called all the same

        def leave(*_: Any) -> None:
            self.__exit__(None, None, None)
            inside.append(True)

        def enter_again(*_: Any) -> None:
            if inside:
                inside.pop()
                self.__enter__()

        with ExitStack() as hooks:
            for model in models:
                hooks.callback(model.register_forward_pre_hook(leave, prepend=True).remove)
                hooks.callback(model.register_forward_hook(enter_again, always_call=True).remove)
            yield


@contextmanager
def swapped(owner: Any, method: str, other: Callable[..., Any]) -> Iterator[None]:
    """Within it, `owner` (this object alone) has another method."""
    before = vars(owner).get(method)
    setattr(owner, method, other)
    try:
        yield
    finally:
        delattr(owner, method)
        if before is not None:
            setattr(owner, method, before)

"""Which ranks do what, from --nproc and the degrees."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, cast

from dit_usp import launch
from dit_usp.config import ParallelConfig, RingMethod, choose_layout
from dit_usp.pipelines.layout import check_layout, fewest_heads, has_halves, may_be_unguided, planned, without_cfg
from dit_usp.pipelines.table import NOT_DEALT

if TYPE_CHECKING:
    from dit_usp.cli.generate import Options
    from dit_usp.cli.model import Model

# More ranks than cores only wait for one another: fine for a try-out, but not by the hundred, each with a copy of the weights.
RANKS_PER_CORE, MIN_RANKS = 4, 8


def choose(
    options: Options, model: Model, device: str, unguided: tuple[str, str] | None, pictures: int, starts: bool
) -> tuple[ParallelConfig, list[str]]:
    """The layout and the reasons for it, one sentence each.

    Args:
        unguided: what switches guidance off in this call, and what would switch it on.
        starts: whether the results start from files, which are not dealt to replicas.

    Raises:
        ValueError: degrees that contradict --nproc, the launcher, the machine, the model or the call.
    """
    parts = [(name, model.transformer if part == model.part else {}) for part, name in planned(model.index).items()]
    heads, guided = fewest_heads(parts), has_halves(model.pipeline, parts) and not unguided and not may_be_unguided(model.index)
    dealt = 1 if starts or model.pipeline in NOT_DEALT else pictures
    try:
        config, reasons = _asked(options) or choose_layout(_default_ranks(options, device), heads=heads, guidance=guided, num_images=dealt)
        _check_ranks(options, config, device)
        check_layout(config, model.pipeline, parts)
    except ValueError as error:
        raise ValueError(as_options(str(error))) from error
    if config.cfg_degree > 1 and unguided:
        cause, remedy = unguided
        raise ValueError(f"--cfg 2 shares the two halves of guidance, which {cause} switches off; use {remedy}, or {_instead(config, heads)}.")
    if config.data_degree > 1 and starts:
        degree = config.data_degree
        raise ValueError(
            f"--data {degree} cannot deal out given pictures, clips or sounds; use --ulysses {degree} or --ring {degree}, or leave it out."
        )
    if config.data_degree > pictures:
        raise ValueError(
            f"--data {config.data_degree} has nothing to do with {_count(pictures)}; use --data {pictures} or --images {config.data_degree}."
        )
    return _with_method(config, options.ring_method), reasons


def _asked(options: Options) -> tuple[ParallelConfig, list[str]] | None:
    """The layout of explicit degrees; None where there are none."""
    degrees = {axis: getattr(options, axis) for axis in ("ulysses", "ring", "cfg", "data")}
    given = {axis: degree for axis, degree in degrees.items() if degree is not None}
    if not given:
        return None
    config = ParallelConfig(**{f"{axis}_degree": degree for axis, degree in given.items()})
    text = " ".join(f"--{axis} {degree}" for axis, degree in given.items())
    if options.nproc not in (None, config.world_size):
        raise ValueError(f"--nproc {options.nproc}, but {text} makes {config.world_size}; {_nearest(options.nproc, config, given)}.")
    return config, [f"{text}: as asked."]


def _nearest(nproc: int, config: ParallelConfig, given: dict[str, int]) -> str:
    """What would bring nproc and the degrees together."""
    rest, leftover = divmod(nproc, config.world_size)
    free = next((axis for axis in ("ring", "ulysses", "data") if axis not in given), None)
    if rest > 1 and not leftover and free:
        return f"add --{free} {rest}, or use --nproc {config.world_size}"
    return f"use --nproc {config.world_size}"


def _default_ranks(options: Options, device: str) -> int:
    if options.nproc is not None:
        return options.nproc
    if (here := launch.place()) is not None:
        return here.world_size
    return launch.num_gpus() if device == "cuda" else 1


def _check_ranks(options: Options, config: ParallelConfig, device: str) -> None:
    """As many as the launcher has started, or as this machine can."""
    ranks, here = config.world_size, launch.place()
    if here is not None:
        if ranks != here.world_size:
            raise ValueError(f"{config} makes {ranks} ranks, but the launcher has started {here.world_size}; leave out --nproc, or start {ranks}.")
    elif device == "cuda":
        launch.check_gpus(ranks)
    elif ranks > (most := max(MIN_RANKS, RANKS_PER_CORE * launch.num_cores())):
        raise ValueError(f"{ranks} ranks on {launch.num_cores()} cores would only wait for one another; use --nproc {most} or fewer.")


def _instead(config: ParallelConfig, heads: int | None) -> str:
    return as_options(without_cfg(config, heads))


def _with_method(config: ParallelConfig, method: str | None) -> ParallelConfig:
    if method is None:
        return config
    if config.ring_degree == 1:
        raise ValueError(f"--ring-method {method} says how a ring of ranks passes keys on, but there is no ring in {config}; add --ring 2.")
    return dataclasses.replace(config, ring_method=cast(RingMethod, method))


def _count(pictures: int) -> str:
    return f"{pictures} picture{'s' if pictures > 1 else ''}"


def as_options(text: str) -> str:
    """The library's words in the command's: "ulysses_degree=2" -> "--ulysses 2"."""
    return re.sub(r"\bring_method='(\w+)'", r"--ring-method \1", re.sub(r"\b(\w+)_degree=(-?\d+)", r"--\1 \2", text))

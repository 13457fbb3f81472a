"""Every pipeline class on two ranks: one call of two steps equals diffusers' own call of the same components in the same process."""

from __future__ import annotations

import inspect
import pickle
from contextlib import ExitStack
from pathlib import Path

import diffusers
import pytest
import torch
import torch.distributed as dist
from calls import tensors
from tiny_pipelines import MISSING_TINY, TINY, build, default_call

from dit_usp import ParallelConfig, pipelines
from dit_usp.inject import unparallelize
from dit_usp.pipelines.base import sharded_parts
from dit_usp.pipelines.table import NAMES

LAYOUTS = ((2, 1), (1, 2))


def test_every_pipeline_has_its_tiny_one():
    assert sorted(set(MISSING_TINY) & set(TINY)) == []
    assert sorted(set(NAMES) - set(MISSING_TINY) - set(TINY)) == []
    assert sorted((set(TINY) | set(MISSING_TINY)) - set(NAMES)) == []


@pytest.mark.parametrize("name", NAMES)
def test_classes_look_like_diffusers(name):
    cls, base = getattr(pipelines, f"USP{name}"), getattr(diffusers, name)
    assert issubclass(cls, (base, pipelines.USPPipelineMixin))
    assert inspect.signature(cls.__call__) == inspect.signature(base.__call__)
    assert cls.__call__.__doc__ == base.__call__.__doc__
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cls.__name__ in dir(pipelines)


def arguments(name):
    call = default_call(name)
    signature = inspect.signature(getattr(diffusers, name).__call__).parameters
    torch.manual_seed(9 + dist.get_rank())  # for pipelines without generator: the first rank's counts
    seeded = {"generator": torch.Generator().manual_seed(5)} if "generator" in signature else {}
    return ({"output_type": "np"} if "output_type" in signature else {}) | seeded | call


def called(pipe, name):
    """The result's tensors, and all that its sharded models gave."""
    given = []
    pipe.set_progress_bar_config(disable=True)
    with ExitStack() as stack:
        for part in sharded_parts(pipe):
            hook = part.register_forward_hook(lambda module, args, output: given.extend(tensors(output)))
            stack.callback(hook.remove)
        output = pipe(**arguments(name))
    return output, given


def compared(name, degrees, folder):
    """On the first rank: the largest errors of what the models gave, and of the result."""
    pipe = build(name, Path(folder, str(dist.get_rank())))
    wanted, given = called(pipe, name)
    shared = getattr(pipelines, f"USP{name}").from_pipe(pipe, parallel=ParallelConfig(*degrees))
    try:
        output, given_by_ranks = called(shared, name)
    finally:
        for part in sharded_parts(shared):
            unparallelize(part)
    assert type(output) is type(wanted)
    assert len(given) > 1
    if dist.get_rank():
        assert all(field is None for field in (output if isinstance(output, tuple) else vars(output).values()))
        return None
    return errors(given_by_ranks, given), errors(tensors(output), tensors(wanted))


def errors(outs, wanted):
    return max(error(out, one) for out, one in zip(outs, wanted, strict=True))


def error(out, wanted):
    """Largest difference relative to the largest value wanted."""
    assert out.shape == wanted.shape
    assert wanted.isfinite().all()
    assert wanted.std() > 0  # not one flat colour
    return ((out - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MISSING_TINY])
def test_two_ranks_make_what_one_makes(ranks, tmp_path, name):
    (given, result), _ = ranks(2, compared, name, LAYOUTS[NAMES.index(name) % 2], str(tmp_path))
    assert given <= 1e-5
    assert result <= 1e-4

"""torch.compile(fullgraph=True) of parallelized models on two ranks: no graph break at a cut, an exchange or a collection, and the same output."""

import shutil

import pytest
import torch
from test_parity import error, run
from tiny import build
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

from dit_usp.bench import alone
from dit_usp.collectives import gather
from dit_usp.compiled import compile_blocks
from dit_usp.config import ParallelConfig
from dit_usp.inject import parallelize
from dit_usp.mesh import init_mesh

BACKEND = "inductor" if shutil.which("g++") else "aot_eager"  # inductor needs a compiler for the CPU


def compiled_model(name, config, backend):
    torch._dynamo.reset()
    model, inputs = build(name)
    with torch.no_grad():  # inductor rounds in its own way: its sharded output is held against its plain one
        expected = torch.compile(model, backend=backend)(**inputs, return_dict=False)[0] if backend == "inductor" else run(model, inputs)
    torch._dynamo.reset()
    parallelize(model, init_mesh(config, "cpu"))
    with torch.no_grad():
        return error(torch.compile(model, fullgraph=True, backend=backend)(**inputs, return_dict=False)[0], expected)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *(("pixart", config) for config in (ParallelConfig(2), ParallelConfig(1, 2), ParallelConfig(cfg_degree=2))),
        *(("flux", config) for config in (ParallelConfig(2), ParallelConfig(1, 2), ParallelConfig(1, 2, ring_method="gather"))),
        ("sd35", ParallelConfig(2)),
        ("cogvideox", ParallelConfig(1, 2, ring_method="gather")),
    ],
    ids=str,
)
def test_whole_models_compile_without_a_graph_break(ranks, name, config):
    assert max(ranks(2, compiled_model, name, config, "aot_eager")) <= 1e-5


def test_a_whole_model_through_inductor(ranks):
    assert max(ranks(2, compiled_model, "pixart", ParallelConfig(1, 2), BACKEND)) <= 1e-5


def compiled_blocks(name, blocks, config):
    """Each block compiled on its own: the worst error, our compilations, and the plain model's."""
    frames, outputs = [], []
    for parallel in (False, True):
        torch._dynamo.reset()
        model, inputs = build(name)
        if parallel:
            parallelize(model, init_mesh(config, "cpu"))
        counter = CompileCounterWithBackend("aot_eager")
        for block in getattr(model, blocks):
            block.compile(fullgraph=True, backend=counter)
        outputs += [run(model, inputs) for _ in range(2)]
        frames.append(counter.frame_count)
    return max(error(out, outputs[0]) for out in outputs), frames


@pytest.mark.parametrize(("name", "blocks"), [("pixart", "transformer_blocks"), ("flux", "single_transformer_blocks")])
def test_all_layers_share_the_compilations_that_the_plain_model_needs(ranks, name, blocks):
    for worst, (plain, ours) in ranks(2, compiled_blocks, name, blocks, ParallelConfig(2)):
        assert worst <= 1e-5
        assert ours <= plain


def code_of_blocks():
    """What inductor makes of a FLUX block that has one stream, for one rank of two that gathers its keys."""
    torch.distributed.destroy_process_group()
    alone.start(2)
    torch._dynamo.reset()
    model, inputs = build("flux")
    parallelize(model, init_mesh(ParallelConfig(ring_degree=2, ring_method="gather"), "cpu"))
    compile_blocks(model)
    for block in model.transformer_blocks:  # two streams
        block._compiled_call_impl = None
    with torch.no_grad():
        return run_and_get_code(lambda: model(**inputs, return_dict=False))[1]


@pytest.mark.skipif(BACKEND != "inductor", reason="needs a C++ compiler")
def test_work_that_does_not_need_an_exchange_is_done_under_it(ranks):
    (codes,) = ranks(1, code_of_blocks)
    calls = [[line for line in code[code.index("def call") :].splitlines() if not line.strip().startswith("#")] for code in codes]
    single = next(lines for lines in calls if any("_c10d_functional.all_" in line for line in lines))
    begun, needed = (next(i for i, line in enumerate(single) if name in line) for name in ("_c10d_functional.all_", "wait_tensor"))
    assert any("addmm" in line for line in single[begun:needed]), "the MLP's projection"
    assert any("gelu" in line for line in single[begun:needed])


def gathered_mask():
    torch.distributed.destroy_process_group()
    alone.start(2)
    mask = torch.tensor([True, False, True])
    with torch.no_grad():
        return torch.compile(lambda x: gather(~x, 0, (3, 3), torch.distributed.group.WORLD), fullgraph=True, backend=BACKEND)(mask)


def test_a_mask_is_gathered_through_inductor(ranks):
    """As bytes made by arithmetic: torch 2.11's inductor has no view of a bool as bytes."""
    assert ranks(1, gathered_mask)[0].tolist() == [False, True, False] * 2

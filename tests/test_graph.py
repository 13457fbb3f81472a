"""Recording and replaying a module's calls. A recording is one of aten's operators here, on the same memory: as in CUDA's, no Python runs again.

`dit-usp bench --mode graph` compares CUDA's own with plain calls."""

from types import SimpleNamespace

import pytest
import torch
from tiny import build
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from dit_usp.config import ParallelConfig
from dit_usp.graph import MOST, REMEMBERED, CallGraph, graph, graph_of, ungraph
from dit_usp.inject import parallelize, unparallelize
from dit_usp.mesh import init_mesh


class Processor:
    def __init__(self):
        self.scale = [1.0]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.processor = Processor()
        self.config = {"causal": False}

    def forward(self, x, scale=1.0, extra=None):
        return (self.layer(x) * scale * self.processor.scale[0] + (0 if extra is None else extra["bias"]),)


def record(call):
    output = call()
    outputs = tree_leaves(output)
    operators = make_fx(lambda: tree_leaves(call()))()

    def replay():
        for old, new in zip(outputs, operators(), strict=True):
            old.copy_(new)

    return replay, output


def watch(waits="", share=1.0):
    return lambda plain: (plain(), waits, share)


LAUNCH_BOUND = watch()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def graphed(record=record, when="auto", watch=LAUNCH_BOUND, groups=()):
    model = Model().eval().requires_grad_(False)
    model._compiled_call_impl = CallGraph(model, groups, when, record, watch)
    return model


def expected(model, *args, **kwargs):
    return model.forward(*args, **kwargs)[0]


def test_replays_read_the_inputs_of_their_own_call():
    model = graphed()
    for seed in range(8):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
        bias = torch.full((1, 1), float(seed)).expand(2, 4)
        assert torch.equal(model(x, extra={"bias": bias})[0], expected(model, x, extra={"bias": bias}))
    assert graph_of(model).report() == ["replayed"]


def test_outputs_outlive_the_next_replay():
    model = graphed()
    outputs = [model(torch.full((1, 4), float(i)))[0] for i in range(8)]
    for i, out in enumerate(outputs):
        assert torch.equal(out, expected(model, torch.full((1, 4), float(i))))


def test_every_signature_has_its_own_recording_up_to_four():
    model = graphed()
    for _ in range(3):
        for size in range(1, MOST + 3):
            for _ in range(4):
                assert torch.equal(model(torch.ones(size, 4))[0], expected(model, torch.ones(size, 4)))
    report = graph_of(model).report()
    assert report.count("replayed") == MOST
    assert report.count("4 other kinds of call came after it") == 2
    for scale in (2.0, 3.0):
        assert torch.equal(model(torch.ones(1, 4), scale=scale)[0], expected(model, torch.ones(1, 4), scale=scale))


def test_calls_that_come_once_are_forgotten():
    model = graphed()
    for i in range(2 * REMEMBERED):
        model(torch.ones(1, 4), scale=float(i))
    assert len(graph_of(model).report()) == REMEMBERED


def test_a_value_baked_into_a_recording_is_noticed():
    def stale(call):
        output = call()
        return lambda: None, output

    model = graphed(record=stale)
    for i in range(6):
        x = torch.full((1, 4), float(i))
        assert torch.equal(model(x)[0], expected(model, x))
    assert "differs from the plain call" in graph_of(model).report()[0]


def failing(call):
    raise RuntimeError("no recording of this")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(record=failing), "cannot be recorded: RuntimeError: no recording of this"),
        (dict(watch=watch("model.py:7")), "waits for the GPU in it: model.py:7"),
        (dict(watch=watch(share=0.5)), "the GPU is busy"),
    ],
)
def test_what_is_not_recorded_runs_as_before_and_says_why(options, reason):
    model = graphed(**options)
    for i in range(6):
        x = torch.full((1, 4), float(i))
        assert torch.equal(model(x)[0], expected(model, x))
    assert reason in graph_of(model).report()[0]


def test_a_busy_gpu_is_recorded_when_asked_for():
    model = graphed(when=True, watch=watch(share=0.1))
    for _ in range(5):
        model(torch.ones(1, 4))
    assert graph_of(model).report() == ["replayed"]


def test_arguments_that_no_recording_can_hold():
    model = graphed()
    for _ in range(5):
        model(torch.ones(1, 4), extra=type("Cache", (), {"__getitem__": lambda self, key: torch.ones(1)})())
    assert graph_of(model).report() == ["it is called with a Cache"]


def settle(model):
    for _ in range(5):
        model(torch.ones(1, 4))
    assert graph_of(model).report() == ["replayed"]


def another_layer(model):
    model.layer = nn.Linear(4, 4).requires_grad_(False)


def another_adapter(model):
    model.layer._active_adapter = ["b"]  # peft's name for it


def another_scale(model):
    model.processor.scale = [0.1]  # an IP-adapter's


def another_processor(model):
    model.processor = Processor()


def another_config(model):
    model.config = {"causal": True}


@pytest.mark.parametrize("change", [another_layer, another_adapter, another_scale, another_processor, another_config])
def test_what_has_changed_between_pipeline_calls_is_recorded_anew(change):
    model = graphed()
    settle(model)
    graph_of(model).begin()
    settle(model)
    change(model)
    graph_of(model).begin()
    assert torch.equal(model(torch.ones(1, 4))[0], expected(model, torch.ones(1, 4)))
    assert graph_of(model).report() == ["not yet recorded"]


def test_a_weight_written_in_place_is_read_by_the_replay():
    model = graphed()
    settle(model)
    model.layer.weight.mul_(2)
    assert torch.equal(model(torch.ones(1, 4))[0], expected(model, torch.ones(1, 4)))
    assert graph_of(model).report() == ["replayed"]


@pytest.mark.parametrize(
    ("context", "reason"),
    [(torch.enable_grad, "gradients"), (lambda: torch.autocast("cuda"), "autocast keeps copies")],
)
def test_calls_under_gradients_or_autocast_are_plain(context, reason, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: context is not torch.enable_grad)  # there is no CUDA to switch it on for
    model = graphed()
    with torch.enable_grad() if context is torch.enable_grad else torch.no_grad():
        for _ in range(5):
            model(torch.ones(1, 4))
    assert reason in graph_of(model).report()[0]


def test_hooks_that_decide_at_every_step_forbid_it():
    model = graphed()
    model.layer._diffusers_hook = SimpleNamespace(hooks={"faster_cache": None})
    for _ in range(5):
        model(torch.ones(1, 4))
    assert graph_of(model).report() == ["it has hooks of its own (faster_cache)"]


def test_a_paused_call_is_plain_and_the_next_is_replayed():
    model = graphed()
    settle(model)
    graph_of(model).begin(paused="a callback")
    model.processor.scale = [3.0]
    assert torch.equal(model(torch.ones(1, 4))[0], expected(model, torch.ones(1, 4)))
    graph_of(model).begin()
    settle(model)


def test_a_compiled_whole_is_left_alone_and_a_replayed_one_compiles():
    model = Model()
    model.compile(backend="eager")
    mine = model._compiled_call_impl
    assert graph(model)._compiled_call_impl is mine
    again = torch.compile(graphed(), backend="eager", fullgraph=True)
    assert again(torch.ones(1, 4))[0].shape == (1, 4)


def test_before_sees_the_next_call_only():
    model, seen = graphed(), []
    for i in range(6):
        graph_of(model).before = (lambda args, kwargs: seen.append(kwargs)) if i in (0, 5) else None
        model(torch.ones(1, 4), scale=2.0)
    assert seen == [{"scale": 2.0}, {"scale": 2.0}]


def test_taken_off_again():
    model = Model()
    graph(model)
    ungraph(model)
    assert graph_of(model) is None
    assert model(torch.ones(1, 4))[0].shape == (1, 4)


@torch.no_grad()
def one_rank_fails(config):
    mesh = init_mesh(config, "cpu")
    model = graphed(record=failing if mesh.ulysses.rank() else record, groups=[mesh.sequence])
    for _ in range(5):
        model(torch.ones(1, 4))
    return graph_of(model).report()


def test_ranks_decide_together(ranks):
    """Else one rank would wait in a collective that another one's recording holds."""
    ours, theirs = ranks(2, one_rank_fails, ParallelConfig(2))
    assert "another rank cannot" in ours[0]
    assert "no recording of this" in theirs[0]


@torch.no_grad()
def other_strides(config):
    mesh = init_mesh(config, "cpu")
    model = graphed(groups=[mesh.sequence])
    for i in range(10):
        x = torch.ones(4, 4).mT if i > 4 and mesh.sequence.rank() else torch.ones(4, 4)
        model(x)
    if mesh.sequence.rank():
        another_scale(model)
    graph_of(model).begin()
    model(torch.ones(4, 4))
    return graph_of(model).report()


def test_ranks_with_other_strides_or_settings_keep_together(ranks):
    assert ranks(2, other_strides, ParallelConfig(2)) == [["not yet recorded"]] * 2


def let_go():
    """On a rank: whether a graph is on a shared model, and after it is shared no more."""
    model, _ = build("dit")
    mesh = init_mesh(ParallelConfig(), "cpu")
    graph(parallelize(model, mesh), mesh, when=True)
    return [graph_of(model) is not None, graph_of(unparallelize(model)) is not None]


def test_unparallelize_lets_go_of_what_was_recorded(ranks):
    assert ranks(1, let_go) == [[True, False]]

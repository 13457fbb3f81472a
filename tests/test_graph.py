"""Recording and replaying a module's calls. A recording is made of Python here; scripts/check_graph.py makes CUDA's."""

import pytest
import torch
from torch import nn

from dit_usp.config import ParallelConfig
from dit_usp.graph import MOST, CallGraph, graph, graph_of, ungraph
from dit_usp.mesh import init_mesh


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x, scale=1.0, extra=None):
        self.calls += 1
        return (self.layer(x) * scale + (0 if extra is None else extra["bias"]),)


def record(call):
    """As CUDA does: the work is done again on the same inputs, into the same output."""
    output = call()

    def replay():
        for old, new in zip(output, call(), strict=True):
            old.copy_(new)

    return replay, output


def watch(waits="", share=1.0):
    return lambda plain: (plain(), waits, share)


LAUNCH_BOUND = watch()


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


def test_every_signature_has_its_own_recording_and_the_oldest_go():
    model = graphed()
    for size in range(1, MOST + 3):
        for _ in range(5):
            assert model(torch.ones(size, 4))[0].shape == (size, 4)
    for scale in (2.0, 3.0):
        for _ in range(5):
            assert torch.equal(model(torch.ones(1, 4), scale=scale)[0], expected(model, torch.ones(1, 4), scale=scale))
    assert len(graph_of(model).report()) == MOST


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
    assert graph_of(model).report() == []


def test_exchanged_weights_make_a_new_recording():
    model = graphed()
    call = graph_of(model)
    call.refresh()
    for _ in range(5):
        model(torch.ones(1, 4))
    call.refresh()
    assert call.report() == ["replayed"]
    model.layer = nn.Linear(4, 4).requires_grad_(False)
    call.refresh()
    assert torch.equal(model(torch.ones(1, 4))[0], expected(model, torch.ones(1, 4)))
    assert call.report() == ["not yet recorded"]


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

"""scripts/check_plans.py on two gloo ranks: plans that are right, one that is wrong, a rank that fails alone; and the published widths."""

import contextlib
import importlib
import io
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import AttentionBackendName
from tiny import TINY
from tiny.wide import wide, wide_config

from dit_usp import models

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))


def checked(*argv):
    """On a rank: the exit status, and what is printed."""
    script, printed = importlib.import_module("check_plans"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        return script.main(["--device", "cpu", "--tiny", *argv]), printed.getvalue()


def test_right_plans_pass(ranks):
    results = ranks(2, checked, "--only", "FluxTransformer2DModel", "sana", "dit", "--skip", "dit")
    (status, printed), (other, nothing) = results
    assert (status, other, nothing) == (0, 0, "")
    assert "ulysses 2, ring 2, ring 2 gather, cfg 2 x 1" in printed
    assert [line.split()[:2] for line in printed.splitlines()[1:3]] == [["ok", "FluxTransformer2DModel"], ["ok", "SanaTransformer2DModel"]]
    assert "2 models in" in printed
    assert "0 failed" in printed


def test_no_model_begins_after_the_time_limit(ranks):
    status, printed = ranks(2, checked, "--only", "flux", "dit", "--time-limit", "0")[0]
    assert status == 0
    assert "NOT RUN, no time left: flux dit" in printed


def wrong(kind):
    """On a rank: the check of a model that differs when it is shared, or that fails on the second rank alone."""
    script = importlib.import_module("check_plans")
    forward, calls = script.forward, []

    def spoilt(model, inputs):
        calls.append(script.mesh_of(model))
        if kind == "fails" and calls[-1] is None and dist.get_rank() == 1:
            raise RuntimeError("out of luck")
        return [out * (1 + 1e-3 * (calls[-1] is not None)) for out in forward(model, inputs)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "forward", spoilt)
        return checked("--only", "dit", "--dtype", "fp32")


def test_a_difference_fails(ranks):
    for status, printed in ranks(2, wrong, "differs"):
        assert status == 1
        assert printed == "" or "FAILED DiTTransformer2DModel" in printed


def test_a_rank_that_fails_alone_fails_all_and_holds_up_none(ranks):
    (status, printed), (other, _) = ranks(2, wrong, "fails")
    assert (status, other) == (1, 1)
    assert "plain, rank 1: RuntimeError: out of luck" in printed


def test_every_class_can_be_built_at_its_published_width():
    """Heads that are those of no tiny model, and a head size that kernels are made for."""
    classes = {}
    for make in TINY.values():
        tiny = make()[0]
        classes.setdefault(type(tiny).__name__, tiny)
    assert set(classes) == {plan.model for plan in models.PLANS}
    for tiny in classes.values():
        with torch.device("meta"):
            model = type(tiny)(**wide_config(tiny))
        assert sum(p.numel() for p in model.parameters()) > 40e6, type(tiny).__name__


def test_a_wide_model_keeps_the_attention_backend_of_the_tiny_one(monkeypatch):
    monkeypatch.setattr(sys.modules["tiny.wide"], "redraw", lambda model: model)
    model, _ = wide("kandinsky5_nabla", torch.device("meta"))
    assert {block.self_attention.processor._attention_backend for block in model.visual_transformer_blocks} == {AttentionBackendName.FLEX}

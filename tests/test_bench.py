"""`dit-usp bench` on tiny models: shares, baselines, tables and files. Times themselves are not judged here."""

import json
from functools import partial

import pytest
import torch
from click.testing import CliRunner

from dit_usp.bench import alone, cases, step
from dit_usp.bench.plot import page
from dit_usp.cli.bench import command
from dit_usp.collectives import exchange, gather
from dit_usp.compiled import repeated_blocks
from dit_usp.config import ParallelConfig

TINY = cases.Case(
    "DiTTransformer2DModel",
    dict(num_attention_heads=4, attention_head_dim=8, sample_size=8, out_channels=8),
    partial(cases._dit, 64),
    {"num_layers": 3},
    guided=True,
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(cases.CASES, "tiny", TINY)


def share(arguments):
    """On a process of its own: the command's output."""
    cases.CASES["tiny"] = TINY
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return CliRunner().invoke(command, arguments, catch_exceptions=False).output


def test_one_rank_of_four_is_measured_alone(ranks, tmp_path):
    file, plot = str(tmp_path / "b.json"), str(tmp_path / "b.html")
    (output,) = ranks(1, share, ["tiny", "--share", "4", "--layers", "2", "--runs", "3", "--dtype", "float32", "--json", file, "--plot", plot])
    lines = output.splitlines()
    assert "one rank of 4, no communication" in lines[1]
    assert len(lines) == 2 + 1 + 5  # diffusers, and the five layouts of four ranks
    assert "ulysses 2 x ring 2" in lines[-1]
    kept = json.loads((tmp_path / "b.json").read_text())
    assert [len(result["ms"]) for result in kept["results"]] == [3] * 6
    assert all(result["error"] is None for result in kept["results"])  # a share's output is not the model's
    assert (tmp_path / "b.html").read_text().count("<rect") == 6


def test_one_rank_is_compared_with_diffusers(ranks):
    (output,) = ranks(1, share, ["tiny", "--layers", "1", "--runs", "1", "--dtype", "float32"])
    assert output.splitlines()[-1].count("error 0.0e+00") == 1


def copies():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    alone.start(3)
    group = torch.distributed.group.WORLD
    flat = torch.arange(6.0)
    results = exchange(flat, [2, 2, 2], [2, 2, 5], group), gather(flat[:2], 0, (2, 2, 2), group)
    torch.distributed.destroy_process_group()
    return [result.tolist() for result in results]


def test_alone_moves_as_many_bytes_as_it_receives(ranks):
    (results,) = ranks(1, copies)
    assert results == [[0, 1, 2, 3, 4, 5, 0, 1, 2], [0, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "there is no case nothing; there are dit-512"),
        ([], "name a case"),
        (["tiny", "--share", "0"], "--share 0: use 1 or more"),
    ],
)
def test_mistakes_are_one_line(tiny, arguments, words):
    with pytest.raises(ValueError, match=words):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_again_shares_weights_and_tables():
    model, inputs = cases.build(TINY, 2, torch.float32, torch.device("cpu"))
    other = cases.again(model, TINY, 2)
    assert [a.data_ptr() for a in model.parameters()] == [b.data_ptr() for b in other.parameters()]
    with torch.no_grad():
        assert torch.equal(model(**inputs, return_dict=False)[0], other(**inputs, return_dict=False)[0])


def test_every_case_runs_with_one_layer_on_the_meta_device():
    for case in cases.CASES.values():
        model, inputs = cases.build(case, 1, torch.bfloat16, torch.device("meta"))
        with torch.no_grad():
            assert model(**inputs, return_dict=False)[0].is_meta


def test_repeated_blocks_are_found_where_diffusers_names_none():
    model, _ = cases.build(TINY, 3, torch.float32, torch.device("cpu"))
    assert list(repeated_blocks(model)) == list(model.transformer_blocks)


def test_layouts_of_six_ranks():
    assert step.layouts(6, True)[-2:] == [ParallelConfig(3, cfg_degree=2), ParallelConfig(3, 2)]


def test_a_variant_that_fails_is_a_line():
    failed, made = step.Result("tiny", "a peer", note="ValueError: no"), step.Result("tiny", "ours", ms=[2.0, 4.0])
    assert step.as_lines([failed, made])[0].endswith("not run: ValueError: no")
    assert "3.00 ms (2.00 to 4.00)" in step.as_lines([failed, made])[1]
    assert page([failed, made], "<CPU>").count("&lt;CPU&gt;") == 1

"""`dit-usp bench` on tiny models: shares, baselines, tables and files. Times themselves are not judged here."""

import copy
import json
from functools import partial

import pytest
import torch
from click.testing import CliRunner

from dit_usp.bench import alone, cases, look, step
from dit_usp.bench.exact import reference
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
TABLES = cases.Case(  # parameters outside of its layers are read as they are
    "PixArtTransformer2DModel",
    dict(num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, caption_channels=4096, sample_size=8, out_channels=8),
    partial(cases._pixart, 64),
    {"num_layers": 2},
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


def test_errors_against_float32_are_those_of_bfloat16_for_diffusers_as_well(ranks, tmp_path):
    (output,) = ranks(1, share, ["tiny", "--layers", "2", "--runs", "1", "--exact", "--json", str(tmp_path / "b.json")])
    assert output.splitlines()[2] == "error: relative to the output of diffusers in float32"
    plain, ours = json.loads((tmp_path / "b.json").read_text())["results"]
    assert 1e-4 < plain["error"] < 3e-2
    assert ours["error"] == plain["error"]


@pytest.mark.parametrize("case", [TINY, TABLES], ids=["dit", "pixart"])
@torch.no_grad()
def test_the_reference_is_the_model_in_float32_and_leaves_its_weights_alone(case):
    model, inputs = cases.build(case, 2, torch.bfloat16, torch.device("cpu"))
    before = copy.deepcopy(model.state_dict())
    expected = copy.deepcopy(model).float()(**cases.each_tensor(inputs, lambda t: t.float() if t.is_floating_point() else t), return_dict=False)[0]
    assert torch.equal(reference(model, inputs, torch.bfloat16), expected)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name


def test_no_reference_where_memory_does_not_suffice():
    class Large(torch.nn.Linear):
        def forward(self, **inputs):
            raise torch.OutOfMemoryError

    model = Large(2, 2, dtype=torch.bfloat16)
    assert reference(model, {}, torch.bfloat16) is None
    assert model.weight.dtype == torch.bfloat16


def test_a_steps_milliseconds_by_kind_and_by_kernel():
    spans = [("flash_fwd", 0.0, 4e3), ("gemm", 4e3, 6e3), ("ncclSendRecv", 5e3, 9e3), ("gemm", 10e3, 11e3)]
    assert look.parts(spans) == {"attention": 4.0, "other compute": 3.0, "exposed communication": 3.0, "gaps": 1.0}
    assert list(look.kernels(spans).items()) == [("flash_fwd", (4.0, 1)), ("ncclSendRecv", (4.0, 1)), ("gemm", (3.0, 2))]
    assert look.parts([]) == look.kernels([]) == {}


def test_kernels_come_after_the_table_and_the_file_has_them_all():
    found = step.Result("tiny", "ours", ms=[2.0], kernels={f"kernel {number}": (20.0 - number, 3) for number in range(15)})
    assert step.kernel_lines([found, step.Result("tiny", "on a CPU", ms=[2.0])])[::12] == [
        "tiny: ours: ms and calls of the kernels of one step",
        "      9.00     3  kernel 11",
    ]
    assert len(json.loads(step.as_json([found], "", ""))["results"][0]["kernels"]) == 15


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
        (["tiny", "--share", "2", "--exact"], "leave out --exact"),
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

"""`dit-usp bench` on tiny models: shares, baselines, tables and files. Times themselves are not judged here."""

import copy
import json
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiTTransformer2DModel

from dit_usp.attention import choice
from dit_usp.bench import alone, cases, look, step
from dit_usp.bench.exact import reference
from dit_usp.bench.peers import PEERS
from dit_usp.bench.plot import page
from dit_usp.cli.bench import _variants, command
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
PLAIN_TABLES = cases.Case(  # its rotary tables are neither parameters nor buffers
    "QwenImageTransformer2DModel",
    dict(num_attention_heads=4, attention_head_dim=16, axes_dims_rope=(4, 6, 6)),
    partial(cases._qwen, 128),
    {"num_layers": 2},
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(cases.CASES, "tiny", TINY)


def share(arguments):
    """On a process of its own: the command's output."""
    cases.CASES["tiny"] = TINY
    choice._chosen.cache_clear()  # a choice is told once a process
    torch.distributed.destroy_process_group()
    return CliRunner().invoke(command, arguments, catch_exceptions=False).output


def test_one_rank_of_four_is_measured_alone(ranks, tmp_path):
    file, plot = str(tmp_path / "b.json"), str(tmp_path / "b.html")
    (output,) = ranks(1, share, ["tiny", "--share", "4", "--layers", "2", "--runs", "3", "--dtype", "float32", "--json", file, "--plot", plot])
    told = [line for line in output.splitlines() if line.startswith("attention kernel")]
    assert told == [
        "attention kernel sdpa for head size 8, float32 on cpu: not measured on cpu: the default order",
        "attention kernel cpu for head size 8, float32 on cpu, with an LSE: not measured on cpu: the default order; sdpa gives no LSE",
    ]
    lines = [line for line in output.splitlines() if line not in told]
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
    assert torch.equal(reference(model, (inputs,), torch.bfloat16), expected)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype, name
        assert torch.equal(tensor, before[name]), name


def test_no_reference_where_memory_does_not_suffice():
    class Large(torch.nn.Linear):
        def forward(self, **inputs):
            raise torch.OutOfMemoryError

    model = Large(2, 2, dtype=torch.bfloat16)
    assert reference(model, ({},), torch.bfloat16) is None
    assert model.weight.dtype == torch.bfloat16


def test_a_steps_milliseconds_by_kind_and_by_kernel():
    spans = [("flash_fwd", 0.0, 4e3), ("gemm", 4e3, 6e3), ("ncclSendRecv", 5e3, 9e3), ("gemm", 10e3, 11e3)]
    assert look.parts(spans) == {"attention": 4.0, "other compute": 3.0, "exposed communication": 3.0, "gaps": 1.0}
    assert list(look.kernels(spans).items()) == [("flash_fwd", (4.0, 1)), ("ncclSendRecv", (4.0, 1)), ("gemm", (3.0, 2))]
    assert look.parts([]) == look.kernels([]) == {}


@pytest.mark.parametrize(("backend", "kind"), [("alone", "exposed communication"), ("nccl", "other compute")])
def test_a_lone_ranks_copies_stand_for_its_exchanges(monkeypatch, backend, kind):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    spans = [("memcpy128", 0.0, 2e3), ("Memcpy DtoD (Device -> Device)", 2e3, 5e3)]
    assert look.parts(spans)[kind] == 5.0
    assert look.parts([("Memcpy HtoD (Pageable -> Device)", 0.0, 2e3)])["exposed communication"] == 0.0


class Counted(torch.nn.Module):
    """Notes its name at every call."""

    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, return_dict):
        self.calls.append(self.name)
        return (torch.zeros(1),)


@pytest.mark.parametrize(("runs", "turns"), [(1, [1]), (3, [1, 1, 1]), (8, [3, 3, 2])])
def test_steps_are_timed_in_a_row_and_variants_by_turns(monkeypatch, runs, turns):
    calls = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: calls.append("ready"))
    running = [step._Running(step.Variant(), Counted(name, calls), ({},), step.Result("tiny", name)) for name in "ab"]
    step._take_turns(running, runs, torch.device("cpu"))
    assert calls == [call for turn in turns for name in "ab" for call in ["ready", *name * (1 + turn)]]  # one step ahead of those that count
    assert [len(one.result.ms) for one in running] == [runs, runs]


def test_kernels_come_after_the_table_and_the_file_has_them_all():
    found = step.Result("tiny", "ours", ms=[2.0], kernels={f"kernel {number}": (20.0 - number, 3) for number in range(15)})
    assert step.kernel_lines([found, step.Result("tiny", "on a CPU", ms=[2.0])])[::12] == [
        "tiny: ours: ms and calls of the kernels of one step",
        "      9.00     3  kernel 11",
    ]
    assert len(json.loads(step.as_json([found], "", ""))["results"][0]["kernels"]) == 15


ULYSSES, RING = ParallelConfig(ulysses_degree=2), ParallelConfig(ring_degree=2)
PLAIN = DiTTransformer2DModel.forward


def patched(model, **inputs):
    """A module that the stand-in has not seen fails."""
    assert model.seen
    return PLAIN(model, **inputs)


class FakeCacheDit(ModuleType):
    """As that package does it: one call, which patches diffusers' class."""

    def __init__(self):
        super().__init__("cache_dit")
        self.calls, self.configured = [], 0

    def ParallelismConfig(self, **options):
        return options

    def set_compile_configs(self):
        self.configured += 1

    def enable_cache(self, model, parallelism_config):
        self.calls.append(parallelism_config)
        model.seen, DiTTransformer2DModel.forward = True, patched


def measured(arguments, fake):
    """On each of several ranks: the results by variant, and what the stand-in for cache-dit was asked for."""
    cases.CASES["tiny"] = TINY
    if fake:
        sys.modules["cache_dit"] = FakeCacheDit()
    options = command.make_context("bench", ["tiny", *arguments]).params
    variants = _variants(torch.distributed.get_world_size(), False, options)
    what = dict(layers=1, dtype=torch.float32, device=torch.device("cpu"), runs=2, compare=True, exact=False, profile=False)
    told = []
    try:
        results = step.measure("tiny", variants, told=lambda results: told.append(len(results)), **what)
    finally:
        fake, DiTTransformer2DModel.forward = sys.modules.pop("cache_dit", None), PLAIN
    assert told[-1] == len(results)
    assert len(told) == len({variant.phase for variant in variants})  # each group as soon as it is done
    return {result.variant: result for result in results}, fake and fake.calls


def test_a_peer_that_patches_diffusers_is_measured_after_the_others(ranks):
    for results, asked in ranks(2, measured, ["--baseline", "cache-dit", "--baseline", "diffusers"], True):
        assert list(results) == [
            "diffusers, one rank",
            f"dit-usp, {ULYSSES}",
            f"dit-usp, {RING} (gather)",
            f"dit-usp, {RING} (rotate)",
            f"cache-dit, {ULYSSES}",
            f"cache-dit, {RING} (rotate)",
        ]
        *run, ring = results.values()
        assert [(result.note, len(result.ms)) for result in run] == [("", 2)] * 5
        assert ring.note.startswith("ValueError: its ring needs")
        assert asked == [dict(ulysses_size=2, ring_size=1, ulysses_async=False)]


def test_cache_dit_is_compiled_with_its_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "cache_dit", fake := FakeCacheDit())
    model, _ = cases.build(TINY, 2, torch.float32, torch.device("cpu"))
    PEERS["cache-dit"].compile(model)
    assert fake.configured == 1
    assert all(block._compiled_call_impl for block in model.transformer_blocks)


def test_a_peer_that_is_not_installed_is_a_line_on_all_ranks(ranks):
    for results, _ in ranks(2, measured, ["--baseline", "cache-dit", "--baseline", "cache-dit-async"], False):
        peers = {variant: result.note for variant, result in results.items() if "cache-dit" in variant}
        assert list(peers) == [f"cache-dit, {ULYSSES}", f"cache-dit, {RING} (rotate)", f"cache-dit-async, {ULYSSES}"]
        assert set(peers.values()) == {"ModuleNotFoundError: No module named 'cache_dit'"}
        assert all(result.ms for variant, result in results.items() if "dit-usp" in variant)


GUIDED = cases.Case(
    "WanTransformer3DModel",
    dict(num_attention_heads=2, attention_head_dim=12, ffn_dim=32, text_dim=4096, rope_max_seq_len=32),
    partial(cases._wan, 3, 8, 8),
    {"num_layers": 2},
    two_calls=True,
)


def both_calls():
    """On a rank: the results of a step of two calls."""
    cases.CASES["guided"] = GUIDED
    what = dict(layers=None, dtype=torch.float32, device=torch.device("cpu"), runs=1, compare=True, exact=True, profile=False)
    return step.measure("guided", _variants(2, GUIDED.halves, command.make_context("bench", ["guided"]).params), **what)


def test_a_step_of_two_calls_is_shared_by_halves(ranks):
    for results in ranks(2, both_calls):
        assert [result.variant for result in results][-1] == f"dit-usp, {ParallelConfig(cfg_degree=2)}"
        assert [(result.note, len(result.ms)) for result in results] == [("", 1)] * 5
        assert max(result.error for result in results) <= 1e-5


def test_the_two_calls_of_a_step_differ():
    model, inputs = cases.build(GUIDED, None, torch.float32, torch.device("cpu"))
    first, second = (cases.run_step(model, (call,)) for call in cases.calls_of(GUIDED, inputs))
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(cases.run_step(model, cases.calls_of(GUIDED, inputs)), second + 5 * (first - second))


def copies():
    torch.distributed.destroy_process_group()
    alone.start(3)
    group = torch.distributed.group.WORLD
    flat = torch.arange(6.0)
    results = exchange(flat, [2, 2, 2], [2, 2, 5], group), gather(flat[:2], 0, (2, 2, 2), group)
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
        (["tiny", "tiny", "--baseline", "cache-dit-compile"], "with it, name one case"),
    ],
)
def test_mistakes_are_one_line(tiny, arguments, words):
    with pytest.raises(ValueError, match=words):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.mark.parametrize("case", [TINY, PLAIN_TABLES], ids=["dit", "qwen"])
def test_again_shares_weights_and_tables(case):
    model, inputs = cases.build(case, 2, torch.float32, torch.device("cpu"))
    other = cases.again(model, case, 2)
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

"""Every pipeline class on two ranks: one call of two steps equals diffusers' own call of the same components in the same process."""

from __future__ import annotations

import inspect
import pickle
import re
from contextlib import ExitStack
from pathlib import Path

import diffusers
import pytest
import torch
import torch.distributed as dist
from calls import tensors
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from tiny_parts import picture
from tiny_pipelines import TINY, build, default_call

from dit_usp import ParallelConfig, UnsupportedError, pipelines
from dit_usp.cli.inputs import needed
from dit_usp.inject import dealt_calls, unparallelize
from dit_usp.pipelines.agreement import mark
from dit_usp.pipelines.base import described, sharded_parts
from dit_usp.pipelines.deal import PER_PROMPT, has_picture
from dit_usp.pipelines.layout import check_layout, contrast, default_layout, has_halves, off
from dit_usp.pipelines.table import NAMES, NOT_DEALT, NOT_HALVED, ONE_A_PROMPT, PIPELINES
from dit_usp.signature import read_call

# Where diffusers 0.42 fails on two pictures for each of two prompts, or gives one the mask of another's prompt
MIXED = (
    "HunyuanImagePipeline",
    "HunyuanImageRefinerPipeline",
    "LongCatImagePipeline",
    "LTXPipeline",
    "LTX2Pipeline",
    "LTX2DFRPipeline",
    "LTXConditionPipeline",
    "LTX2HDRPipeline",
    "LTX2ConditionPipeline",
    "LTX2InContextPipeline",
    "MochiPipeline",
    "SanaVideoPipeline",
    "LuminaPipeline",
    "Lumina2Pipeline",
    "QwenImagePipeline",
    "HunyuanDiTPipeline",
    "HunyuanDiTPAGPipeline",
    "SanaPipeline",
    "SanaPAGPipeline",
    "SanaSprintPipeline",
)
# Where it fails on two plain prompts without pictures, though it can do without them, or none of the command line's files would do
PICTURED = (
    "BriaFiboEditPipeline",
    "Cosmos2_5_PredictBasePipeline",
    "VisualClozeGenerationPipeline",
    "VisualClozePipeline",
    "WanVACEPipeline",
)


def test_every_pipeline_has_its_tiny_one():
    assert sorted(TINY) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_classes_look_like_diffusers(name):
    cls, base = getattr(pipelines, f"USP{name}"), getattr(diffusers, name)
    assert issubclass(cls, (base, pipelines.USPPipelineMixin))
    assert inspect.signature(cls.__call__) == inspect.signature(base.__call__)
    assert cls.__call__.__doc__ == base.__call__.__doc__
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cls.__name__ in dir(pipelines)


@pytest.mark.parametrize("name", NOT_HALVED)
def test_guidance_that_is_not_in_one_batch_is_refused(name):
    with pytest.raises(UnsupportedError, match=f"cfg_degree=2 needs guidance as .* or two calls a step, which {name} "):
        check_layout(ParallelConfig(cfg_degree=2), name, [(model_of(name), {})])


@pytest.mark.parametrize(
    ("name", "index", "halves"),
    [
        ("LTXPipeline", {}, 2),
        ("LTX2HDRPipeline", {}, 1),
        ("StableAudio3Pipeline", {}, 1),
        ("WanPipeline", {}, 2),
        ("QwenImagePipeline", {}, 1),  # without a negative prompt
        ("Flux2KleinPipeline", {"is_distilled": True}, 1),
        ("Flux2KleinPipeline", {"is_distilled": False}, 2),
        ("HunyuanImagePipeline", {"guider": [None, None]}, 1),
        ("HunyuanImagePipeline", {"guider": ["diffusers", "AdaptiveProjectedMixGuidance"]}, 1),  # whose settings may switch it off
    ],
)
def test_no_halves_by_default_where_guidance_is_off_by_default(name, index, halves):
    guided = getattr(pipelines, f"USP{name}")._is_guided(index)
    assert default_layout(2, name, [(model_of(name), {"num_attention_heads": 4})], guided).cfg_degree == halves


def test_a_condition_is_compared_between_ranks_by_what_it_holds():
    first, same, other = (mark([LTXVideoCondition(video=[picture(seed)], frame_index=8)]) for seed in (0, 0, 1))
    assert first == same
    assert first != other


@pytest.mark.parametrize("name", NOT_DEALT)
def test_results_that_cannot_be_made_apart_are_refused(name):
    with pytest.raises(UnsupportedError, match=f"but {name} .* Try data_degree=1 with ulysses_degree=1 ring_degree=2 ring_method='gather'"):
        check_layout(ParallelConfig(data_degree=2), name, [(model_of(name), {})])


def model_of(name):
    return next(model for model, names in PIPELINES.items() if name in names)


def arguments(name, changes):
    torch.manual_seed(9 + dist.get_rank())  # for pipelines without generator: the first rank's counts
    call = {"output_type": "np", "generator": torch.Generator().manual_seed(5)} | default_call(name) | changes
    return {argument: list(value) if isinstance(value, list) else value for argument, value in call.items()}  # Z-Image's Omni writes into its prompts


def called(pipe, name, changes):
    """The result's tensors, and all that its sharded models gave."""
    given = []
    pipe.set_progress_bar_config(disable=True)
    with ExitStack() as stack:
        for part in sharded_parts(pipe):
            hook = part.register_forward_hook(lambda module, args, output: given.extend(tensors(output)))
            stack.callback(hook.remove)
        output = pipe(**arguments(name, changes))
    return output, given


def compared(name, degrees, folder):
    """On the first rank, for each layout that the pipeline takes: the largest errors of what the models gave, and of the result."""
    pipe = build(name, Path(folder, str(dist.get_rank())))
    results = [one_layout(pipe, name, degrees, {})]
    if has_halves(name, described(pipe)):
        results.append(one_layout(pipe, name, (1, 1, 2), guided(name)))
    if name not in NOT_DEALT:
        results.append(one_layout(pipe, name, (1, 1, 1, 2), several(name)))
    return results


def guided(name):
    """What a call of two steps lacks to be one with guidance."""
    known = inspect.signature(getattr(diffusers, name).__call__).parameters
    if off(name, known, default_call(name)) is None:
        return {}
    return {contrast(name, known): 3.0} | ({"negative_prompt": "cat"} if "negative_prompt" in known else {})


def several(name):
    """A call for two results, or four: two a prompt, of pipelines where that works."""
    known = inspect.signature(getattr(diffusers, name).__call__).parameters
    two = {
        "prompt": ["a red heart", "dog face"],
        "negative_prompt": ["cat", "a small dog"],
        "class_labels": [3, 7],
        "lyrics": ["the cat", "a dog"],
        "output_type": "latent",
    }
    each = {} if name in ONE_A_PROMPT + MIXED else dict.fromkeys(PER_PROMPT, 2)
    return {argument: value for argument, value in (two | each).items() if argument in known}


def one_layout(pipe, name, degrees, changes):
    shared = getattr(pipelines, f"USP{name}").from_pipe(pipe, parallel=ParallelConfig(*degrees))
    vars(shared).update(
        (key, value) for key, value in vars(pipe).items() if isinstance(value, (str, int, list))
    )  # shorter templates and smaller sizes
    two_calls = any(map(dealt_calls, sharded_parts(shared)))
    refused = False
    try:
        output, given_by_ranks = called(shared, name, changes)
    except UnsupportedError as refusal:  # pictures may belong to single results
        refused = re.fullmatch(r"data_degree=2 cannot deal out (?!prompt)\w+ to replicas\..*", str(refusal))
        if not refused:
            raise
    finally:
        for part in sharded_parts(shared):
            unparallelize(part)
    if refused:
        return without_pictures(pipe, name, degrees, changes)
    kinds = [None, None]
    dist.all_gather_object(kinds, type(output))
    assert kinds[0] is kinds[1]
    if dist.get_rank():
        assert all(field is None for field in (output if isinstance(output, tuple) else vars(output).values()))
        return None
    wanted, given = called(pipe, name, changes)
    assert type(output) is type(wanted)
    assert len(given) > 1
    assert not two_calls or len(given_by_ranks) < len(given)  # the other rank has computed some of them
    return 0 if changes or two_calls else errors(given_by_ranks, given), errors(tensors(output), tensors(wanted))


def without_pictures(pipe, name, degrees, changes):
    """The same from text alone; None where diffusers cannot."""
    text = changes | dict.fromkeys(argument for argument, value in default_call(name).items() if has_picture(value))
    if name in PICTURED or any(needed(read_call(name))):
        return None
    return one_layout(pipe, name, degrees, text)


def errors(outs, wanted):
    return max(error(out, one) for out, one in zip(outs, wanted, strict=True))


def error(out, wanted):
    """Largest difference relative to the largest value wanted."""
    assert out.shape == wanted.shape
    assert wanted.isfinite().all()
    assert wanted.std() > 0  # not one flat colour
    return ((out - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_make_what_one_makes(ranks, tmp_path, name):
    results, _ = ranks(2, compared, name, ((2, 1), (1, 2))[NAMES.index(name) % 2], str(tmp_path))
    for given, result in filter(None, results):
        assert given <= 1e-5
        assert result <= 1e-4

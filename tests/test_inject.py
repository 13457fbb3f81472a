"""parallelize beyond plain parity: guidance halves, processors of all kinds, gradients, misuse, and plans that do not fit."""

import copy
import dataclasses
import pickle

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SanaLinearAttnProcessor2_0, SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.controlnets.controlnet_flux import FluxMultiControlNetModel
from diffusers.models.controlnets.controlnet_hunyuan import HunyuanDiT2DMultiControlNetModel
from diffusers.models.controlnets.controlnet_qwenimage import QwenImageMultiControlNetModel
from diffusers.models.controlnets.controlnet_sd3 import SD3MultiControlNetModel
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from test_parity import error, forward, run
from tiny import build
from tiny.image import flux, sd3
from tiny.tools import rand, redraw
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dit_usp import inject
from dit_usp.attention.kernels import KERNELS
from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.inject import parallelize, unparallelize
from dit_usp.mesh import init_mesh
from dit_usp.models import PLANS
from dit_usp.plan import Call, Exchange, Gather, Split, gather, split
from dit_usp.sharding import NATIVE, WITH_LSE, Sharding


def compare(model, inputs, config):
    expected = run(model, inputs)
    parallelize(model, init_mesh(config, "cpu"))
    out = run(model, inputs)
    unparallelize(model)
    assert out.shape == expected.shape
    return error(out, expected)


# -- guidance halves


def halves(name, batch, config):
    return compare(*build(name, batch=batch), config)


@pytest.mark.parametrize("name", ["dit", "pixart", "sd35", "cogvideox", "sd3_skip"])
def test_cfg_halves_the_batch_and_composes(ranks, name):
    batches = {"sd3_skip": (1, 2)}.get(name, (2, 3))  # an odd batch is halved unevenly; a skip-layer call of one sample is computed on both sides
    for world_size, config in ((2, ParallelConfig(cfg_degree=2)), (4, ParallelConfig(2, 1, 2)), (4, ParallelConfig(1, 2, 2))):
        for batch in batches:
            assert max(ranks(world_size, halves, name, batch, config)) <= 1e-5, (config, batch)


def keywords_in_another_order():
    """The batch is that of the forward's first argument, not of the first keyword: here a dict of two entries, beside three samples."""
    model, inputs = build("pixart", batch=3)
    return compare(model, dict(reversed(inputs.items())), ParallelConfig(cfg_degree=2))


def test_keywords_come_in_any_order(ranks):
    assert max(ranks(2, keywords_in_another_order)) <= 1e-5


def guidance_off():
    model, inputs = build("pixart", batch=1)
    parallelize(model, init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    with pytest.raises(UnsupportedError, match="cfg_degree=2 halves the guidance batch, but PixArtTransformer2DModel was called with a batch of 1"):
        run(model, inputs)
    with pytest.raises(UnsupportedError, match=r"cfg_degree=2 needs .* two calls a step, which CosmosTransformer3DModel does not get"):
        parallelize(build("cosmos")[0], init_mesh(ParallelConfig(cfg_degree=2), "cpu"))
    return True


def test_cfg_without_guidance_is_refused(ranks):
    assert all(ranks(2, guidance_off))


# -- processors


def flux_with_ip_adapter():
    model, inputs = flux()
    for block in model.transformer_blocks:
        block.attn.set_processor(FluxIPAdapterAttnProcessor(hidden_size=64, cross_attention_dim=24, num_tokens=(5,)))
    inputs["joint_attention_kwargs"] = {"ip_hidden_states": [rand(2, 5, 24, seed=8)]}
    return redraw(model), inputs


def sd3_with_ip_adapter():
    model, inputs = sd3()
    for block in model.transformer_blocks:
        block.attn.set_processor(SD3IPAdapterJointAttnProcessor2_0(32, 24, head_dim=8, timesteps_emb_dim=32))
    inputs["joint_attention_kwargs"] = {"ip_hidden_states": rand(2, 5, 24, seed=8), "temb": rand(2, 32, seed=9)}
    return redraw(model), inputs


def flux_fused():
    model, inputs = build("flux")
    model.fuse_qkv_projections()
    return model, inputs


def pixart_shared_processor():
    """One object serves the sharded self-attention and the local cross-attention."""
    model, inputs = build("pixart")
    model.set_attn_processor(AttnProcessor2_0())
    return model, inputs


def processors(make, config):
    return compare(*make(), config)


@pytest.mark.parametrize("make", [flux_with_ip_adapter, sd3_with_ip_adapter, flux_fused, pixart_shared_processor])
def test_other_processors_survive(ranks, make):
    for world_size, config in ((2, ParallelConfig(2)), (2, ParallelConfig(1, 2)), (3, ParallelConfig(1, 3, ring_method="gather"))):
        assert max(ranks(world_size, processors, make, config)) <= 1e-5, config


def late_processor():
    """An IP-Adapter that is loaded after parallelize, and taken off again."""
    model, inputs = build("flux")
    plain = run(model, inputs)
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    adapter = FluxIPAdapterAttnProcessor(hidden_size=64, cross_attention_dim=24, num_tokens=(5,))
    redraw(adapter)
    model.transformer_blocks[0].attn.set_processor(adapter)
    with_adapter = run(model, inputs | {"joint_attention_kwargs": {"ip_hidden_states": [rand(2, 5, 24, seed=8)]}})
    unparallelize(model)
    assert model.transformer_blocks[0].attn.processor is adapter
    expected = run(model, inputs | {"joint_attention_kwargs": {"ip_hidden_states": [rand(2, 5, 24, seed=8)]}})
    assert error(with_adapter, plain) > 1e-3
    return error(with_adapter, expected)


def test_a_processor_set_after_parallelize_is_rebound(ranks):
    assert max(ranks(2, late_processor)) <= 1e-5


def late_linear_processor():
    """Set after parallelize, summed over ranks all the same; it is what is left after unparallelize."""
    model, inputs = build("sana")
    expected = run(model, inputs)
    original = model.transformer_blocks[1].attn1.processor
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    late = SanaLinearAttnProcessor2_0()
    model.transformer_blocks[0].attn1.set_processor(late)
    out = run(model, inputs)
    unparallelize(model)
    assert [block.attn1.processor for block in model.transformer_blocks] == [late, original]
    return error(out, expected)


def test_a_linear_processor_set_after_parallelize_is_summed(ranks):
    assert max(ranks(2, late_linear_processor)) <= 1e-5


def late_processor_out_of_reach():
    model, inputs = build("sana")
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    model.transformer_blocks[0].attn1.set_processor(AttnProcessor2_0())
    with pytest.raises(UnsupportedError, match=r"AttnProcessor2_0 of SanaTransformer2DModel cannot be summed over ranks\. Set one of SanaLinear"):
        run(model, inputs)
    return True


def test_one_that_cannot_be_summed_is_refused(ranks):
    assert all(ranks(2, late_processor_out_of_reach))


class DerivedIPAdapter(FluxIPAdapterAttnProcessor):
    """As a user derives one: its calls are those of its ancestor."""


def derived_processor():
    model, inputs = flux_with_ip_adapter()
    for block in model.transformer_blocks:
        block.attn.processor.__class__ = DerivedIPAdapter
    return compare(model, inputs, ParallelConfig(2))


def test_a_derived_processor_makes_its_ancestors_calls(ranks):
    assert max(ranks(2, derived_processor)) <= 1e-5


def lora():
    """What peft does to a model: linear layers replaced by wrappers, before or after parallelize."""
    model, inputs = build("pixart")
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    down, up = rand(2, 32, seed=10), rand(32, 2, seed=11)
    attn = model.transformer_blocks[0].attn1
    original = attn.to_q

    class LoRALinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = original

        def forward(self, x):
            return self.base(x) + x @ down.T @ up.T

    attn.to_q = LoRALinear()
    out = run(model, inputs)
    unparallelize(model)
    return error(out, run(model, inputs))


def test_lora_layers_survive(ranks):
    assert max(ranks(2, lora)) <= 1e-5


def own_attention():
    model, _ = build("pixart")
    model.set_attn_processor(AttnProcessor())
    hooks = len(model._forward_pre_hooks)
    with pytest.raises(UnsupportedError, match="AttnProcessor of PixArtTransformer2DModel attends by its own means"):
        parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    assert len(model._forward_pre_hooks) == hooks
    assert not model.pos_embed._forward_hooks
    return True


def test_a_processor_out_of_reach_is_refused_and_nothing_is_left(ranks):
    assert all(ranks(2, own_attention))


def backends(ring_method):
    model, inputs = build("flux")
    expected = run(model, inputs)
    parallelize(model, init_mesh(ParallelConfig(1, 2, ring_method=ring_method), "cpu"))
    errors = {}
    for backend in ("native", "_native_math", "flex"):
        model.set_attention_backend(backend)
        try:
            errors[backend] = error(run(model, inputs), expected)
        except UnsupportedError as refusal:
            errors[backend] = str(refusal)
    model.set_attention_backend("native")  # diffusers also sets it for the whole process
    return errors


def test_the_backend_a_user_set_runs_between_the_exchanges(ranks):
    for errors in ranks(2, backends, "gather"):
        assert max(errors.values()) <= 1e-5, errors
    for errors in ranks(2, backends, "rotate"):
        assert errors["native"] <= 1e-5
        assert errors["_native_math"] <= 1e-5
        assert "ring_method='gather'" in errors["flex"]


def followed(name, backend, ring_method):
    """What is said of a kernel that the backend asks for and the CPU lacks; "ran" where it is not asked for."""
    model, inputs = build(name)
    parallelize(model, init_mesh(ParallelConfig(1, 2, ring_method=ring_method), "cpu"))
    before = _AttentionBackendRegistry.get_active_backend()[0]
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName(backend))  # set_attention_backend would ask for the package first
    try:
        run(model, inputs)
    except UnsupportedError as refusal:
        return str(refusal)
    finally:
        _AttentionBackendRegistry.set_active_backend(before)
    return "ran"


@pytest.mark.parametrize(
    ("name", "backend", "kernel"),
    [
        ("flux", "_native_cudnn", "cudnn"),
        ("flux", "flash", "flash-attn-2"),
        ("flux", "_flash_3", "flash-attn-3"),
        ("pixart", "_native_cudnn", "cudnn"),  # its processor calls torch
    ],
)
def test_a_ring_that_merges_takes_our_call_of_the_same_kernel(ranks, name, backend, kernel):
    for told in ranks(2, followed, name, backend, "rotate"):
        assert told.startswith(f"backend='{kernel}' runs on cuda, not cpu. These take the call: ")


def test_processors_that_call_torch_know_no_other_backends(ranks):
    assert ranks(2, followed, "pixart", "flash", "rotate") == ["ran"] * 2


def test_backends_of_diffusers_and_kernels_of_ours_have_the_names_they_are_paired_by():
    pairs = NATIVE | WITH_LSE
    assert set(pairs) <= {backend.value for backend in AttentionBackendName}
    assert set(pairs.values()) - {"auto"} <= set(KERNELS)
    assert all(KERNELS[kernel].lse for kernel in WITH_LSE.values())


# -- masks


class Collectives(TorchDispatchMode):
    """Counts the collectives that are started."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "c10d" in str(func) and "wait_tensor" not in str(func)
        return func(*args, **(kwargs or {}))


def mask_exchanges():
    """The all-to-alls of a forward, without a mask and with one that every block is handed."""
    counts = []
    for name in ("flux", "flux_masked"):
        model, inputs = build(name)
        parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
        run(model, inputs)  # the ranks compare what they hold, once
        with Collectives() as collectives:
            run(model, inputs)
        counts.append(collectives.count)
        unparallelize(model)
    return counts


def test_a_mask_is_gathered_once_a_forward(ranks):
    for plain, masked in ranks(2, mask_exchanges):
        assert plain == 2 * 4 + 1  # two collectives an attention, four layers, one gather of the output
        assert masked == plain + 1


def whole_mask_in_another_order():
    """A mask that no word cuts: its columns are in the model's order, the keys in the ranks'."""
    model, inputs = build("flux_masked")
    plan = inject.plan_of(model)
    words = tuple(word for word in plan.words if not (isinstance(word, Split) and "attention_mask" in str(word.places[0])))
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"), plan=dataclasses.replace(plan, words=words))
    with pytest.raises(UnsupportedError, match="an attention mask over all 67 keys came whole"):
        run(model, inputs)
    return True


def test_a_mask_in_another_order_is_refused(ranks):
    assert all(ranks(2, whole_mask_in_another_order))


def mask_of_rows():
    """(batch, 1, tokens, tokens), which no pipeline makes."""
    model, inputs = build("flux")
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    mask = torch.ones(2, 1, 67, 67, dtype=torch.bool)
    with pytest.raises(UnsupportedError) as refusal:
        run(model, inputs | {"joint_attention_kwargs": {"attention_mask": mask}})
    return str(refusal.value)


def test_a_mask_of_rows_is_refused_in_the_same_words(ranks):
    one, other = ranks(2, mask_of_rows)
    assert one == other
    assert "an attention mask with a row for each of 67 queries came whole" in one


def masks_of_an_empty_piece():
    """Two calls with masks of their own. The piece of the second rank has no memory that would tell them apart."""
    mesh = init_mesh(ParallelConfig(1, 2), "cpu")
    sharding = Sharding(inject.find_plan("PixArtTransformer2DModel"), mesh)
    rank, own = mesh.sequence.rank(), (5, 0)[mesh.sequence.rank()]
    sharding.streams.pieces = lambda stream: (5, 0)
    sharding.streams.lengths["image"] = 5
    q, k, v = (rand(1, 5, 2, 8, seed=seed) for seed in range(3))
    pieces = [x[:, :own] if rank == 0 else x[:, 5:] for x in (q, k, v)]
    errors = []
    for seed in (3, 4):
        mask = rand(1, 1, 1, 5, seed=seed) > 0
        out = sharding.attend(Call(), *pieces, mask[..., :own].clone(), False, None, False, "auto", None)
        expected = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask).transpose(1, 2)
        errors.append(error(out, expected) if rank == 0 else float(out.numel()))
    return max(errors)


def test_an_empty_mask_is_not_taken_for_the_last_one(ranks):
    assert max(ranks(2, masks_of_an_empty_piece)) <= 1e-5


def after_an_exception():
    """The mask of a block that failed is not the next forward's."""
    model, inputs = build("ltx2_condition")
    unmasked = inputs | {"video_self_attention_mask": None}
    expected = forward(model, unmasked)
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    broken = model.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward(model, inputs)
    broken.remove()
    return max(error(o, e) for o, e in zip(forward(model, unmasked), expected, strict=True))


def test_a_forward_that_failed_leaves_nothing_to_the_next(ranks):
    assert max(ranks(2, after_an_exception)) <= 1e-5


# -- wrappers of several ControlNets

WRAPPERS = {
    "flux_controlnet": FluxMultiControlNetModel,
    "sd3_controlnet": SD3MultiControlNetModel,
    "hunyuan_dit_controlnet": HunyuanDiT2DMultiControlNetModel,
    "qwen_controlnet": QwenImageMultiControlNetModel,
}


def several(name):
    """Two ControlNets of the class (one, called twice, of Qwen's), two conditions, and the inputs."""
    nets = [build(name)[0] for _ in range(1 if name.startswith("qwen") else 2)]
    for parameter in nets[-1].parameters():
        parameter.data *= 0.9
    inputs = build(name)[1]
    lists = {"controlnet_cond": [inputs["controlnet_cond"], -inputs["controlnet_cond"]], "conditioning_scale": [0.7, 0.5]}
    return WRAPPERS[name](nets), inputs | lists | ({"controlnet_mode": torch.zeros(2, 2).long()} if name.startswith("flux") else {})


def wrapped(name):
    model, inputs = several(name)
    expected = forward(model, inputs)
    assert parallelize(model, init_mesh(ParallelConfig(2), "cpu")) is model
    out = forward(model, inputs)
    with pytest.raises(ValueError, match="is parallelized already"):
        parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    assert all(torch.equal(a, e) for a, e in zip(forward(unparallelize(model), inputs), expected, strict=True))
    with pytest.raises(ValueError, match="is not parallelized"):
        unparallelize(model)
    assert len(out) == len(expected) > 0
    return max(error(o, e) for o, e in zip(out, expected, strict=True))


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_of_controlnets_shards_each(ranks, name):
    assert max(ranks(2, wrapped, name)) <= 1e-5


def wrapped_one_refused():
    model = FluxMultiControlNetModel([build("flux_controlnet")[0], nn.Linear(2, 2)])
    with pytest.raises(UnsupportedError, match="Linear has no shard plan"):
        parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    return len(model.nets[0]._forward_pre_hooks)


def test_a_wrapper_with_a_net_that_is_refused_is_left_alone(ranks):
    assert ranks(2, wrapped_one_refused) == [0, 0]


# -- gradients


def gradients(config):
    model, inputs = build("sd35")
    weights = rand(2, 4, 12, 20, seed=12)
    grads = []
    for parallel in (False, True):
        if parallel:
            parallelize(model, init_mesh(config, "cpu"))
        inputs["hidden_states"] = inputs["hidden_states"].detach().requires_grad_()
        (model(**inputs, return_dict=False)[0] * weights).sum().backward()
        grads.append(inputs["hidden_states"].grad)
    # every rank computes the whole loss, so each adds its share of the gradient once for every rank's copy
    torch.distributed.all_reduce(grads[1])
    return error(grads[1] / config.world_size, grads[0])


def test_gradients_of_the_input_equal_one_process(ranks):
    for config in (ParallelConfig(2), ParallelConfig(1, 2), ParallelConfig(1, 2, ring_method="gather")):
        assert max(ranks(2, gradients, config)) <= 1e-4, config


# -- misuse


def misuse():
    mesh = init_mesh(ParallelConfig(2), "cpu")
    model, inputs = build("pixart")
    with pytest.raises(ValueError, match="is not parallelized"):
        unparallelize(model)
    parallelize(model, mesh)
    with pytest.raises(ValueError, match="this PixArtTransformer2DModel is parallelized already; call unparallelize first"):
        parallelize(model, mesh)
    with pytest.raises(UnsupportedError, match="Linear has no shard plan; CONTRIBUTING shows how to add one"):
        parallelize(nn.Linear(2, 2), mesh)
    inputs["attention_mask"] = torch.ones(2, 7)
    with pytest.raises(UnsupportedError, match="pos_embed holds 60 tokens where the shard plan expects image 7"):
        run(model, inputs)
    return True


def test_misuse_is_named(ranks):
    assert all(ranks(2, misuse))


def copied():
    model, _ = build("pixart")
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    with pytest.raises(TypeError) as refusal:
        copy.deepcopy(model)
    copy.deepcopy(unparallelize(model))
    return str(refusal.value)


def test_a_copy_would_run_the_original_hooks_and_is_refused(ranks):
    text = "a parallelized PixArtTransformer2DModel cannot be copied: its hooks belong to the ranks. Copy it before parallelize."
    assert ranks(2, copied) == [text] * 2


def test_plans_can_be_copied_and_sent():
    assert all(pickle.loads(pickle.dumps(plan)) == copy.deepcopy(plan) == plan for plan in PLANS)


def too_few_heads():
    with pytest.raises(UnsupportedError, match=r"ulysses_degree=4 needs at least 4 heads; CogVideoXTransformer3DModel has 3\. Try ulysses_degree=2"):
        parallelize(build("cogvideox_2b")[0], init_mesh(ParallelConfig(4), "cpu"))
    return True


def test_too_few_heads_is_refused(ranks):
    assert all(ranks(4, too_few_heads))


# -- plans that do not fit: broken on purpose


def with_plan(change_words, name):
    """Parallelize with the plan's words changed."""
    model, inputs = build(name)
    plan = inject.plan_of(model)
    broken = dataclasses.replace(plan, words=tuple(change_words(plan.words)))
    injection = inject.Injection(model, broken, init_mesh(ParallelConfig(2), "cpu"))
    injection.install()
    try:
        return run(model, inputs), (injection.remove(), run(model, inputs))[1]
    finally:
        injection.remove()


def without_exchange(words):
    return [dataclasses.replace(word, call=Call(local=True)) if isinstance(word, Exchange) else word for word in words]


def missing_module(words):
    return [*words, split("patchify", dim=1)]


def missing_argument(words):
    return [*words, split("transformer_blocks.*:rope", dim=1)]


def gathered_twice(words):
    return [*words, gather("norm_out", dim=1)]


def cut_after_the_gather(words):
    """The unpatchify would make one sample of what is left of two."""
    return [*(word for word in words if not isinstance(word, Gather)), gather("norm_out", dim=1), split("proj_out", dim=1)]


def wrong_sizes():
    messages = []
    for change_words in (gathered_twice, cut_after_the_gather):
        with pytest.raises(UnsupportedError) as refusal:
            with_plan(change_words, "pixart")
        messages.append(str(refusal.value))
    return messages


def test_an_output_of_another_size_is_refused_in_the_same_words(ranks):
    one, other = ranks(2, wrong_sizes)
    assert one == other
    assert "proj_out has 60, 60 tokens on the ranks where the shard plan expects 30, 30." in one[0]
    assert "its output has 1, 1 samples on the ranks where the shard plan expects 2, 2." in one[1]


def never_gathered():
    model, inputs = build("cogvideox")
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    model.proj_out._forward_hooks.clear()  # as when a library rebuilds the layer and loses its hook
    with pytest.raises(RuntimeError, match="CogVideoXTransformer3DModel returned without gathering proj_out"):
        run(model, inputs)
    return True


def test_a_missing_gather_is_an_error_not_half_the_channels(ranks):
    assert all(ranks(2, never_gathered))


def mismatches():
    for change_words, what in (
        (missing_module, "no submodule 'patchify'"),
        (missing_argument, "no argument 'rope' in the forward of 'transformer_blocks"),
    ):
        with pytest.raises(UnsupportedError, match=rf"PixArtTransformer2DModel of diffusers [\d.]+ has {what}"):
            with_plan(change_words, "pixart")
    return True


def test_a_plan_that_does_not_match_diffusers_fails_at_parallelize(ranks):
    assert all(ranks(2, mismatches))


def unexchanged():
    out, expected = with_plan(without_exchange, "pixart")
    return error(out, expected)


def test_without_exchange_the_output_differs(ranks):
    """The control of every parity test: attention over one's own piece only is seen."""
    assert min(ranks(2, unexchanged)) > 1e-3


def test_split_words_know_their_places():
    word = split("rope[0]", ":kwargs.mask", "blocks.*:temb", dim=1, stream="text")
    assert isinstance(word, Split)
    assert [str(place) for place in word.places] == ["rope[0]", ":kwargs[mask]", "blocks.*:temb"]
    with pytest.raises(ValueError, match="is not a place"):
        split("a b", dim=0)

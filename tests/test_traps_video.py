"""Mistakes that a plan for a video or audio model, or a ControlNet, can make without a crash of the model itself; and models we refuse.

Each mistake is made here on purpose: the output comes out wrong, or we refuse. The plan we have is right (test_parity).
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import diffusers
import pytest
import torch
from diffusers.models import controlnets, transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache
from test_parity import error, forward
from test_traps_image import mistaken, moved, without
from tiny import build, video_more
from tiny.tools import rand, redraw

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.inject import parallelize, plan_of
from dit_usp.mesh import init_mesh
from dit_usp.models import REFUSED, find_plan
from dit_usp.plan import Call, Count, Exchange, Gather, Replicate, Split, exchange, gather, split

# -- mistakes


def exchanged(plan, *modules, **options):
    return dataclasses.replace(plan, words=(*without(plan, Exchange).words, exchange(*modules, **options)))


def gathered(plan, place, **options):
    return dataclasses.replace(plan, words=(*(word for word in plan.words if not isinstance(word, Gather)), gather(place, **options)))


def prefix_counted_by_every_rank(plan):
    """Cosmos 3's text is on every rank, before the keys that are cut."""
    calls = {"Cosmos3AttnProcessor": (Call(local=True), Call(("image",), ("?",)))}
    return exchanged(plan, "layers.*.self_attn", calls=calls)


def context_cut(plan):
    """Wan finds the picture's tokens by their distance from the end, 512 words."""
    plan = moved(plan, "rope[0]", split("rope[0]", "rope[1]", dim=1), split(":encoder_hidden_states_image", dim=1, stream="context"))
    return exchanged(plan, "blocks.*.attn1", queries="image", keys="image")


def counts_of_the_whole(plan):
    return without(plan, Count)


def face_read_by_the_piece(plan):
    """The adapter deals out its tokens to frames by their number: any piece that can be divided by the frames is taken for all of them."""
    return without(plan, Replicate)


def first_token_put_before_every_piece(plan):
    return moved(plan, "transformer_blocks.0:hidden_states", split(":hidden_states", dim=2))


def time_token_put_before_every_piece(plan):
    return moved(plan, "transformer_blocks.0:hidden_states", split(":hidden_states", ":encoder_hidden_states", dim=-1))


def positions_uncut(plan):
    """StableAudio 3 takes the last rows of its table, as many as it has tokens."""
    return moved(plan, "transformer_blocks.*:rope")


def text_cut_before_the_mode(plan):
    return moved(
        plan,
        "transformer_blocks.0:encoder_hidden_states",
        split(":encoder_hidden_states", dim=1, stream="text"),
        split(":txt_ids", dim=0, stream="text"),
    )


def times_cut_for_all_samples_at_once(plan):
    return moved(plan, "temporal_transformer_blocks.*:timestep", split("temporal_transformer_blocks.*:timestep", dim=0, stream="times"))


def tiles_chosen_from_the_piece(plan):
    return without(plan, Replicate)


def collected_after_the_text_is_cut_off(plan):
    return gathered(plan, "proj_out", dim=1)


def collected_after_the_first_token_is_dropped(plan):
    return gathered(plan, "postprocess_conv", dim=2)


def mask_cut_by_rows(plan):
    return moved(plan, "transformer_blocks.*.attn1:attention_mask", split("transformer_blocks.*.attn1:attention_mask", dim=1))


def mask_uncut(plan):
    return moved(plan, "transformer_blocks.*:attention_mask")


def times_uncut(plan):
    words = [without_place(word, ":timestep") for word in plan.words]
    return dataclasses.replace(plan, words=tuple(words))


def without_place(word, place):
    return dataclasses.replace(word, places=tuple(p for p in word.places if str(p) != place)) if isinstance(word, Split) else word


def mask_of_the_piece(plan):
    return exchanged(plan, "transformer_blocks.*.attn")


WRONG = [
    ("cosmos3", prefix_counted_by_every_rank),
    ("wan_i2v", context_cut),
    ("hunyuan_video_i2v", counts_of_the_whole),
    ("stable_audio3", positions_uncut),
]
STOPPED = [
    ("helios", counts_of_the_whole, "191 tokens where the shard plan expects"),
    ("stable_audio", first_token_put_before_every_piece, "37 tokens where the shard plan expects image 38"),
    ("minimax_music3", time_token_put_before_every_piece, "tokens where the shard plan expects"),
    ("flux_controlnet_union", text_cut_before_the_mode, "tokens where the shard plan expects text 7"),
    ("latte", times_cut_for_all_samples_at_once, "invalid"),
    ("kandinsky6_sr", tiles_chosen_from_the_piece, "must match"),
    ("consisid", collected_after_the_text_is_cut_off, "where the shard plan expects 90, 90"),
    ("stable_audio", collected_after_the_first_token_is_dropped, "where the shard plan expects 19, 19"),
    ("ltx2_condition", mask_cut_by_rows, "attn_mask has 53 rows|attn_mask has 52 rows"),
    ("allegro", mask_uncut, "attn_mask has 1 rows"),
    ("ltx_i2v", times_uncut, "must match"),
    ("wan_ti2v", times_uncut, "must match"),
    ("hunyuan_video15", mask_of_the_piece, "a column for each of the 120 keys"),
]


@pytest.mark.parametrize(("name", "mistake"), WRONG)
def test_the_obvious_plan_is_wrong(ranks, name, mistake):
    for worst in ranks(2, mistaken, name, mistake):
        assert worst > 1e-3


@pytest.mark.parametrize(("name", "mistake", "message"), STOPPED)
def test_the_obvious_plan_is_stopped(ranks, name, mistake, message):
    for refusal in ranks(2, mistaken, name, mistake):
        assert re.search(message, refusal)


def face_by_the_piece():
    """90 tokens: each of two pieces can be divided by the 3 frames."""
    return mistaken("wan_animate", face_read_by_the_piece, width=6)


def test_a_face_read_by_the_piece_is_wrong(ranks):
    assert min(ranks(2, face_by_the_piece)) > 1e-3


# -- what is right only on the whole


def other_words():
    """A second prompt of Mochi's, of the same shape, whose mask keeps other words."""
    model, inputs = build("mochi")
    others = inputs | dict(encoder_attention_mask=torch.arange(9)[None] < torch.tensor([[3], [9]]))
    expected = [forward(model, kind)[0] for kind in (inputs, others, inputs)]
    parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
    return max(error(forward(model, kind)[0], e) for kind, e in zip((inputs, others, inputs), expected, strict=True))


def test_another_prompt_of_the_same_shape_keeps_other_words(ranks):
    assert max(ranks(2, other_words)) <= 1e-5


def refiner_steps(model, inputs):
    """What the refiner's pipeline does: keys of a first chunk become the sink, those of a second one the history that a third one sees."""
    cache, outputs = SanaWMRefinerKVCache(2), []
    angles = rand(2, 4, 105, 4, seed=9)
    cache.sink_pe = (angles.cos(), angles.sin())
    for mode in ("capture_pre_rope", "inject_and_capture_post_rope", "inject"):
        outputs += model(**inputs, kv_cache=cache, kv_cache_mode=mode, return_dict=False)
        for i in range(2):
            layer = cache.get(i)
            if mode == "capture_pre_rope":
                layer.store_sink(*layer.get_captured_pre_rope())
            elif mode == "inject_and_capture_post_rope":
                layer.store_history(*(kept[:, -41:] for kept in layer.get_captured_post_rope()))  # trimmed by numbers of the whole
    return outputs


def refined(config):
    model, inputs = build("sana_wm_refiner")
    with torch.no_grad():
        expected = refiner_steps(model, inputs)
        parallelize(model, init_mesh(config, "cpu"))
        out = refiner_steps(model, inputs)
    return max(error(o, e) for o, e in zip(out, expected, strict=True))


@pytest.mark.parametrize(("size", "config"), [(2, ParallelConfig(2)), (2, ParallelConfig(1, 2)), (4, ParallelConfig(2, 2))])
def test_the_refiners_cache_stays_whole(ranks, size, config):
    assert max(ranks(size, refined, config)) <= 1e-5


def far_steps(model, inputs):
    """What AnyFlow's causal pipeline does: the first chunk's keys are kept, the second chunk sees them."""
    cache = [{name: torch.zeros(2, 2, 3, 72, 16) for name in ("compressed_cache", "full_cache")} for _ in range(2)]
    first, second = inputs["hidden_states"][:, :1], inputs["hidden_states"][:, 1:2]
    times = dict(timestep=inputs["timestep"][:, :1], r_timestep=inputs["r_timestep"][:, :1], encoder_hidden_states=inputs["encoder_hidden_states"])
    model(first, chunk_partition=[1], **times, kv_cache=cache, kv_cache_flag={"is_cache_step": True}, return_dict=False)
    flags = {"is_cache_step": False, "num_cached_chunks": 1}
    return model(second, chunk_partition=[1, 1], **times, kv_cache=cache, kv_cache_flag=flags, return_dict=False)[0]


def far_cached():
    model, inputs = build("anyflow_far")
    with torch.no_grad():
        expected = far_steps(model, inputs)
        parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
        return error(far_steps(model, inputs), expected)


def test_a_chunk_sees_the_kept_keys(ranks):
    assert max(ranks(2, far_cached)) <= 1e-5


# -- refusals


def refusals():
    """Calls that only one process can answer, each refused before anything is exchanged."""
    messages = []
    for name, extra in (
        ("kandinsky5", dict(sparse_params={"to_fractal": False})),
        ("sana_wm", dict(frame_valid_mask=torch.ones(2, 4))),
    ):
        model, inputs = build(name)
        parallelize(model, init_mesh(ParallelConfig(2), "cpu"))
        with pytest.raises(UnsupportedError) as refusal:
            forward(model, inputs | extra)
        messages.append(str(refusal.value))
    return messages


def test_calls_that_cannot_be_shared_are_refused(ranks):
    for nabla, frames in ranks(2, refusals):
        assert nabla.startswith("Kandinsky5Transformer3DModel with sparse_params cannot be shared over ranks: its blocks of attention are chosen")
        assert frames.startswith("SanaWMTransformer3DModel with frame_valid_mask")


def window_of_another_backend(config, backend):
    """With a flash-attn package, ACE-Step gives the kernel a window, which would be counted from the piece's own first token."""
    model, inputs = build("ace_step")
    parallelize(model, init_mesh(config, "cpu"))
    for layer in model.layers:
        layer.self_attn.processor._attention_backend = backend
    with pytest.raises(UnsupportedError, match="AceStepTransformer1DModel: its window of attention"):
        forward(model, inputs)
    return True


def test_a_window_is_left_to_torchs_own_backends(ranks):
    assert all(ranks(2, window_of_another_backend, ParallelConfig(2), "flex"))
    assert all(ranks(2, window_of_another_backend, ParallelConfig(1, 2), "sage"))


def few_words():
    """Motif's decoder holds its latents twice and no text: where the text is too short to be cut, its keys cannot be told apart."""
    model, inputs = video_more.motif_decoder()
    words = dict(encoder_hidden_states=rand(2, 2, 16, seed=2), encoder_attention_mask=torch.ones(2, 2))
    parallelize(redraw(model), init_mesh(ParallelConfig(3), "cpu"))
    with pytest.raises(UnsupportedError, match="MotifVideoTransformer3DModel: 2 tokens of text on 3 ranks"):
        forward(model, inputs | words)
    return True


def test_too_few_words_are_refused(ranks):
    assert all(ranks(3, few_words))


def classes(package):
    """The models that a package of diffusers defines."""
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls.__module__ == module.__name__:
                yield name


def test_every_transformer_has_a_plan_or_a_reason():
    names = list(classes(transformers))
    assert len(names) > 70
    assert [name for name in names if not find_plan(name) and name not in REFUSED] == []
    assert [name for name in REFUSED if find_plan(name)] == []


def test_every_controlnet_of_transformer_blocks_has_a_plan():
    unets = {"ControlNetModel", "SparseControlNetModel", "ControlNetUnionModel", "ControlNetXSAdapter", "UNetControlNetXSModel"}
    assert {name for name in classes(controlnets) if not find_plan(name) and "Multi" not in name} == unets


def test_a_refused_class_says_why():
    model = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=4, num_layers=1, embedding_dim=8, num_embeddings=5)
    with pytest.raises(UnsupportedError, match="PriorTransformer cannot be shared over ranks: it has about 81 tokens"):
        plan_of(model)

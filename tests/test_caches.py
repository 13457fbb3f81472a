"""Keys and values that one forward leaves for the next: sharded together, both forwards equal one process."""

import pytest
import torch
from diffusers.hooks.text_kv_cache import TextKVCacheConfig
from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from test_parity import error
from tiny import image_more, image_rest
from tiny.tools import redraw

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.inject import parallelize, unparallelize
from dit_usp.mesh import init_mesh

LAYOUTS = ((2, ParallelConfig(2)), (2, ParallelConfig(1, 2)), (3, ParallelConfig(3)), (4, ParallelConfig(2, 2)))


def flux2_steps(references=13):
    """Klein: the first forward caches its reference tokens, two more look at them."""
    model, first = image_more.flux2(references=references)
    for block in model.transformer_blocks:
        block.attn.set_processor(Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    later = image_more.flux2()[1]

    def steps():
        output, cache = model(**first, kv_cache_mode="extract", num_ref_tokens=references, return_dict=False)
        return [output] + [model(**later, kv_cache=cache, kv_cache_mode="cached", return_dict=False)[0] for _ in range(2)]

    return model, steps


def glm_steps():
    """Two condition images of different heights are written, then one forward reads them and one skips them."""
    model, inputs = image_rest.glm_image(batch=1)
    conditions = [image_rest.glm_image(batch=1, height=height)[1] for height in (4, 6)]

    def steps():
        cache = GlmImageKVCache(2)
        outputs = []
        cache.set_mode("write")
        for condition in conditions:  # the pipeline writes them without text
            words = condition["encoder_hidden_states"][:, :0]
            outputs += model(**condition | dict(encoder_hidden_states=words), kv_caches=cache, return_dict=False)
        for mode in ("read", "skip", "read"):
            cache.set_mode(mode)
            outputs += model(**inputs, kv_caches=cache, return_dict=False)
        return outputs

    return model, steps


def qwen21_steps():
    model, inputs = image_more.qwen21()

    def steps():
        cache = QwenImage21KVCache(2)
        return [model(**inputs, kv_cache=cache, kv_cache_mode=mode, return_dict=False)[0] for mode in ("extract", "cached", "cached")]

    return model, steps


def nucleus_steps():
    """The text's keys are computed once and kept by a hook."""
    model, inputs = image_rest.nucleus()
    model.enable_cache(TextKVCacheConfig())

    def steps():
        outputs = []
        for _ in range(2):
            with model.cache_context("cond"):
                outputs += model(**inputs, return_dict=False)
        return outputs

    return model, steps


def cached(make, config):
    model, steps = make()
    redraw(model)
    with torch.no_grad():
        expected = steps()
        parallelize(model, init_mesh(config, "cpu"))
        out = steps()
        unparallelize(model)
    assert [o.shape for o in out] == [e.shape for e in expected]
    return max(error(o, e) for o, e in zip(out, expected, strict=True))


@pytest.mark.parametrize("make", [flux2_steps, glm_steps, qwen21_steps, nucleus_steps])
def test_later_forwards_see_what_earlier_ones_cached(ranks, make):
    for world_size, config in LAYOUTS:
        assert max(ranks(world_size, cached, make, config)) <= 1e-5, config


def too_few_references():
    model, steps = flux2_steps(references=1)
    parallelize(redraw(model), init_mesh(ParallelConfig(2), "cpu"))
    with pytest.raises(UnsupportedError, match="1 tokens of reference are too few for 2 ranks"):
        steps()
    return True


def test_fewer_references_than_ranks_are_refused(ranks):
    assert all(ranks(2, too_few_references))

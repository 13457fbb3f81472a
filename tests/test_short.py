"""Fewer tokens than ranks: the output of one process, or the same refusal on every rank. Never a rank that waits for one that has nothing."""

import pytest
import torch
from test_parity import error, forward
from tiny import build
from tiny.tools import HEIGHT, WIDTH
from torch.utils._pytree import tree_map_only

from dit_usp.config import ParallelConfig
from dit_usp.errors import UnsupportedError
from dit_usp.inject import parallelize
from dit_usp.mesh import init_mesh

# One case for each class that cuts its text, with a mask where there is one.
WITH_TEXT = ("sd35", "flux", "flux_masked", "flux2", "chroma", "bria", "bria_fibo", "longcat_image", "ovis_image", "flux3_edit", "qwen_edit")
WITH_TEXT += ("cogview4_masked", "cogview3", "auraflow", "prx", "hunyuan_refiner", "glm_image_masked", "joyimage_mrope", "joyimage_plus", "cogvideox")
WITH_TEXT += ("consisid", "mochi", "easyanimate", "hunyuan_video_i2v", "hunyuan_video15", "framepack", "motif_decoder", "flux_controlnet_union")
WITH_TEXT += ("sd3_controlnet", "qwen_controlnet")
REFUSED = {"flux3_edit": "1 tokens of text are too few for 3 ranks; each needs one", "motif_decoder": "1 tokens of text on 3 ranks; use fewer ranks"}
NAMES = ("encoder_hidden_states", "encoder_hidden_states_mask", "encoder_attention_mask", "attention_mask", "txt_ids", "text_encoder_layers")


def one_word(inputs):
    """The inputs with the first word of every caption alone."""
    words = inputs["encoder_hidden_states"].shape[1]

    def shortened(tensor):
        for dim, size in enumerate(tensor.shape):
            if size == words:
                tensor = tensor.narrow(dim, 0, 1)
            elif size == words + HEIGHT * WIDTH:  # the words, then the picture
                tensor = tensor.narrow(dim, words - 1, 1 + HEIGHT * WIDTH)
        return tensor

    return {
        name: tree_map_only(torch.Tensor, shortened, value) if name in (*NAMES, "joint_attention_kwargs") else value for name, value in inputs.items()
    }


def outcome(name, shortened):
    """The error against one process, or what the model is refused with."""
    model, inputs = build(name)
    inputs = shortened(inputs)
    expected = forward(model, inputs)
    parallelize(model, init_mesh(ParallelConfig(1, 3), "cpu"))
    try:
        out = forward(model, inputs)
    except UnsupportedError as refusal:
        return str(refusal)
    return max(error(o, e) for o, e in zip(out, expected, strict=True))


@pytest.mark.parametrize("name", WITH_TEXT)
def test_one_word_on_three_ranks(ranks, name):
    for found in ranks(3, outcome, name, one_word):
        assert REFUSED[name] in found if name in REFUSED else found <= 1e-5


def one_token(inputs):
    """A picture of one token, and one word."""
    inputs = one_word(inputs) if "txt_ids" in inputs else inputs
    if "img_ids" in inputs:
        return inputs | {"hidden_states": inputs["hidden_states"][:, :1], "img_ids": inputs["img_ids"][:1]}
    return inputs | {"hidden_states": inputs["hidden_states"][..., :2, :2]}


@pytest.mark.parametrize("name", ["flux", "pixart", "sd3", "hunyuan_image"])
def test_a_picture_of_fewer_tokens_than_ranks_is_refused(ranks, name):
    for found in ranks(3, outcome, name, one_token):
        assert "1 tokens of image are too few for 3 ranks; each needs one" in found


def two_rows(inputs):
    return inputs | {"hidden_states": inputs["hidden_states"][..., :4, :], "controlnet_block_samples": None}


def test_fewer_rows_than_ranks_are_refused(ranks):
    for found in ranks(3, outcome, "sana", two_rows):
        assert "2 rows or frames of image are too few for 3 ranks; each needs one" in found


def two_tokens_a_rank(inputs):
    return inputs | {"hidden_states": inputs["hidden_states"][..., :2, :10], "image_rotary_emb": inputs["image_rotary_emb"][:1, :5]}


def test_a_logarithm_of_one_token_is_refused(ranks):
    for found in ranks(3, outcome, "lumina_next", two_tokens_a_rank):
        assert "5 tokens of image are too few for 3 ranks; each needs two" in found

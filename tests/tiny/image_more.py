"""Tiny image transformers, continued: those that came after FLUX."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tiny.tools import HEIGHT, WIDTH, Inputs, rand, text_mask, times

TOKENS = HEIGHT * WIDTH


def grid(first: float = 0, dims: int = 3) -> Tensor:
    """Positions of the image tokens: (tokens, dims), the row and the column in places 1 and 2."""
    rows, columns = torch.arange(HEIGHT).float(), torch.arange(WIDTH).float()
    positions = torch.cartesian_prod(torch.full((1,), float(first)), rows, columns)
    return torch.cat([positions, torch.zeros(TOKENS, dims - 3)], 1)


# -- the FLUX family


def flux2(batch: int = 2, references: int = 0) -> tuple[nn.Module, Inputs]:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    image = grid(dims=4)
    places = torch.cat([grid(10, dims=4)[:references], image])
    return model, dict(
        hidden_states=rand(batch, references + TOKENS, 8),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=times(batch),
        guidance=torch.full((batch,), 4.0),
        img_ids=places.expand(batch, -1, -1),
        txt_ids=torch.arange(7.0)[None, :, None].expand(batch, -1, 4),
    )


def chroma(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Its mask of 0 and 1 is added to the logits, and blocks take ControlNet residuals."""
    model = diffusers.ChromaTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    residuals = [rand(batch, TOKENS, 64, seed=seed) for seed in (6, 7)]
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=times(batch),
        img_ids=grid(),
        txt_ids=torch.zeros(7, 3),
        attention_mask=torch.cat([text_mask(batch, 7).float(), torch.ones(batch, TOKENS)], 1),
        controlnet_block_samples=residuals,
        controlnet_single_block_samples=residuals[:1],
    )


def bria(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.BriaTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=times(batch),
        img_ids=grid(),
        txt_ids=torch.zeros(7, 3),
        controlnet_block_samples=[rand(batch, TOKENS, 64, seed=seed) for seed in (6, 7)],
    )


def bria_fibo(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.BriaFiboTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=12,
    )
    keys = torch.cat([text_mask(batch, 7), torch.ones(batch, TOKENS)], 1).bool()
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        text_encoder_layers=[rand(batch, 7, 12, seed=20 + i) for i in range(4)],
        timestep=times(batch),
        img_ids=grid(),
        txt_ids=torch.zeros(7, 3),
        joint_attention_kwargs={"attention_mask": keys[:, None, None, :]},
    )


def longcat_image(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.LongCatImageTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        axes_dims_rope=[4, 6, 6],
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=times(batch),
        img_ids=grid(1),
        txt_ids=torch.arange(7.0)[:, None].expand(-1, 3),
    )


def ovis_image(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.OvisImageTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    return model, longcat_image(batch)[1]


def flux3(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.Flux3Transformer2DModel(
        in_channels=8,
        cond_in_channels=6,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        timestep_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=times(batch),
        img_ids=grid(dims=4),
        txt_ids=torch.arange(7.0)[:, None].expand(-1, 4),
    )


def flux3_edit(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """With reference images: a third stream."""
    model, inputs = flux3(batch)
    return model, inputs | dict(image_cond_hidden_states=rand(batch, 13, 6, seed=4), image_cond_ids=grid(10, dims=4)[:13])


# -- Qwen


def qwen(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    """Captions of different lengths, ControlNet residuals."""
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        **config,
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 16),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        encoder_hidden_states_mask=text_mask(batch, 9),
        timestep=times(batch),
        img_shapes=[[(1, HEIGHT, WIDTH)]] * batch,
        controlnet_block_samples=[rand(batch, TOKENS, 64, seed=6)],
    )


def qwen_edit(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """zero_cond_t: the reference image's tokens are modulated from time 0."""
    model, inputs = qwen(batch, zero_cond_t=True)
    shapes = [(1, HEIGHT, WIDTH), (1, 3, 5)]
    tokens = TOKENS + 15
    return model, inputs | dict(
        hidden_states=rand(batch, tokens, 16), img_shapes=[shapes] * batch, controlnet_block_samples=[rand(batch, tokens, 64, seed=6)]
    )


def qwen21(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """One condition image of 2 x 4 tokens amid the text, then the target of 6 x 10, four tokens to a slot; attention is causal by blocks."""
    model = diffusers.QwenImage21Transformer2DModel(
        in_channels=8, out_channels=8, num_layers=2, attention_head_dim=16, num_attention_heads=4, context_in_dim=24, axes_dims_rope=(4, 6, 6)
    )
    slots = torch.tensor([0, 0, 0, 1, 1, 0, 0] + [1] * 15).bool()
    valid = torch.ones(batch, 7).bool()
    valid[1:, -1] = False
    return model, dict(
        hidden_states=rand(batch, 8 + 60, 8),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        timestep=times(batch),
        img_shapes=[[(1, 2, 4), (1, 6, 10)]] * batch,
        img_mask=slots.expand(batch, -1),
        encoder_hidden_states_mask=valid,
    )


# -- one joint stream


def zimage(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    """Lists of samples: images of two sizes, captions of two lengths."""
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 64, 64],
        **config,
    )
    sizes = [(2 * HEIGHT, 2 * WIDTH), (4, 6)]
    return model, dict(
        x=[rand(4, 1, *sizes[i % 2], seed=i) for i in range(batch)],
        t=times(batch),
        cap_feats=[rand(7 + 30 * (i % 2 == 0), 24, seed=10 + i) for i in range(batch)],
    )


def zimage_controlled(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A ControlNet's residuals, by the number of their layer."""
    model, inputs = zimage(batch)
    return model, inputs | dict(controlnet_block_samples={0: rand(batch, 128, 64, seed=6)})


def zimage_omni(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Condition images and their SigLIP tokens: clean tokens are modulated from time 1."""
    model, _ = zimage(batch, siglip_feat_dim=12)
    return model, dict(
        x=[[rand(4, 1, 4, 6, seed=i), rand(4, 1, 2 * HEIGHT, 2 * WIDTH, seed=20 + i)] for i in range(batch)],
        t=times(batch),
        cap_feats=[[rand(5, 24, seed=10 + i), rand(9 + 30 * (i % 2), 24, seed=30 + i)] for i in range(batch)],
        siglip_feats=[[rand(3, 3, 12, seed=40 + i), None] for i in range(batch)],
        image_noise_mask=[[0, 1]] * batch,
    )


def lumina2(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=64,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 32, 32),
        cap_feat_dim=24,
    )
    return model, dict(
        hidden_states=rand(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        timestep=times(batch),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        encoder_attention_mask=text_mask(batch, 9),
    )


def omnigen(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """[condition tokens | time | output image], with a mask over rows and columns."""
    model = diffusers.OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        num_layers=2,
        pad_token_id=0,
        vocab_size=50,
        rope_scaling={"long_factor": [1.0] * 8, "short_factor": [1.0] * 8},
        pos_embed_max_size=16,
        time_step_dim=32,
    )
    length = 11 + 1 + TOKENS
    mask = torch.tril(torch.ones(batch, length, length))
    mask[:, 12:, 12:] = 1
    mask[1:, :, :2] = 0  # left padding of the shorter prompt
    mask[1:, :2, :2] = 1
    return model, dict(
        hidden_states=rand(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        timestep=times(batch),
        input_ids=torch.arange(11).expand(batch, -1) + 1,
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=mask,
        position_ids=torch.arange(length).expand(batch, -1),
    )


def omnigen_edit(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """An image of 2 x 2 tokens among the condition tokens of every sample."""
    model, inputs = omnigen(batch)
    images = [rand(1, 4, 4, 4, seed=i) for i in range(batch)]
    return model, inputs | dict(input_img_latents=images, input_image_sizes={i: [[3, 7]] for i in range(batch)})


def krea2(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.Krea2Transformer2DModel(
        in_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        timestep_embed_dim=32,
        text_hidden_dim=24,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 8),
        encoder_hidden_states=rand(batch, 7, 3, 24, seed=2),
        timestep=times(batch),
        position_ids=torch.cat([torch.zeros(7, 3), grid()]),
        encoder_attention_mask=text_mask(batch, 7).bool(),
    )


def ideogram4(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """[text | image] in one packed stream; segments keep padding apart."""
    model = diffusers.Ideogram4Transformer2DModel(
        in_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        intermediate_size=64,
        adaln_dim=32,
        llm_features_dim=24,
        rope_theta=10000,
        mrope_section=(3, 3, 2),
    )
    length = 7 + TOKENS
    indicator = torch.tensor([3] * 7 + [2] * TOKENS).expand(batch, -1)
    segments = torch.cat([1 - text_mask(batch, 7), torch.zeros(batch, TOKENS, dtype=torch.long)], 1)
    return model, dict(
        hidden_states=rand(batch, length, 8),
        timestep=times(batch),
        encoder_hidden_states=rand(batch, length, 24, seed=2),
        position_ids=torch.cat([torch.arange(7)[:, None].expand(-1, 3), grid(7).long()]).expand(batch, -1, -1),
        segment_ids=segments,
        indicator=indicator,
    )


def ernie_image(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Tokens first, then the batch."""
    model = diffusers.ErnieImageTransformer2DModel(
        hidden_size=64,
        num_attention_heads=4,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=8,
        out_channels=8,
        text_in_dim=24,
        rope_axes_dim=(4, 6, 6),
    )
    return model, dict(
        hidden_states=rand(batch, 8, HEIGHT, WIDTH),
        timestep=300 * times(batch),
        text_bth=rand(batch, 7, 24, seed=2),
        text_lens=text_mask(batch, 7).sum(1),
    )


def bria_fibo2(batch: int = 2, masked: bool = False) -> tuple[nn.Module, Inputs]:
    """[gist | image | context image], and text of its own for one layer."""
    model = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        cap_feat_dim=24,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=12,
        gist_step=2,
        gist_min_text_len=2,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(64, 32, 32),
    )
    return model, dict(
        hidden_states=rand(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        timestep=times(batch),
        encoder_hidden_states=rand(batch, 2, 9, 24, seed=2),
        context_latents=[rand(batch, 4, 4, 6, seed=3)],
    )


def bria_fibo2_masked(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Captions of different lengths make gists of different lengths: a mask, and the gist comes last."""
    model, inputs = bria_fibo2(batch)
    lengths = torch.tensor([9 - 6 * (i % 2) for i in range(batch)])
    return model, inputs | dict(encoder_attention_mask=torch.arange(9)[None] < lengths[:, None])


CASES = (
    flux2,
    chroma,
    bria,
    bria_fibo,
    longcat_image,
    ovis_image,
    flux3,
    flux3_edit,
    qwen,
    qwen_edit,
    qwen21,
    zimage,
    zimage_controlled,
    zimage_omni,
    lumina2,
)
CASES += (omnigen, omnigen_edit, krea2, ideogram4, ernie_image, bria_fibo2, bria_fibo2_masked)
TINY = {make.__name__: make for make in CASES}

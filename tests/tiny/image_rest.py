"""Tiny image transformers: text and image as two streams, cross-attention, linear attention."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import nn

from tiny.tools import HEIGHT, WIDTH, Inputs, rand, text_mask, times

TOKENS = HEIGHT * WIDTH


def latents(batch: int, channels: int = 4) -> torch.Tensor:
    return rand(batch, channels, 2 * HEIGHT, 2 * WIDTH)


def sizes(batch: int) -> Inputs:
    """SDXL's conditions on sizes."""
    return dict(original_size=rand(batch, 2, seed=3), target_size=rand(batch, 2, seed=4), crop_coords=torch.zeros(batch, 2))


def hidream(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Not square: the image's tokens are padded to max_resolution. Experts take the tokens one by one."""
    model = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        caption_channels=[24, 20],
        text_emb_dim=16,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(16, 20),
        llama_layers=[0, 1, 1],
    )
    return model, dict(
        hidden_states=latents(batch),
        timesteps=300 * times(batch),
        encoder_hidden_states_t5=rand(batch, 5, 24, seed=2),
        encoder_hidden_states_llama3=rand(2, batch, 7, 20, seed=3),
        pooled_embeds=rand(batch, 16, seed=4),
    )


def hidream_square(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """No padding, no mask."""
    model, inputs = hidream(batch)
    return model, inputs | dict(hidden_states=rand(batch, 4, 14, 14))


def cogview4(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4, text_embed_dim=24, time_embed_dim=32,
        condition_dim=8, rope_axes_dim=(64, 64),
    )  # fmt: skip
    return model, dict(hidden_states=latents(batch), encoder_hidden_states=rand(batch, 7, 24, seed=2), timestep=300 * times(batch), **sizes(batch))


def cogview4_masked(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Its mask of 0 and 1 is added to the logits."""
    model, inputs = cogview4(batch)
    return model, inputs | dict(attention_mask=text_mask(batch, 7))


def cogview3(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4, text_embed_dim=24, time_embed_dim=32,
        condition_dim=8, pos_embed_max_size=16, sample_size=16,
    )  # fmt: skip
    return model, dict(hidden_states=latents(batch), encoder_hidden_states=rand(batch, 7, 24, seed=2), timestep=300 * times(batch), **sizes(batch))


def auraflow(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=64,
        pos_embed_max_size=256,
    )
    return model, dict(hidden_states=latents(batch), encoder_hidden_states=rand(batch, 7, 24, seed=2), timestep=times(batch))


def lumina_next(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """The pipeline's own arguments: logits scaled by the logarithm of the number of tokens."""
    model = diffusers.LuminaNextDiT2DModel(
        in_channels=4, hidden_size=64, num_layers=2, num_attention_heads=4, num_kv_heads=2, multiple_of=16, cross_attention_dim=24
    )
    return model, dict(
        hidden_states=latents(batch),
        timestep=times(batch),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        encoder_mask=text_mask(batch, 9),
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(16, 16, 16),
        cross_attention_kwargs={"base_sequence_length": 16},
    )


def prx(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.PRXTransformer2DModel(in_channels=4, context_in_dim=24, hidden_size=64, mlp_ratio=2.0, num_heads=4, depth=2, axes_dim=[8, 8])
    return model, dict(
        hidden_states=latents(batch),
        timestep=times(batch),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        attention_mask=text_mask(batch, 9).bool(),
    )


def hunyuan_dit(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Four layers: the last one has a skip from the first, and a ControlNet residual on it."""
    model = diffusers.HunyuanDiT2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=64,
        num_layers=4,
        mlp_ratio=2.0,
        cross_attention_dim=24,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=7,
        text_len_t5=5,
    )
    angles = rand(TOKENS, 16, seed=9)
    return model, dict(
        hidden_states=latents(batch),
        timestep=300 * times(batch),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        text_embedding_mask=text_mask(batch, 7),
        encoder_hidden_states_t5=rand(batch, 5, 16, seed=3),
        text_embedding_mask_t5=text_mask(batch, 5),
        image_meta_size=rand(batch, 6, seed=4),
        style=torch.zeros(batch, dtype=torch.long),
        image_rotary_emb=(angles.cos(), angles.sin()),
        controlnet_block_samples=[rand(batch, TOKENS, 64, seed=6)],
    )


def hunyuan_image(batch: int = 2, text: int = 9) -> tuple[nn.Module, Inputs]:
    """Two text encoders, whose words are put in order by their masks."""
    model = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=(2, 2),
        text_embed_dim=24,
        text_embed_2_dim=12,
        rope_axes_dim=(8, 8),
    )
    return model, dict(
        hidden_states=latents(batch),
        timestep=300 * times(batch),
        encoder_hidden_states=rand(batch, text, 24, seed=2),
        encoder_attention_mask=text_mask(batch, text),
        encoder_hidden_states_2=rand(batch, 5, 12, seed=3),
        encoder_attention_mask_2=text_mask(batch, 5),
    )


def hunyuan_image_short(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Two words, fewer than ranks, and one encoder."""
    model, inputs = hunyuan_image(batch)
    words = dict(encoder_hidden_states=rand(batch, 2, 24, seed=2), encoder_attention_mask=torch.tensor([[1, 1], [1, 0]])[:batch])
    return model, inputs | words | dict(encoder_hidden_states_2=None, encoder_attention_mask_2=None)


def hunyuan_refiner(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """HunyuanImage's refiner: latents with a frame dimension."""
    model = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=16, num_layers=1, num_single_layers=1, num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=(1, 2, 2), guidance_embeds=True, text_embed_dim=24, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    inputs = hunyuan_image(batch)[1]
    words = {name: inputs[name] for name in ("timestep", "encoder_hidden_states", "encoder_attention_mask")}
    return model, words | dict(hidden_states=rand(batch, 4, 1, 2 * HEIGHT, 2 * WIDTH), guidance=torch.full((batch,), 4.0))


def glm_image(batch: int = 2, height: int = 2 * HEIGHT) -> tuple[nn.Module, Inputs]:
    model = diffusers.GlmImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4, text_embed_dim=24, time_embed_dim=32,
        condition_dim=8, prior_vq_quantizer_codebook_size=20,
    )  # fmt: skip
    tokens = height // 2 * WIDTH
    drop = torch.zeros(batch, tokens, dtype=torch.bool)
    drop[:, ::3] = True
    return model, dict(
        hidden_states=rand(batch, 4, height, 2 * WIDTH),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        prior_token_id=torch.arange(tokens).expand(batch, -1) % 20,
        prior_token_drop=drop,
        timestep=300 * times(batch),
        target_size=rand(batch, 2, seed=3),
        crop_coords=torch.zeros(batch, 2),
    )


def glm_image_masked(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model, inputs = glm_image(batch)
    return model, inputs | dict(attention_mask=text_mask(batch, 7))


def joyimage(batch: int = 2, rope_type: str = "rope") -> tuple[nn.Module, Inputs]:
    """Two items: a reference and the target."""
    model = diffusers.JoyImageEditTransformer3DModel(
        in_channels=4,
        hidden_size=64,
        num_attention_heads=4,
        text_dim=24,
        mlp_width_ratio=2.0,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
        rope_type=rope_type,
    )
    return model, dict(
        hidden_states=rand(batch, 2, 4, 1, 2 * HEIGHT, 2 * WIDTH), timestep=300 * times(batch), encoder_hidden_states=rand(batch, 7, 24, seed=2)
    )


def joyimage_mrope(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """The text has positions too."""
    return joyimage(batch, "mrope")


def joyimage_plus(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """References of several sizes: patches are padded."""
    model = diffusers.JoyImageEditPlusTransformer3DModel(
        in_channels=4, hidden_size=64, num_attention_heads=4, text_dim=24, mlp_width_ratio=2.0, num_layers=2, rope_dim_list=[4, 6, 6]
    )
    shapes = [[(1, HEIGHT, WIDTH), (1, 3, 5)], [(1, HEIGHT, WIDTH)]]
    return model, dict(
        hidden_states=rand(batch, TOKENS + 15, 4, 1, 2, 2),
        timestep=300 * times(batch),
        encoder_hidden_states=rand(batch, 7, 24, seed=2),
        encoder_hidden_states_mask=text_mask(batch, 7),
        shape_list=[shapes[i % 2] for i in range(batch)],
    )


def nucleus(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    """Experts that choose their tokens among all."""
    model = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        num_experts=4,
        moe_intermediate_dim=32,
        capacity_factors=2.0,
        **dict(dense_moe_strategy="all_moe") | config,
    )
    return model, dict(
        hidden_states=rand(batch, TOKENS, 16),
        img_shapes=[(1, HEIGHT, WIDTH)] * batch,
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        encoder_hidden_states_mask=text_mask(batch, 9).bool(),
        timestep=times(batch),
    )


def nucleus_dense(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A dense layer before one of experts, and no mask."""
    model, inputs = nucleus(batch, dense_moe_strategy="leave_first_block_dense", mlp_ratio=3.0)
    return model, inputs | dict(encoder_hidden_states_mask=None)


def sana(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    """Linear attention over all tokens, convolutions over the rows next door, ControlNet residuals."""
    model = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
        patch_size=2,
        **config,
    )
    return model, dict(
        hidden_states=latents(batch),
        encoder_hidden_states=rand(batch, 9, 24, seed=2),
        encoder_attention_mask=text_mask(batch, 9),
        timestep=300 * times(batch),
        controlnet_block_samples=(rand(batch, TOKENS, 32, seed=6),),
    )


def sana_sprint(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model, inputs = sana(batch, qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return model, inputs | dict(guidance=torch.full((batch,), 4.5))


CASES = (hidream, hidream_square, cogview4, cogview4_masked, cogview3, auraflow, lumina_next, prx, hunyuan_dit, hunyuan_image, hunyuan_image_short)
CASES += (hunyuan_refiner, glm_image, glm_image_masked, joyimage, joyimage_mrope, joyimage_plus, nucleus, nucleus_dense, sana, sana_sprint)
TINY = {make.__name__: make for make in CASES}

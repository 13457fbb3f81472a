"""Tiny transformers of the newer video models: sound beside the pictures, packed sequences, linear attention."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import nn

from tiny.tools import Inputs, rand, text_mask, times
from tiny.video import AUDIO, FRAMES, TALL, WIDE

SHAPE = (FRAMES, 2 * TALL, 2 * WIDE)


def motif(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    """A picture's tokens between the video's and the text's, and a look at the text alone in every block."""
    config = dict(enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True, image_embed_dim=6) | config
    model = diffusers.MotifVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1, num_single_layers=3, mlp_ratio=2.0,
        text_embed_dim=16, rope_axes_dim=(2, 2, 4), **config,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, 4, *SHAPE),
        timestep=1000 * times(batch),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        encoder_attention_mask=text_mask(batch, 9),
        image_embeds=rand(batch, 5, 6, seed=3),
    )


def motif_decoder(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """The last blocks start anew from the latents and attend to the first ones' result. No picture."""
    model, inputs = motif(batch, num_decoder_layers=2, image_embed_dim=None)
    return model, inputs | dict(image_embeds=None)


def kandinsky5(batch: int = 2, **config: Any) -> tuple[nn.Module, Inputs]:
    model = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=10, time_dim=8, out_visual_dim=4, model_dim=48, ff_dim=32, num_text_blocks=1,
        num_visual_blocks=2, axes_dims=(4, 4, 4), visual_cond=True, **config,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, *SHAPE, 9),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        timestep=1000 * times(batch),
        pooled_projections=rand(batch, 10, seed=3),
        visual_rope_pos=(torch.arange(FRAMES), torch.arange(TALL), torch.arange(WIDE)),
        text_rope_pos=torch.arange(9),
    )


def kandinsky5_nabla(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Attention between tiles of 8 x 8 tokens that it chooses itself, in flex_attention: for long videos."""
    model, inputs = kandinsky5(batch, attention_type="nabla")
    for block in model.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = AttentionBackendName.FLEX  # set_attention_backend sets other models' too
    near = (torch.arange(6)[:, None] - torch.arange(6)).abs() < 2
    return model, inputs | dict(
        hidden_states=rand(batch, 3, 16, 32, 9),
        visual_rope_pos=(torch.arange(3), torch.arange(8), torch.arange(16)),
        sparse_params={"sta_mask": near[None, None], "to_fractal": True, "P": 0.7},
    )


def kandinsky6(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Pictures and sound, each looking at the other."""
    model = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=10, time_dim=8, model_dim=48, ff_dim=32, num_text_blocks=1,
        num_visual_blocks=2, axes_dims=(4, 4, 4), in_audio_dim=5, out_audio_dim=5, model_dim_a=32, ff_dim_a=24, axes_dims_a=(2, 2, 4),
        visual_token_type_num_embeddings=2,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, *SHAPE, 9),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        pooled_projections=rand(batch, 10, seed=3),
        timestep=1000 * times(batch),
        audio_hidden_states=rand(batch, AUDIO, 5, seed=4),
        encoder_attention_mask=text_mask(batch, 9).bool()[:, None, None],
        visual_token_type_ids=torch.tensor([[1, 0, 0]]).expand(batch, -1),
    )


def kandinsky6_silent(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model, inputs = kandinsky6(batch)
    return model, inputs | dict(audio_hidden_states=None)


def sana_video(batch: int = 2, frames: int = 5) -> tuple[nn.Module, Inputs]:
    """Linear attention, and convolutions between neighbouring frames."""
    model = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=12, num_layers=2, num_cross_attention_heads=4,
        cross_attention_head_dim=12, cross_attention_dim=48, caption_channels=16, sample_size=8,
    )  # fmt: skip
    return model, dict(
        hidden_states=rand(batch, 4, frames, 2 * TALL, 2 * WIDE),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        timestep=1000 * times(batch),
        encoder_attention_mask=text_mask(batch, 9),
    )


def sana_video_i2v(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A time for every token: the first frame is the picture."""
    model, inputs = sana_video(batch)
    timestep = torch.full((batch, 1, 5, TALL, WIDE), 300.0)
    timestep[:, :, 0] = 0
    return model, inputs | dict(timestep=timestep)


def minimax_h3(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Text, video and sound as rows of one sequence, in any order, every row with its own modulation."""
    model = diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=4, attention_head_dim=16, hidden_size=48, num_layers=2, num_refiner_layers=1, ffn_dim=32, in_channels=2,
        audio_in_channels=5, text_dim=16, freq_dim=8, time_embed_hidden_dim=12, time_embed_dim=10, rope_freq_dim=2,
    )  # fmt: skip
    lengths = (FRAMES * TALL * WIDE, AUDIO, 9)
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(0))
    video, audio, text = order.split(lengths)
    tags = torch.zeros(sum(lengths), dtype=torch.long).index_fill(0, audio, 1).index_fill(0, text, 2)
    return model, dict(
        hidden_states=rand(batch, lengths[0], 8),
        audio_hidden_states=rand(batch, AUDIO, 5, seed=3),
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        timestep=torch.tensor([0.0, 300.0]),
        timestep_indices=(rand(sum(lengths), seed=4) > 0).long(),
        token_tags=tags,
        position_ids=torch.randint(0, 9, (sum(lengths), 3), generator=torch.Generator().manual_seed(1)),
        video_indices=video,
        audio_indices=audio,
        text_indices=text,
    )


def cosmos3() -> tuple[nn.Module, Inputs]:
    """Text that sees only what came before it; pictures and sound that see everything. Two key heads for four of queries."""
    model = diffusers.Cosmos3OmniTransformer(
        head_dim=16, hidden_size=32, intermediate_size=24, latent_channel=4, patch_latent_dim=16, num_attention_heads=4, num_hidden_layers=2,
        num_key_value_heads=2, vocab_size=30, rope_axes_dim=(4, 2, 2), sound_dim=5, sound_gen=True,
    )  # fmt: skip
    text, frame = 9, TALL * WIDE
    video = text + torch.arange(FRAMES * frame)
    audio = text + FRAMES * frame + torch.arange(AUDIO)
    total = text + FRAMES * frame + AUDIO
    return model, dict(
        input_ids=torch.arange(text) * 3,
        text_indexes=torch.arange(text),
        position_ids=torch.randint(0, 20, (3, total), generator=torch.Generator().manual_seed(1)),
        und_len=text,
        sequence_length=total,
        vision_tokens=[rand(1, 4, FRAMES, 2 * TALL, 2 * WIDE)],
        vision_token_shapes=[(FRAMES, TALL, WIDE)],
        vision_sequence_indexes=video,
        vision_mse_loss_indexes=video[frame:],
        vision_timesteps=torch.full((2 * frame,), 300.0),
        vision_noisy_frame_indexes=[torch.tensor([1, 2])],
        sound_tokens=[rand(5, AUDIO, seed=3)],
        sound_token_shapes=[(AUDIO, 1, 1)],
        sound_sequence_indexes=audio,
        sound_mse_loss_indexes=audio,
        sound_timesteps=torch.full((AUDIO,), 300.0),
        sound_noisy_frame_indexes=[torch.arange(AUDIO)],
    )


def kandinsky6_sr(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Attention between tiles that it chooses itself, in flex_attention."""
    model = diffusers.Kandinsky6SRTransformer3DModel(
        in_visual_dim=4, out_visual_dim=4, time_dim=8, model_dim=48, ff_dim=32, num_visual_blocks=2, axes_dims=(4, 6, 6), nabla_window=(1, 1, 1),
    )  # fmt: skip
    return model, dict(hidden_states=rand(batch, 3, 8, 16, 9), timestep=1000 * times(batch))


def anyflow_far(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Chunks of frames that see no later ones; the oldest chunk is coarser."""
    model = diffusers.AnyFlowFARTransformer3DModel(
        patch_size=(1, 2, 2), compressed_patch_size=(1, 4, 4), full_chunk_limit=2, num_attention_heads=3, attention_head_dim=16, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=24, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    times = torch.linspace(100, 900, batch * 4).view(batch, 4)
    return model, dict(
        hidden_states=rand(batch, 4, 4, 12, 12),
        timestep=times,
        r_timestep=times - 50,
        encoder_hidden_states=rand(batch, 9, 16, seed=2),
        chunk_partition=[1, 1, 2],
    )


def sana_wm(batch: int = 2) -> tuple[nn.Module, Inputs]:
    """A recurrence over frames in the first layer, softmax attention in the second, a camera's path beside."""
    model = diffusers.SanaWMTransformer3DModel(
        in_channels=4, num_layers=2, hidden_size=64, num_attention_heads=4, softmax_every_n=2, linear_head_dim=16, caption_channels=16,
        chunk_plucker_channels=6, mlp_ratio=2.0,
    )  # fmt: skip
    path = torch.cat([torch.eye(4).flatten(), torch.tensor([9.0, 9.0, 3.5, 2.5])]).repeat(batch, 4, 1)
    path[:, :, 3] += torch.arange(4) / 4  # to the right
    return model, dict(
        hidden_states=rand(batch, 4, 4, TALL, WIDE),
        camera_conditions=path,
        timestep=torch.linspace(300, 600, batch).long()[:, None, None] * torch.tensor([0, 1, 1, 1]),
        encoder_hidden_states=rand(batch, 1, 9, 16, seed=2),
        mask=text_mask(batch, 9)[:, None, None],
        chunk_plucker=rand(batch, 6, 4, TALL, WIDE, seed=3),
    )


def sana_wm_refiner(batch: int = 2) -> tuple[nn.Module, Inputs]:
    model = diffusers.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=6, out_channels=6, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, audio_in_channels=5,
        audio_out_channels=5, audio_num_attention_heads=4, audio_attention_head_dim=4, audio_cross_attention_dim=16, num_layers=2,
        caption_channels=12, rope_type="split",
    )  # fmt: skip
    tokens = FRAMES * TALL * WIDE
    angles = rand(batch, 4, tokens, 4, seed=3)
    return model, dict(
        hidden_states=rand(batch, tokens, 6),
        encoder_hidden_states=rand(batch, 9, 12, seed=2),
        timestep=torch.linspace(0, 900, tokens).expand(batch, -1).contiguous(),
        video_rotary_emb=(angles.cos(), angles.sin()),
        encoder_attention_mask=text_mask(batch, 9),
    )


TINY = {
    make.__name__: make
    for make in (
        motif,
        motif_decoder,
        kandinsky5,
        kandinsky5_nabla,
        kandinsky6,
        kandinsky6_silent,
        sana_video,
        sana_video_i2v,
        minimax_h3,
        cosmos3,
        kandinsky6_sr,
        anyflow_far,
        sana_wm,
        sana_wm_refiner,
    )
}

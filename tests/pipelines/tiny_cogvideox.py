"""CogVideoX' tiny pipelines, and ConsisID's: 3 frames of 3 x 5 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny.tools import rand
from tiny_parts import HEIGHT, WIDTH, Tiny, t5, t5_tokenizer
from tiny_video_parts import film, picture, without_frames

SIZES = dict(
    num_attention_heads=4, attention_head_dim=16, out_channels=4, time_embed_dim=16, text_embed_dim=24, num_layers=1, sample_width=10,
    sample_height=6, sample_frames=9, max_text_seq_length=8, use_rotary_positional_embeddings=True,
)  # fmt: skip


def vae() -> diffusers.AutoencoderKLCogVideoX:
    return diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3, up_block_types=("CogVideoXUpBlock3D",) * 3, block_out_channels=(8, 8, 8), latent_channels=4,
        layers_per_block=1, norm_num_groups=4, sample_height=24, sample_width=40,
    ).eval()  # fmt: skip


def cogvideox(name: str, folder: Path) -> Any:
    """A picture's or a control's latents lie beside the video's."""
    beside = name in ("CogVideoXImageToVideoPipeline", "CogVideoXFunControlPipeline")
    transformer = redraw(diffusers.CogVideoXTransformer3DModel(**SIZES, in_channels=8 if beside else 4))
    # draws noise at every step, from the call's generator; control's pipeline knows the other one only
    scheduler = diffusers.DDIMScheduler() if name == "CogVideoXFunControlPipeline" else diffusers.CogVideoXDPMScheduler()
    return getattr(diffusers, name)(t5_tokenizer(), t5(), vae(), transformer, scheduler)


def consisid(name: str, folder: Path) -> Any:
    """The face's features come from outside, as the pipeline takes them."""
    sizes = SIZES | dict(num_layers=2, num_attention_heads=3)
    transformer = diffusers.ConsisIDTransformer3DModel(
        **sizes, in_channels=8, is_train_face=True, is_kps=True, cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=6, LFE_vit_dim=8,
        LFE_depth=2, LFE_dim_head=4, LFE_num_heads=2, LFE_num_id_token=2, LFE_num_querie=3, LFE_output_dim=32, LFE_num_scale=2,
    )  # fmt: skip
    return diffusers.ConsisIDPipeline(t5_tokenizer(), t5(), vae(), redraw(transformer), diffusers.CogVideoXDPMScheduler())


def face() -> dict[str, Any]:
    rows = 2  # one for each half of guidance
    points = [(10, 5), (25, 6), (18, 10), (12, 15), (24, 16)]
    return dict(id_cond=rand(rows, 6), id_vit_hidden=[rand(rows, 4, 8, seed=1), rand(rows, 4, 8, seed=2)], kps_cond=points)


CALL = dict(prompt="a red heart", guidance_scale=3.0, height=HEIGHT, width=WIDTH, num_frames=9, max_sequence_length=8)
SAME_LENGTH = without_frames(CALL)
SMALL = dict(height=HEIGHT, width=WIDTH)

TINY = {
    "CogVideoXPipeline": Tiny(cogvideox, CALL),
    "CogVideoXImageToVideoPipeline": Tiny(cogvideox, lambda: CALL | dict(image=picture(**SMALL))),
    "CogVideoXVideoToVideoPipeline": Tiny(cogvideox, lambda: SAME_LENGTH | dict(video=film(**SMALL), strength=0.9, num_inference_steps=3)),
    "CogVideoXFunControlPipeline": Tiny(cogvideox, lambda: SAME_LENGTH | dict(control_video=film(**SMALL))),
    "ConsisIDPipeline": Tiny(consisid, lambda: CALL | face() | dict(image=picture(**SMALL))),
}

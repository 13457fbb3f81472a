"""Cosmos pipelines. Their guardrail is a package and models of its own; one that lets everything pass stands for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny.tools import resize_without_torchvision
from tiny_parts import Tiny, t5, t5_tokenizer
from tiny_video_parts import VIDEO, chat_tokenizer, film, picture, qwen_vl, wan_vae, without_frames

resize_without_torchvision("diffusers.models.transformers.transformer_cosmos")
resize_without_torchvision("diffusers.models.controlnets.controlnet_cosmos")

LAYERS = 3 * 16  # the text of every layer of the language model, beside one another


class Guardrail:
    """Finds nothing unsafe."""

    def to(self, device: Any) -> Guardrail:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def transformer(**config: Any) -> diffusers.CosmosTransformer3DModel:
    sizes = dict(in_channels=5, out_channels=4, num_attention_heads=4, attention_head_dim=12, num_layers=1, mlp_ratio=2, adaln_lora_dim=6)
    return redraw(diffusers.CosmosTransformer3DModel(**sizes | dict(text_embed_dim=24, max_size=(9, 16, 16)) | config))


def cosmos(name: str, folder: Path) -> Any:
    """The VAE of the first Cosmos shrinks time 8 times."""
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(4, 4, 4, 4), decode_block_out_channels=(4, 4, 4, 4), attention_resolutions=(8,),
        resolution=64, num_layers=1, latents_mean=[0.1] * 16, latents_std=[0.5] * 16,
    )  # fmt: skip
    dit = transformer(in_channels=4 if "Text" in name else 5)
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type="epsilon")
    return getattr(diffusers, name)(
        text_encoder=t5(), tokenizer=t5_tokenizer(), transformer=dit, vae=vae.eval(), scheduler=scheduler, safety_checker=Guardrail()
    )


def cosmos2(name: str, folder: Path) -> Any:
    dit = transformer(in_channels=4 if "Image" in name else 5)
    return getattr(diffusers, name)(
        text_encoder=t5(), tokenizer=t5_tokenizer(), transformer=dit, vae=wan_vae(), safety_checker=Guardrail(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    )  # fmt: skip


def cosmos25(name: str, folder: Path) -> Any:
    """Text from a vision-language model; the one with a ControlNet has room for a picture's tokens beside it."""
    text = dict(use_crossattn_projection=True, crossattn_proj_in_channels=LAYERS, encoder_hidden_states_channels=24, extra_pos_embed_type=None)
    image = dict(img_context_dim_in=10, img_context_dim_out=48)
    if "Predict" in name:
        parts = dict(transformer=transformer(**text))
    else:
        parts = dict(transformer=transformer(**text, **image, img_context_num_tokens=3, controlnet_block_every_n=1))
        parts["controlnet"] = redraw(
            diffusers.CosmosControlNetModel(
                n_controlnet_blocks=1, in_channels=10, latent_channels=6, model_channels=48, num_attention_heads=4, attention_head_dim=12,
                mlp_ratio=2.0, text_embed_dim=24, adaln_lora_dim=6, max_size=(9, 16, 16), **text, **image,
            )
        )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_karras_sigmas=False, sigma_max=200.0, sigma_min=0.01
    )
    return getattr(diffusers, name)(
        text_encoder=qwen_vl(), tokenizer=chat_tokenizer(), **parts, vae=wan_vae(), scheduler=scheduler, safety_checker=Guardrail()
    )


def cosmos3(name: str, folder: Path) -> Any:
    """One transformer for words, pictures and sound."""
    dit = diffusers.Cosmos3OmniTransformer(
        head_dim=16, hidden_size=32, intermediate_size=24, latent_channel=4, patch_latent_dim=16, num_attention_heads=4, num_hidden_layers=1,
        num_key_value_heads=2, vocab_size=32, rope_axes_dim=(4, 2, 2), sound_dim=4, sound_gen=True,
    )  # fmt: skip
    sound = diffusers.Cosmos3AVAEAudioTokenizer(
        sampling_rate=800, vocoder_input_dim=4, dec_dim=4, dec_c_mults=(1, 2), dec_strides=(4, 8), encoder_enabled=False
    )
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return diffusers.Cosmos3OmniPipeline(
        transformer=redraw(dit), text_tokenizer=chat_tokenizer("<|vision_start|>"), vae=wan_vae(), scheduler=scheduler, sound_tokenizer=sound.eval(),
        enable_safety_checker=False, default_use_system_prompt=False,
    )  # fmt: skip


TEXT = VIDEO | dict(max_sequence_length=9, guidance_scale=3.0, negative_prompt="a dog")
GUARDED = TEXT | dict(output_type="latent")  # the guardrail looks at pictures of 8 bits
FIRST = GUARDED | dict(num_frames=17)
CHUNKS = without_frames(GUARDED) | dict(num_frames_per_chunk=9, controls_conditioning_scale=0.7)

TINY = {
    "CosmosTextToWorldPipeline": Tiny(cosmos, FIRST),
    "CosmosVideoToWorldPipeline": Tiny(cosmos, lambda: FIRST | dict(video=film(9))),
    "Cosmos2TextToImagePipeline": Tiny(cosmos2, without_frames(GUARDED)),
    "Cosmos2VideoToWorldPipeline": Tiny(cosmos2, lambda: GUARDED | dict(image=picture())),
    "Cosmos2_5_PredictBasePipeline": Tiny(cosmos25, lambda: TEXT | dict(video=film(), num_latent_conditional_frames=1)),
    "Cosmos2_5_TransferPipeline": Tiny(cosmos25, lambda: CHUNKS | dict(controls=film(17))),
    "Cosmos3OmniPipeline": Tiny(cosmos3, lambda: VIDEO | dict(image=picture(), enable_sound=True, guidance_scale=3.0)),
}

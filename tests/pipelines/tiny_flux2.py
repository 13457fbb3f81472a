"""FLUX.2's tiny pipelines: text from three layers of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from PIL import Image
from tiny import build
from tiny_image_parts import flux2_vae
from tiny_parts import HEIGHT, WIDTH, Tiny, mask, picture, t5_tokenizer
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig, Qwen3Config, Qwen3ForCausalLM

LANGUAGE = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=4)
WRITTEN = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
LISTED = "{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }} {% endfor %}{% endfor %}"


def parts(template: str) -> dict[str, Any]:
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = template
    transformer, _ = build("flux2")
    return dict(tokenizer=tokenizer, vae=flux2_vae(2), transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def flux2(name: str, folder: Path) -> Any:
    vision = PixtralVisionConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    config = Mistral3Config(vision_config=vision, text_config=MistralConfig(**LANGUAGE), image_token_index=31)
    pipe = diffusers.Flux2Pipeline(text_encoder=Mistral3ForConditionalGeneration(config).eval(), **parts(LISTED))
    pipe.system_message = "big"
    return pipe


def klein(name: str, folder: Path) -> Any:
    return getattr(diffusers, name)(text_encoder=Qwen3ForCausalLM(Qwen3Config(**LANGUAGE)).eval(), **parts(WRITTEN))


def photo(seed: int = 0) -> Image.Image:
    """Nothing smaller is looked at."""
    return Image.fromarray((picture(seed)[0].movedim(0, -1) * 255).byte().numpy()).resize((64, 64))


CALL = dict(prompt="a red heart", height=HEIGHT, width=WIDTH, max_sequence_length=9, text_encoder_out_layers=(0, 1, 2))
TINY = {
    "Flux2Pipeline": Tiny(flux2, CALL),
    "Flux2KleinPipeline": Tiny(klein, lambda: CALL | dict(image=[photo(), photo(1)])),
    "Flux2KleinKVPipeline": Tiny(klein, lambda: CALL | dict(image=[photo()])),
    "Flux2KleinInpaintPipeline": Tiny(klein, lambda: CALL | dict(image=picture(), image_reference=picture(2), mask_image=mask(), strength=0.9)),
}

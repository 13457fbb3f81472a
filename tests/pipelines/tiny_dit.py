"""DiT's tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tiny import redraw
from tiny_parts import Tiny, vae


def dit(name: str, folder: Path) -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=10
    )
    return diffusers.DiTPipeline(redraw(transformer), vae(), diffusers.DDPMScheduler())  # draws noise at every step, from the default generator


TINY = {"DiTPipeline": Tiny(dit, dict(class_labels=[3], guidance_scale=3.0))}

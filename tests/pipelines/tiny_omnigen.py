"""OmniGen's tiny pipeline: text and picture are one sequence. Sixteen pixels a token."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import diffusers
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from tiny import build
from tiny_parts import Tiny, t5_tokenizer, vae

if importlib.util.find_spec("torchvision") is None:
    processor_omnigen.transforms = MagicMock()  # what it does to pictures that are looked at; none is
    pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor


def omnigen(name: str, folder: Path) -> Any:
    transformer, _ = build("omnigen")
    return diffusers.OmniGenPipeline(transformer, diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), vae(blocks=4), t5_tokenizer())


TINY = {"OmniGenPipeline": Tiny(omnigen, dict(prompt="a red heart", height=96, width=160))}

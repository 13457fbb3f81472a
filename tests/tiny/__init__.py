"""Tiny configs of the real transformer classes with inputs of odd sizes: one function a case, used by every parity test.

Weights are random, and nothing is left at zero: a zero-initialised output layer would make every comparison pass (0 = 0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tiny import audio, controlnet, image, image_more, image_rest, video, video_hunyuan, video_more, video_wan
from tiny.tools import Inputs, redraw

TINY: dict[str, Callable[..., tuple[nn.Module, Inputs]]] = (
    image.TINY | image_more.TINY | image_rest.TINY | video.TINY | video_wan.TINY | video_hunyuan.TINY | video_more.TINY | audio.TINY | controlnet.TINY
)


def build(name: str, **options: Any) -> tuple[nn.Module, Inputs]:
    """The tiny model `name`, its weights drawn alike on every rank, and its inputs."""
    model, inputs = TINY[name](**options)
    return redraw(model), inputs

"""What a user of PixArt would have to know, decided for them; an argument they give stands."""

from __future__ import annotations

import logging
from typing import Any

from dit_usp.embedded import embedded

logger = logging.getLogger(__name__)

BINNED_SIZES = (32, 64, 128)  # the sample sizes that diffusers has tables of resolutions for; it refuses others


def _comes_with_us(pipe: Any) -> bool:
    """Our model draws any size; PixArt's table would have it draw 256 x 256 and stretch that to the 512 x 512 asked for."""
    return pipe.config.get("_name_or_path") in map(str, embedded().values())


def prepare_call(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Fill in what PixArt's defaults do not provide for.

    Raises:
        ValueError: one step with a solver that needs two.
    """
    from diffusers.utils import is_bs4_available, is_ftfy_available

    solver = type(pipe.scheduler).__name__
    if arguments.get("num_inference_steps") == 1 and solver.startswith("DPMSolver"):
        raise ValueError(f"PixArt makes a picture with {solver} in 2 steps or more, not 1.")
    chosen = {}
    if pipe.transformer.config.sample_size not in BINNED_SIZES or _comes_with_us(pipe):
        chosen["use_resolution_binning"] = False
    if not (is_bs4_available() and is_ftfy_available()):
        chosen["clean_caption"] = False  # as diffusers does after two warnings a call
    chosen = {name: value for name, value in chosen.items() if name not in arguments}
    if chosen:
        logger.info("PixArt: %s", ", ".join(f"{name}={value}" for name, value in chosen.items()))
    return arguments | chosen

"""What dit-usp knows of each transformer class: one entry a class, data only. CONTRIBUTING.md shows how to add one."""

from __future__ import annotations

from dit_usp.models import audio, controlnet, image, video
from dit_usp.models.refused import REFUSED as REFUSED
from dit_usp.plan import ShardPlan

PLANS: tuple[ShardPlan, ...] = (*image.PLANS, *video.PLANS, *audio.PLANS, *controlnet.PLANS)


def find_plan(model: str) -> ShardPlan | None:
    """The plan of the transformer class named `model`, or None."""
    return next((plan for plan in PLANS if plan.model == model), None)

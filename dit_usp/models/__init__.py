"""What dit-usp knows of each transformer class: one entry a class, data only. CONTRIBUTING.md shows how to add one."""

from __future__ import annotations

from dit_usp.models import audio, controlnet, image, video
from dit_usp.models.refused import REFUSED as REFUSED
from dit_usp.plan import ShardPlan

KINDS: dict[str, tuple[ShardPlan, ...]] = {"image": image.PLANS, "video": video.PLANS, "audio": audio.PLANS, "controlnet": controlnet.PLANS}
PLANS: tuple[ShardPlan, ...] = tuple(plan for plans in KINDS.values() for plan in plans)


def find_plan(model: str) -> ShardPlan | None:
    """The plan of the transformer class named `model`, or None."""
    return next((plan for plan in PLANS if plan.model == model), None)

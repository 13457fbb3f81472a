"""ParallelConfig: how many ranks each axis has, validated at birth. No torch here: the command line reads it before torch loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dit_usp.errors import UnsupportedError

RingMethod = Literal["rotate", "gather"]


@dataclass(frozen=True)
class ParallelConfig:
    """Degrees of the four axes; their product is the number of ranks.

    rank = ((data * cfg_degree + cfg) * ring_degree + ring) * ulysses_degree + ulysses: Ulysses takes the fastest links, data the
    slowest (USP, arXiv 2405.07719, tip 7).

    Args:
        ulysses_degree: ranks that trade heads for tokens by an all-to-all; at most the number of attention heads.
        ring_degree: ranks that pass keys and values on.
        cfg_degree: 2 computes the conditional and the unconditional half of guidance on different ranks.
        data_degree: replicas that images are dealt to.
        ring_method: "rotate" passes blocks around the ring under the kernels, "gather" collects all keys first.

    Raises:
        ValueError: a degree below 1, or an unknown ring_method.
        UnsupportedError: cfg_degree above 2.
    """

    ulysses_degree: int = 1
    ring_degree: int = 1
    cfg_degree: int = 1
    data_degree: int = 1
    ring_method: RingMethod = "rotate"

    def __post_init__(self) -> None:
        for name in ("ulysses_degree", "ring_degree", "cfg_degree", "data_degree"):
            degree = getattr(self, name)
            if not isinstance(degree, int) or isinstance(degree, bool) or degree < 1:
                raise ValueError(f"{name}={degree!r} is not a whole number of ranks; 1 switches the axis off.")
        if self.cfg_degree > 2:
            raise UnsupportedError(f"cfg_degree={self.cfg_degree}: guidance has two halves; try cfg_degree=2 and data_degree={self.cfg_degree // 2}.")
        if self.ring_method not in get_args(RingMethod):
            raise ValueError(f"ring_method={self.ring_method!r} is unknown; choose from {', '.join(get_args(RingMethod))}.")

    @property
    def sequence_degree(self) -> int:
        """Ranks that share the tokens of one forward."""
        return self.ring_degree * self.ulysses_degree

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.data_degree * self.cfg_degree * self.sequence_degree

    def check_heads(self, heads: int, owner: str) -> None:
        """Refuse a ulysses_degree that leaves a rank without a head.

        Raises:
            UnsupportedError: ulysses_degree > heads; names the nearest layouts that work.
        """
        if self.ulysses_degree <= heads:
            return
        ulysses = max(u for u in range(1, heads + 1) if self.sequence_degree % u == 0)
        choices = [f"ulysses_degree={ulysses} ring_degree={self.sequence_degree // ulysses}"]
        if heads != ulysses:
            choices.append(f"ulysses_degree={heads}")
        raise UnsupportedError(
            f"ulysses_degree={self.ulysses_degree} needs at least {self.ulysses_degree} heads; {owner} has {heads}. Try {' or '.join(choices)}."
        )

    @classmethod
    def auto(cls, world_size: int, *, heads: int | None = None, guidance: bool = False, num_images: int = 1) -> ParallelConfig:
        """The layout we would pick for `world_size` ranks; `choose_layout` also says why."""
        return choose_layout(world_size, heads=heads, guidance=guidance, num_images=num_images)[0]

    def __str__(self) -> str:
        return f"ulysses {self.ulysses_degree} x ring {self.ring_degree} x cfg {self.cfg_degree} x data {self.data_degree}"


# Uneven heads leave ranks idle: with 8 heads on 3 ranks the slowest does 9/8 of its share. Up to this much, Ulysses
# is taken before a longer ring, whose passes hide only behind blocks of thousands of tokens. A judgement, not yet measured on three ranks.
MAX_HEAD_IMBALANCE = 1.15


def choose_layout(world_size: int, *, heads: int | None = None, guidance: bool = False, num_images: int = 1) -> tuple[ParallelConfig, list[str]]:
    """Pick degrees for `world_size` ranks and say why, one sentence an axis.

    Args:
        world_size: ranks to use, all of them.
        heads: attention heads of the model (None: unknown, the whole sequence degree goes to Ulysses).
        guidance: whether there is a conditional and an unconditional half, in one batch or in two calls of the transformer.
        num_images: images asked for in all.

    Raises:
        ValueError: world_size below 1.
    """
    if world_size < 1:
        raise ValueError(f"{world_size} ranks cannot make a picture; ask for at least 1.")
    reasons = []
    data = max(d for d in range(1, min(num_images, world_size) + 1) if world_size % d == 0 and num_images % d == 0)
    if data > 1:
        reasons.append(f"data {data}: {num_images} images are dealt over replicas, which need not talk to each other.")
    rest = world_size // data
    cfg = 2 if guidance and rest % 2 == 0 else 1
    if cfg == 2:
        reasons.append("cfg 2: each half of guidance has its own ranks; they exchange one output a step.")
    rest //= cfg
    # Between two ranks gathering is one collective and no relayout of queries: on two H100 and two H200, in bfloat16, no slower than Ulysses for any
    # model measured, and faster than rotate but for Wan (1.6 %). Each sends as many bytes; among more ranks Ulysses sends fewer.
    ulysses = 1 if rest == 2 else _ulysses_degree(rest, heads)
    ring = rest // ulysses
    if ulysses > 1:
        reasons.append(f"ulysses {ulysses}: two all-to-alls an attention{f', {heads} heads' if heads else ''}.")
    if rest == 2:
        reasons.append("ring 2: between two ranks one collective that gathers keys and values is as fast as two that trade heads, or faster.")
    elif ring > 1:
        reasons.append(f"ring {ring}: {heads} heads do not carry {rest} ranks evenly, so keys and values go round a ring.")
    if not reasons:
        reasons.append("one rank: nothing to share.")
    return ParallelConfig(ulysses, ring, cfg, data, ring_method="gather" if ring == 2 else "rotate"), reasons


def _ulysses_degree(ranks: int, heads: int | None) -> int:
    if heads is None:
        return ranks
    even = [u for u in range(1, min(ranks, heads) + 1) if ranks % u == 0 and -(-heads // u) * u / heads <= MAX_HEAD_IMBALANCE]
    return max(even)

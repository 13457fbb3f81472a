"""What the two trainings share: Muon, the averaged weights, the clock of a budget."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor

# Quintic Newton-Schulz step of Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz steps; for matrices only.

    torch.optim.Muon takes one matrix at a time, about 1,600 launches a step for this transformer; here matrices of one shape go together.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})
        self.by_shape: dict[torch.Size, list[Tensor]] = {}
        for param in self.param_groups[0]["params"]:
            self.by_shape.setdefault(param.shape, []).append(param)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix, from its gradient."""
        lr, momentum = self.param_groups[0]["lr"], self.param_groups[0]["momentum"]
        for (rows, columns), params in self.by_shape.items():
            grads = torch.stack([param.grad.float() for param in params if param.grad is not None])
            average = self.state[params[0]].setdefault("momentum", torch.zeros_like(grads))
            average.lerp_(grads, 1 - momentum)
            update = orthogonalise(grads.lerp(average, momentum))
            torch._foreach_add_(params, list(update.unbind()), alpha=-lr * max(1, rows / columns) ** 0.5)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: (N, R, C) -> (N, R, C) in fp32."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16 if x.is_cuda else torch.float32)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, step: int, decay: float = 0.9995) -> None:
    """Exponential moving average that starts short, so that the first steps are soon forgotten.

    swa_utils.AveragedModel would do, but reads its counter back from the GPU at every step.
    """
    torch._foreach_lerp_(list(average.parameters()), [param.detach() for param in model.parameters()], 1 - min(decay, (1 + step) / (10 + step)))


class Clock:
    """How much of a budget of seconds is spent, over all sittings. The first steps of a sitting compile: they are not counted."""

    WARM_UP = 3

    def __init__(self, budget: float, spent: float = 0.0) -> None:
        self.budget, self.before = budget, spent
        self.started: float | None = None
        self.steps = 0

    def step(self) -> None:
        """Count a step; the clock starts at the third."""
        self.steps += 1
        if self.steps == self.WARM_UP:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.started = time.monotonic()

    @property
    def this_sitting(self) -> float:
        return time.monotonic() - self.started if self.started is not None else 0.0

    @property
    def spent(self) -> float:
        return self.before + self.this_sitting

    @property
    def share(self) -> float:
        return min(1.0, self.spent / self.budget)

    @property
    def steps_per_second(self) -> float:
        return max(0, self.steps - self.WARM_UP) / max(1e-9, self.this_sitting)

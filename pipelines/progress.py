"""The progress bar of a pipeline's denoising loop, which also reports each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]

FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}]"  # always s/it: seconds a step is what users compare


class StepBar(tqdm):
    """diffusers uses its bar in a `with` or as an iterable; both report (step, total), also where the bar is not shown."""

    def __init__(self, *args: Any, on_step: Callable[[int, int], None], on_end: Callable[[], None], **options: Any) -> None:
        self.on_step, self.on_end, self.step = on_step, on_end, 0
        super().__init__(*args, **{"bar_format": FORMAT, **options})

    def update(self, n: float | None = 1) -> bool | None:
        self.step += int(n or 0)
        self.on_step(self.step, self.total)
        return super().update(n)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            self.on_end()

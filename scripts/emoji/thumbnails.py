"""Thumbnails of all subjects (16 x 16, colour and coverage) and the search for the nearest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from emoji.captions import HOUSE_STYLE
from emoji.pictures import FILL, Pack

SIZE = 16


@dataclass(frozen=True)
class Thumbnails:
    """One thumbnail a subject, on a transparent ground.

    Args:
        names: N names.
        rgba: (N, 16, 16, 4) uint8, colours multiplied by the coverage: mean values stay right on any background.
    """

    names: list[str]
    rgba: np.ndarray

    @classmethod
    def from_pack(cls, path: Path, pixels: int = 256) -> Thumbnails:
        pack = Pack(path)
        numbers = pack.numbers({HOUSE_STYLE: 1.0})
        return cls([pack.subjects[pack.subject_of[n]].name for n in numbers], np.stack([_thumbnail(pack, n, pixels) for n in numbers]))

    @classmethod
    def read(cls, path: Path) -> Thumbnails:
        arrays = np.load(path)
        return cls([str(name) for name in arrays["names"]], arrays["rgba"])

    def write(self, path: Path) -> None:
        np.savez_compressed(path, names=np.array(self.names), rgba=self.rgba)

    def on(self, colour: Sequence[float]) -> np.ndarray:
        """All thumbnails on a background colour: (N, 16 * 16 * 3) in [0, 1]."""
        rgba = self.rgba.astype(np.float32) / 255
        return (rgba[..., :3] + (1 - rgba[..., 3:]) * np.asarray(colour, np.float32)).reshape(len(self.names), -1)

    def ranked(self, image: Image.Image, colour: Sequence[float] = (1, 1, 1)) -> list[str]:
        """All names, that of the thumbnail nearest to the image first; `colour`: the image's background."""
        seen = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), np.float32).ravel() / 255
        return [self.names[n] for n in ((self.on(colour) - seen) ** 2).sum(1).argsort()]


def _thumbnail(pack: Pack, number: int, pixels: int) -> np.ndarray:
    """A picture as it stands when large, shrunk: (16, 16, 4) uint8, premultiplied."""
    width = round(pixels * FILL)
    rgba = np.zeros((pixels, pixels, 4), np.float32)
    corner = (pixels - width) // 2
    rgba[corner : corner + width, corner : corner + width] = np.asarray(pack.image(number, width), np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    cell = pixels // SIZE
    return rgba.reshape(SIZE, cell, SIZE, cell, 4).mean((1, 3)).round().astype(np.uint8)

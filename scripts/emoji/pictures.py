"""The pack of pictures, on the device, and scenes composed from them."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from emoji.captions import COLOURS, SHIFTS
from emoji.subjects import Subject, wanted

FILL = 0.92  # share of the picture's width that a large subject takes
SMALL = 0.5


class Pack:
    """The npz that pack.py writes: WebP pictures with names and keywords."""

    def __init__(self, path: Path) -> None:
        arrays = np.load(path)
        self.data, self.offsets = arrays["data"], arrays["off"]
        self.styles = [str(style) for style in arrays["style"]]
        self.subject_of = [int(number) for number in arrays["subj"]]
        rows = zip(arrays["names"], arrays["groups"], arrays["kws"], strict=True)
        self.subjects = [Subject.from_row(str(name), str(group), str(keywords)) for name, group, keywords in rows]

    def image(self, number: int, pixels: int) -> Image.Image:
        """Picture `number` as RGBA, pixels x pixels."""
        file = io.BytesIO(self.data[self.offsets[number] : self.offsets[number + 1]].tobytes())
        return Image.open(file).convert("RGBA").resize((pixels, pixels), Image.Resampling.LANCZOS)

    def numbers(self, styles: Mapping[str, float], limit: int | None = None, cast: Collection[str] | None = None) -> list[int]:
        """The pictures of these styles whose subject is wanted; `limit`: of that many subjects only, for a dry run; `cast`: the only names."""
        kept = set([number for number, one in enumerate(self.subjects) if wanted(one) and (cast is None or one.name in cast)][:limit])
        return [n for n, (subject, style) in enumerate(zip(self.subject_of, self.styles, strict=True)) if subject in kept and style in styles]


@dataclass(frozen=True)
class Pictures:
    """Every picture that is learnt.

    Args:
        rgba: (N, 4, H, W) uint8 on the device.
        subjects, styles: N of each.
        weights: (N,) how often each is drawn.
    """

    rgba: torch.Tensor
    subjects: list[Subject]
    styles: list[str]
    weights: torch.Tensor

    @classmethod
    def load(
        cls,
        pack: Pack,
        styles: Mapping[str, float],
        pixels: int,
        device: torch.device,
        limit: int | None = None,
        cast: Collection[str] | None = None,
    ) -> Pictures:
        numbers = pack.numbers(styles, limit, cast)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(lambda number: np.asarray(pack.image(number, pixels)), numbers))
        rgba = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(device)
        kinds = [pack.styles[n] for n in numbers]
        weights = torch.tensor([styles[kind] / kinds.count(kind) for kind in kinds], device=device)
        return cls(rgba, [pack.subjects[pack.subject_of[n]] for n in numbers], kinds, weights)

    def __len__(self) -> int:
        return len(self.styles)

    @property
    def unique_subjects(self) -> list[Subject]:
        return list(dict.fromkeys(self.subjects))

    def compose(self, index: torch.Tensor, colour: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Pictures on a background colour, large or small at a place: three (B,) index tensors -> (B, 3, H, W) in [-1, 1]."""
        rgba = self.rgba[index].float() / 255
        premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
        scale = torch.where(place > 0, SMALL, FILL)
        theta = torch.zeros(len(index), 2, 3, device=rgba.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
        theta[:, :, 2] = -torch.tensor(SHIFTS, device=rgba.device)[place] / scale[:, None]
        grid = F.affine_grid(theta, list(premultiplied.shape), align_corners=False)
        placed = F.grid_sample(premultiplied, grid, mode="bilinear", align_corners=False)
        background = torch.tensor(list(COLOURS.values()), device=rgba.device)[colour][:, :, None, None]
        return (placed[:, :3] + (1 - placed[:, 3:]) * background) * 2 - 1

    def draw(self, count: int, colour_share: float, small_share: float) -> torch.Tensor:
        """`count` random pictures in random scenes: (B, 3, H, W) in [-1, 1]."""
        device = self.rgba.device
        coloured = torch.rand(count, device=device) < colour_share
        small = coloured & (torch.rand(count, device=device) < small_share)
        colour = torch.where(coloured, torch.randint(0, len(COLOURS), (count,), device=device), 0)
        place = torch.where(small, torch.randint(1, len(SHIFTS), (count,), device=device), 0)
        return self.compose(torch.multinomial(self.weights, count, True), colour, place)

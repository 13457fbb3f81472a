"""Names for the files, none of which is taken."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dit_usp import saving
from dit_usp.signature import Call

_SLUG_LENGTH = 50


def name_files(output: str | None, prompts: Sequence[str], images: int, made: Call, frames: int | None, overwrite: bool) -> list[str]:
    """A file for every result: `images` of the first prompt, then of the next. Folders that are missing will be made.

    Args:
        output: a file, whose name is numbered for several results (heart-1.png, heart-2.png); a folder, or None for the current one, where names
            are made from the prompts and those taken are passed over.
        made: what the pipeline makes.
        frames: of its clips; one may be a picture.

    Raises:
        ValueError: no folder can be made there, a suffix that cannot hold the result, a file that exists.
    """
    if output is not None and not _is_folder(output):
        return [str(path) for path in _numbered(Path(output), len(prompts) * images, made, frames, overwrite)]
    folder = Path(output or ".")
    _check_folder(folder, output or ".")
    names: list[Path] = []
    for prompt in prompts:
        stem = folder / (slug(prompt, made.kind) + saving.default_suffix(made))
        names += [_free(path, names, overwrite) for path in _count_up(stem, images)]
    return [str(name) for name in names]


def slug(prompt: str, otherwise: str) -> str:
    """A prompt as a file's name: "A red heart!" -> "a-red-heart"; `otherwise` if there is no word in it."""
    words = re.sub(r"\W+", "-", prompt.lower())[:_SLUG_LENGTH].strip("-_")
    return words or otherwise


def _is_folder(output: str) -> bool:
    return output.endswith(os.sep) or os.path.isdir(output)


def _numbered(path: Path, total: int, made: Call, frames: int | None, overwrite: bool) -> list[Path]:
    if not (made.kind == "clip" and frames == 1 and path.suffix.lower() in saving.SUFFIXES["picture"]):
        saving.result_format(path, made)
    _check_folder(path.parent, str(path))
    paths = _count_up(path, total)
    for name in paths:
        if len(os.fsencode(name.name)) > 255:  # NAME_MAX of every common file system
            raise ValueError(f"-o {path}: the name is too long for a file.")
        if name.is_dir() or (os.path.lexists(name) and not name.is_file()):
            raise ValueError(f"-o {path}: {name} is not a file that can be replaced.")
        if os.path.lexists(name) and not overwrite:
            raise ValueError(f"{name} exists already; add --overwrite, or use -o {saving.free_name(path)}.")
    return paths


def _count_up(path: Path, total: int) -> list[Path]:
    return [path] if total == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(1, total + 1)]


def _free(path: Path, names: Sequence[Path], overwrite: bool) -> Path:
    """The first of heart.png, heart-2.png ... that neither exists nor is promised to another picture."""
    candidate, number = path, 2
    while candidate in names or (os.path.lexists(candidate) and not overwrite):
        candidate, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return candidate


def _check_folder(folder: Path, output: str) -> None:
    """It is there, or can be made where the first folder above it is."""
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not there.is_dir():
        raise ValueError(f"-o {output}: {there} is not a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"-o {output}: no permission to write in {there}.")

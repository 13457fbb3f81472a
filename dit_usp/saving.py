"""Files with their story: pictures and short clips that say how they were made, written whole or not at all. No torch here."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

Metadata = Mapping[str, Any]

IMAGE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
CLIP_SUFFIXES = {".webp": "WEBP", ".gif": "GIF"}  # what pillow writes without a video codec
DEFAULT_FPS = 8

_KEY = "dit-usp"  # of the PNG text chunk
_EXIF_IFD, _USER_COMMENT, _SOFTWARE = 0x8769, 0x9286, 0x0131  # Exif 2.3, 4.6.5 and 4.6.3
_ASCII = b"ASCII\0\0\0"  # how a UserComment says its coding
_PART = ".dit-usp-{pid}-{number}.part"
_numbers = itertools.count()


@dataclass(frozen=True)
class Target:
    """A file to write: what a rank needs to know to save one result.

    Attributes:
        path: where.
        metadata: what the file says about itself; must be JSON.
        overwrite: replace a file of that name; else the next free name is taken ("heart-2.png").
        fps: pictures a second of a clip.
    """

    path: str
    metadata: Metadata = field(default_factory=dict)
    overwrite: bool = False
    fps: float = DEFAULT_FPS


def save(result: Image | Sequence[Image], target: Target) -> Path:
    """Write one picture, or one clip given as its frames, and return the path it got.

    Raises:
        ValueError: the suffix names no format that holds this kind of result.
        OSError: the disk is full, the folder cannot be written; nothing is left behind.
    """
    if isinstance(result, Sequence):
        return save_clip(result, target.path, target.metadata, overwrite=target.overwrite, fps=target.fps)
    return save_image(result, target.path, target.metadata, overwrite=target.overwrite)


def save_image(image: Image, path: str | Path, metadata: Metadata, *, overwrite: bool = False, **options: Any) -> Path:
    """Write a picture as PNG, JPEG or WebP by its suffix and return the path it got.

    Args:
        options: pillow's for the format, such as quality=90.
    """
    path = Path(path)
    form = image_format(path)
    told = {**metadata, "width": image.width, "height": image.height}
    defaults: dict[str, Any] = {"PNG": {"pnginfo": _png_text(told)}, "JPEG": {"quality": 95}, "WEBP": {"quality": 95}}[form]
    if form != "PNG":
        defaults["exif"] = _exif(told)
    data = io.BytesIO()
    (image.convert("RGB") if form == "JPEG" else image).save(data, form, **defaults | options)
    return write_whole(data.getbuffer(), path, overwrite=overwrite)


def save_clip(frames: Sequence[Image], path: str | Path, metadata: Metadata, *, overwrite: bool = False, fps: float = DEFAULT_FPS) -> Path:
    """Write frames as an animated WebP or GIF (256 colours) by the suffix and return the path it got."""
    path = Path(path)
    form = clip_format(path)
    told = {**metadata, "width": frames[0].width, "height": frames[0].height, "frames": len(frames), "fps": fps}
    options: dict[str, Any] = {"exif": _exif(told), "quality": 90} if form == "WEBP" else {"comment": _json(told).encode()}
    data = io.BytesIO()
    frames[0].save(data, form, save_all=True, append_images=list(frames[1:]), duration=round(1000 / fps), loop=0, **options)
    return write_whole(data.getbuffer(), path, overwrite=overwrite)


def image_format(path: Path) -> str:
    """Pillow's name of the format that a picture's suffix stands for.

    Raises:
        ValueError: it stands for none; names those that work.
    """
    return _format(path, IMAGE_SUFFIXES, "a picture")


def clip_format(path: Path) -> str:
    """The same for a clip of several frames."""
    return _format(path, CLIP_SUFFIXES, "a clip")


def _format(path: Path, formats: Mapping[str, str], what: str) -> str:
    if (suffix := path.suffix.lower()) not in formats:
        known = ", ".join(formats)
        raise ValueError(f"{path.name}: {what} is written as {known}, not {suffix}." if suffix else f"{path.name}: {what} needs a suffix: {known}.")
    return formats[suffix]


def write_whole(data: bytes | memoryview, path: Path, *, overwrite: bool = False) -> Path:
    """Write a file that appears complete or not at all, under `path` or, if that is taken and not to be overwritten, the next free name."""
    temporary = path.with_name(_PART.format(pid=os.getpid(), number=next(_numbers)))
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a full disk may say so only now
        if overwrite:
            return temporary.replace(path)
        return next(name for name in _names(path) if _take(temporary, name))
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path, pid: int) -> None:
    """Remove what a process left half-written when it was killed outright."""
    for part in folder.glob(_PART.format(pid=pid, number="*")):
        part.unlink(missing_ok=True)


def _take(temporary: Path, path: Path) -> bool:
    """Give the finished file its name, unless another file has it. A hard link is the one rename that never replaces."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: exFAT, some network shares
        if path.exists():
            return False
        temporary.replace(path)
    return True


def free_name(path: Path) -> Path:
    """`path`, or heart-2.png, heart-3.png ... when it is taken."""
    return next(name for name in _names(path) if not os.path.lexists(name))


def _names(path: Path) -> itertools.chain[Path]:
    return itertools.chain([path], (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2)))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a file written here says about itself.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: it cannot be opened.
        ValueError: it is no picture, or carries no metadata of ours.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = _stored(image)
            told = json.loads(text) if text else None
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} carries damaged metadata.") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} carries no metadata of dit-usp.")
    return told


def _stored(image: Image) -> str | None:
    """The JSON text in an open file, if there is one."""
    if image.format == "PNG":
        return image.info.get(_KEY)
    if image.format == "GIF":
        return image.info.get("comment", b"").decode(errors="replace")
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
    ours = isinstance(comment, bytes) and comment.startswith(_ASCII + b"{")
    return comment.removeprefix(_ASCII).decode() if ours else None


def _json(metadata: Metadata) -> str:
    return json.dumps(dict(metadata))  # ASCII: every reader shows it


def _png_text(metadata: Metadata) -> Any:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", _software(metadata))
    text.add_itxt("Description", str(metadata.get("prompt", "")))  # UTF-8
    text.add_text(_KEY, _json(metadata))
    return text


def _exif(metadata: Metadata) -> Exif:
    from PIL.Image import Exif

    exif = Exif()
    exif[_SOFTWARE] = _software(metadata)
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + _json(metadata).encode()
    return exif


def _software(metadata: Metadata) -> str:
    return f"dit-usp {metadata.get('versions', {}).get('dit-usp', '')}".strip()

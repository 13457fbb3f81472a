"""Files with their story: pictures, clips, sounds and latents that say how they were made, written whole or not at all. No torch here."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_usp import formats
from dit_usp.formats import KEY, Clip, Sound
from dit_usp.media import NEEDS_PYAV, TENSORS, has_pyav
from dit_usp.pipelines.table import NO_LATENTS
from dit_usp.signature import DEFAULT_FPS, Call

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

Metadata = Mapping[str, Any]

_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MOVIES = {".mp4": "mp4", ".webm": "webm"}  # by PyAV
_ANIMATIONS = {".webp": "WEBP", ".gif": "GIF"}  # what pillow writes without a video codec
_UNITS = {"WEBP": 1, "GIF": 10}  # milliseconds: how finely the formats tell times
SUFFIXES: dict[str, dict[str, str]] = {"picture": _PICTURES, "clip": {**_MOVIES, **_ANIMATIONS}, "sound": {".wav": "wav"}}
MAX_FPS = {**dict.fromkeys(_MOVIES, 240.0), **dict.fromkeys(_ANIMATIONS, 50.0)}  # viewers slow animations of less than 20 ms a picture down

# Pipelines of diffusers 0.42 whose decoded results fit no file, and why.
_LATENTS_ONLY = {
    "LTX2HDRPipeline": "makes linear light, which {suffix} does not hold",
    "EasyAnimateControlPipeline": "cannot decode (it calls a method that it does not have)",
}

_EXIF_IFD, _USER_COMMENT, _SOFTWARE = 0x8769, 0x9286, 0x0131  # Exif 2.3, 4.6.5 and 4.6.3
_ASCII = b"ASCII\0\0\0"  # how a UserComment says its coding
_JPEG_ROOM = 65000  # bytes: a JPEG segment holds 65533 with its length, of which Exif's own entries take some hundred
_PART = ".dit-usp-{pid}-{number}.part"
_numbers = itertools.count()


@dataclass(frozen=True)
class Target:
    """A file to write: what a rank needs to know to save one result.

    Attributes:
        path: where; folders that are missing are made.
        metadata: what the file says about itself; must be JSON.
        overwrite: replace a file of that name; else the next free name is taken ("heart-2.png").
        fps: pictures a second of a clip; None: what suits its pipeline.

    Raises:
        ValueError: a JPEG with more metadata than the format has room for.
    """

    path: str
    metadata: Metadata = field(default_factory=dict)
    overwrite: bool = False
    fps: float | None = None

    def __post_init__(self) -> None:
        if _PICTURES.get(Path(self.path).suffix.lower()) == "JPEG" and len(_json(self.metadata)) > _JPEG_ROOM:
            raise ValueError(f"{Path(self.path).name}: JPEG has room for {_JPEG_ROOM} bytes about a picture; use .png or a shorter prompt.")

    @property
    def wants_latents(self) -> bool:
        """Whether the result goes into the file before it is decoded."""
        return Path(self.path).suffix.lower() == TENSORS


def save(result: Image | Sequence[Image] | Clip | Sound | Mapping[str, Any], target: Target) -> Path:
    """Write one result and return the path it got: a picture, a clip (or its frames), a sound, or tensors by name.

    Raises:
        ValueError: the suffix names no format that holds this kind of result.
        OSError: the disk is full, the folder cannot be written; nothing is left behind.
    """
    if isinstance(result, Mapping):
        return write_whole(formats.tensors(result, target.metadata), Path(target.path), overwrite=target.overwrite)
    if isinstance(result, Sound):
        return _save_sound(result, target)
    if isinstance(result, Sequence):
        result = Clip(result)
    if not isinstance(result, Clip):
        return save_image(result, target.path, target.metadata, overwrite=target.overwrite)
    if len(result.frames) == 1 and Path(target.path).suffix.lower() not in SUFFIXES["clip"]:
        return save_image(result.frames[0], target.path, target.metadata, overwrite=target.overwrite)
    return save_clip(result, target.path, target.metadata, overwrite=target.overwrite, fps=target.fps or DEFAULT_FPS)


def save_image(image: Image, path: str | Path, metadata: Metadata, *, overwrite: bool = False, **options: Any) -> Path:
    """Write a picture as PNG, JPEG or WebP by its suffix and return the path it got.

    Args:
        options: pillow's for the format, such as quality=90.
    """
    path = Path(path)
    form = file_format(path, "picture")
    told = {**metadata, "width": image.width, "height": image.height}
    defaults: dict[str, Any] = {"PNG": {"pnginfo": _png_text(told)}, "JPEG": {"quality": 95}, "WEBP": {"quality": 95}}[form]
    if form != "PNG":
        defaults["exif"] = _exif(told)
    data = io.BytesIO()
    (image.convert("RGB") if form == "JPEG" else image).save(data, form, **defaults | options)
    return write_whole(data.getbuffer(), path, overwrite=overwrite)


def save_clip(clip: Clip | Sequence[Image], path: str | Path, metadata: Metadata, *, overwrite: bool = False, fps: float = DEFAULT_FPS) -> Path:
    """Write a clip as mp4 (H.264), webm (VP9), animated WebP or GIF (256 colours, no sound either) by the suffix and return the path it got."""
    path, clip = Path(path), clip if isinstance(clip, Clip) else Clip(clip)
    form, first = file_format(path, "clip"), clip.frames[0]
    told = {**metadata, "width": first.width, "height": first.height, "frames": len(clip.frames), "fps": fps}
    if clip.sound and form in _MOVIES.values():
        told["sampling_rate"] = clip.sound.rate
    if form in _MOVIES.values():
        return written(path, lambda temporary: formats.write_movie(clip, temporary, form, fps, told), overwrite=overwrite)
    options: dict[str, Any] = {"exif": _exif(told), "quality": 90} if form == "WEBP" else {"comment": _json(told).encode()}
    data = io.BytesIO()
    delays = _delays(len(clip.frames), fps, _UNITS[form])
    first.save(data, form, save_all=True, append_images=list(clip.frames[1:]), duration=delays, loop=0, **options)
    return write_whole(data.getbuffer(), path, overwrite=overwrite)


def _delays(frames: int, fps: float, unit: int) -> list[int]:
    """Milliseconds that each frame is shown, in whole units that add up to the clip's length."""
    ends = [round(number * 1000 / fps / unit) * unit for number in range(frames + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _save_sound(sound: Sound, target: Target) -> Path:
    file_format(Path(target.path), "sound")
    told = {**target.metadata, "seconds": round(sound.samples.shape[-1] / sound.rate, 3), "sampling_rate": sound.rate}
    return write_whole(formats.wav(sound, told), Path(target.path), overwrite=target.overwrite)


def file_format(path: Path, kind: str) -> str:
    """The name of the format that a file's suffix stands for.

    Args:
        kind: "picture", "clip" or "sound".

    Raises:
        ValueError: it stands for none that holds this kind, or for one that needs PyAV; names those that work.
    """
    if (suffix := path.suffix.lower()) not in SUFFIXES[kind]:
        names = f"{', '.join(SUFFIXES[kind])} (latents: {TENSORS})"
        raise ValueError(
            f"{path.name}: a {kind} is written as {names}, not {suffix}." if suffix else f"{path.name}: a {kind} needs a suffix: {names}."
        )
    if suffix in _MOVIES and not has_pyav():
        raise ValueError(f"{path.name}: {suffix} needs {NEEDS_PYAV}; or use .webp.")
    return SUFFIXES[kind][suffix]


def result_format(path: Path, made: Call) -> str:
    """`file_format` for what a pipeline makes, or "safetensors" for its latents.

    Raises:
        ValueError: also for latents that the pipeline does not give, and for a pipeline that gives nothing else.
    """
    if path.suffix.lower() == TENSORS:
        if made.name in NO_LATENTS or not made.gives_latents:
            raise ValueError(f"{path.name}: {made.name} has no latents to save; use {', '.join(SUFFIXES[made.kind])}.")
        return "safetensors"
    if reason := _LATENTS_ONLY.get(made.name):
        raise ValueError(f"{path.name}: {made.name} {reason.format(suffix=path.suffix)}; use {TENSORS}.")
    return file_format(path, made.kind)


def default_suffix(made: Call) -> str:
    """Of files that are named after their prompt."""
    if made.name in _LATENTS_ONLY:
        return TENSORS
    return {"picture": ".png", "clip": ".mp4" if has_pyav() else ".webp", "sound": ".wav"}[made.kind]


def written(path: Path, write: Callable[[Path], Any], *, overwrite: bool = False) -> Path:
    """Have `write` fill a file that appears complete or not at all, under `path` or, if that is taken and to be kept, the next free name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_PART.format(pid=os.getpid(), number=next(_numbers)))
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may say so only now
        if overwrite:
            return temporary.replace(path)
        return next(name for name in _names(path) if _take(temporary, name))
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        name = path if overwrite else free_name(path)
        raise OSError(error.errno, error.strerror, str(name)) from error  # a write that fails names no file, PyAV the temporary one
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(data: bytes | memoryview, path: Path, *, overwrite: bool = False) -> Path:
    """`written` of bytes."""
    return written(path, lambda temporary: temporary.write_bytes(data), overwrite=overwrite)


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
        ValueError: it is of no kind that is written here, or carries no metadata of ours.
    """
    read = {".mp4": formats.movie_metadata, ".webm": formats.movie_metadata, ".wav": formats.wav_metadata, TENSORS: formats.tensors_metadata}
    with open(path, "rb"):
        pass  # says what is wrong alike for every format
    try:
        text = read.get(Path(path).suffix.lower(), _picture_metadata)(path)
        told = json.loads(text) if text else None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} carries damaged metadata.") from error
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} cannot be read: that needs {NEEDS_PYAV}.") from error
    if not isinstance(told, dict):
        raise ValueError(f"{path} carries no metadata of dit-usp.")
    return told


def _picture_metadata(path: str | Path) -> str | None:
    """The JSON text in a picture or animation, if there is one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return _stored(image)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read.") from error


def _stored(image: Image) -> str | None:
    """The JSON text in an open file, if there is one."""
    if image.format == "PNG":
        return image.info.get(KEY)
    if image.format == "GIF":
        comment = image.info.get("comment", b"").decode(errors="replace")
        return comment if comment.startswith("{") else None
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
    text.add_text(KEY, _json(metadata))
    return text


def _exif(metadata: Metadata) -> Exif:
    from PIL.Image import Exif

    exif = Exif()
    exif[_SOFTWARE] = _software(metadata)
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + _json(metadata).encode()
    return exif


def _software(metadata: Metadata) -> str:
    return f"dit-usp {metadata.get('versions', {}).get('dit-usp', '')}".strip()

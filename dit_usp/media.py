"""Pictures, clips, sounds and tensors from files, as the arguments of pipelines want them. No torch here until one is read.

Paths travel to the ranks, not pixels: a clip of 81 frames of 1280 x 720 is 220 MB, of which every rank would get a copy through a pickle. All ranks
read the same file, as they read the model's; that they got the same is compared when the pipeline is called.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dit_usp.signature import Parameter

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

TENSORS = ".safetensors"
NEEDS_PYAV = "PyAV, which is not installed: pip install 'dit-usp[video]'"
_UNIT = 10.0  # milliseconds: GIF's
PILLOWS = (".gif", ".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # what pillow reads; other clips need PyAV


@dataclass(frozen=True)
class Clip:
    """The first `frames` pictures of a clip's file or folder; None: all of them."""

    path: str
    frames: int | None = None


@dataclass(frozen=True)
class Form:
    """How a pipeline wants an argument that is read from a file.

    Attributes:
        kind: "picture", "clip", "sound", or "condition": a clip in a class of the pipeline's module.
        mode: pillow's, of the pixels; L: masks.
        listed: a list also of one picture.
        axes: of a tensor that stands for the clip or sound; none: a list of pictures.
        scale: of such a tensor's white.
    """

    kind: str
    mode: str = "RGB"
    listed: bool = False
    axes: str = ""
    scale: float = 1.0

    @property
    def words(self) -> str:
        """For messages."""
        return {"picture": "a picture's file", "sound": "a sound's file"}.get(self.kind, "a clip's file or a folder of pictures")


_PICTURE, _PICTURES, _MASK, _CLIP = Form("picture"), Form("picture", listed=True), Form("picture", "L"), Form("clip")
FORMS: dict[str, Form] = {
    **dict.fromkeys(("image", "cond_image", "image_reference", "control_image", "last_image"), _PICTURE),
    **dict.fromkeys(("ip_adapter_image", "negative_ip_adapter_image"), _PICTURE),
    **dict.fromkeys(("images", "input_images", "reference_images", "text_images"), _PICTURES),
    **dict.fromkeys(("mask_image", "mask", "control_mask"), _MASK),
    **dict.fromkeys(("video", "control_video", "controls", "pose_video", "face_video", "background_video"), _CLIP),
    "mask_video": Form("clip", "L"),
    **dict.fromkeys(("audio", "initial_audio_waveforms"), Form("sound", axes="BCN")),
    **dict.fromkeys(("src_audio", "reference_audio"), Form("sound", axes="CN")),
    **dict.fromkeys(("conditions", "reference_conditions"), Form("condition")),
}
# Where a pipeline means something else by the name; None: nothing that a file could give.
_OTHERS: dict[tuple[str, str], Form | None] = {
    ("AnyFlowFARPipeline", "video"): Form("clip", axes="BFCHW"),
    ("EasyAnimateControlPipeline", "control_video"): Form("clip", axes="BCFHW"),
    ("EasyAnimateControlPipeline", "ref_image"): Form("clip", axes="BCFHW"),
    ("EasyAnimateInpaintPipeline", "video"): Form("clip", axes="BCFHW"),
    ("EasyAnimateInpaintPipeline", "mask_video"): Form("clip", "L", axes="BCFHW", scale=255.0),
    ("GlmImagePipeline", "image"): _PICTURES,
    ("QwenImageLayeredPipeline", "image"): Form("picture", "RGBA"),
    ("StableAudio3InpaintPipeline", "mask"): None,  # in latents; mask_start_seconds and mask_end_seconds say the same
    ("VisualClozePipeline", "image"): None,  # a table of examples
    ("VisualClozeGenerationPipeline", "image"): None,
    ("WanVACEPipeline", "mask"): Form("clip", "L"),
    ("ZImageOmniPipeline", "image"): _PICTURES,
}
_RATES = (
    "vocoder.config.output_sampling_rate",
    "audio_sample_rate",
    "sample_rate",
    "sound_tokenizer.config.sampling_rate",
    "vae.config.sampling_rate",
)


def form(pipeline: str, argument: str) -> Form | None:
    """What the diffusers class `pipeline` wants for an argument, if that is read from a file."""
    return _OTHERS.get((pipeline, argument), FORMS.get(argument))


def takes_tensor(parameter: Parameter) -> bool:
    """Whether an argument may be a tensor."""
    return "Callable" not in parameter.names and any(name.endswith("Tensor") for name in parameter.names)


# -- reading


def read_picture(path: str | Path, mode: str = "RGB") -> Image:
    """A picture as cameras mean it (turned as Exif says), in a pillow mode; transparent parts become white, in a mask black."""
    with _told(path):
        import PIL.Image

        with PIL.Image.open(path) as image:
            return _converted(image, mode)


def _converted(image: Image, mode: str) -> Image:
    import PIL.Image
    from PIL.ImageOps import exif_transpose

    image = exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which pillow would cut off at 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "black" if mode == "L" else "white"), image)
    return image.convert(mode)


def read_clip(path: str | Path, mode: str = "RGB", frames: int | None = None) -> list[Image]:
    """The frames of a clip, of an animation, or of a folder of pictures in the order of the numbers in their names."""
    with _told(path):
        pictures = list(_frames(Path(path), mode, frames))
    if not pictures:
        raise ValueError(f"{path} cannot be read: there are no pictures in it.")
    return pictures


def _frames(path: Path, mode: str, frames: int | None) -> Iterator[Image]:
    if path.is_dir():
        for file in sorted((file for file in path.iterdir() if file.suffix.lower() in PILLOWS), key=_natural)[:frames]:
            yield read_picture(file, mode)
    elif path.suffix.lower() in PILLOWS:
        import PIL.Image

        with PIL.Image.open(path) as image:
            shown = (number for number, times in enumerate(_times(image)) for _ in range(times))
            for number in islice(shown, frames):
                image.seek(number)
                yield _converted(image, mode)
    else:
        import av

        with av.open(path) as container:
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number == frames:
                    return
                yield frame.to_image().rotate(frame.rotation, expand=True).convert(mode)


def _delays(image: Any) -> list[float]:
    """Milliseconds that each picture of an animation is shown; 0: it does not say."""
    delays = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        image.load()  # webp tells only then
        delays.append(image.info.get("duration") or 0)
    return delays


def _frame_time(image: Any, delays: list[float]) -> float:
    """Milliseconds of one frame: as files written here tell, else of the shortest, which GIF rounds to whole hundredths of a second."""
    with suppress(ValueError, KeyError, TypeError):
        return 1000 / json.loads(image.info["comment"])["fps"]
    return fmean(delay for delay in delays if delay < 2 * min(delays) and delay <= min(delays) + _UNIT) if min(delays) else 0.0


def _times(image: Any) -> list[int]:
    """How many frames each picture of an animation stands for: encoders keep one of those that are alike, and show it longer."""
    delays = _delays(image)
    one = _frame_time(image, delays)
    return [max(1, round(delay / one)) if one else 1 for delay in delays]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts frame2.png before frame10.png."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def clip_fps(path: str | Path) -> float | None:
    """Frames a second of a clip; None where nothing says so."""
    path = Path(path)
    with _told(path):
        if path.is_dir():
            return None
        if path.suffix.lower() in PILLOWS:
            import PIL.Image

            with PIL.Image.open(path) as image:
                one = _frame_time(image, _delays(image))
            return 1000 / one if one else None
        import av

        with av.open(path) as container:
            rate = container.streams.video[0].average_rate
        return float(rate) if rate else None


def given_fps(pipeline: str, call: Mapping[str, Any]) -> float | None:
    """Frames a second of the first clip's file in a call; None where there is none, or nothing says so."""
    files = (value for name, value in call.items() if (wanted := form(pipeline, name)) and (wanted.kind, wanted.mode) == ("clip", "RGB"))
    return next((clip_fps(file) for file in files if isinstance(file, (str, Path))), None)


def count_frames(path: str | Path) -> int:
    """How many frames a clip has."""
    path = Path(path)
    with _told(path):
        if path.is_dir():
            return sum(file.suffix.lower() in PILLOWS for file in path.iterdir())
        if path.suffix.lower() in PILLOWS:
            import PIL.Image

            with PIL.Image.open(path) as image:
                return sum(_times(image))
        import av

        with av.open(path) as container:
            video = container.streams.video[0]
            return video.frames or sum(packet.size > 0 for packet in container.demux(video))  # Matroska does not say


def read_sound(path: str | Path, rate: int, channels: int | None = None) -> np.ndarray:
    """A sound, or a clip's, at `rate` samples a second: (C, N), -1 to 1. `channels` are as in the file when None, at most two."""
    with _told(path):
        import av
        import numpy as np

        with av.open(path) as container:
            stream = container.streams.audio[0]
            layout = "mono" if (channels or stream.channels) == 1 else "stereo"
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            decoded = [*container.decode(stream), None]  # None: what the resampler still holds
            parts = [part.to_ndarray() for frame in decoded for part in resampler.resample(frame)]
    if not parts:
        raise ValueError(f"{path} cannot be read: there is no sound in it.")
    return np.concatenate(parts, axis=1)


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Within it, what the libraries raise becomes one line that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} cannot be read: that needs {NEEDS_PYAV}.") from error
    except IndexError as error:
        raise ValueError(f"{path} cannot be read: it has none of what is asked for.") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} cannot be read: it is in no known format.") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # pillow's and PyAV's
        if type(error) is ValueError:  # ours
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path} cannot be read: {reason.rstrip('.')}.") from error


# -- checking, before a rank starts


def check(path: str, wanted: Form, what: str) -> None:
    """A file can be read as `wanted`: one picture, or the beginning of a clip or sound, is decoded.

    Raises:
        ValueError: it cannot; `what` says which of the user's words is meant.
    """
    try:
        if wanted.kind == "picture":
            read_picture(path, wanted.mode)
        elif wanted.kind == "sound":
            _check_sound(path)
        else:
            read_clip(path, wanted.mode, frames=1)
    except ValueError as error:
        raise ValueError(f"{what}{str(error).removeprefix(str(path))}") from error


def _check_sound(path: str) -> None:
    with _told(path):
        import av

        with av.open(path) as container:
            next(container.decode(container.streams.audio[0]), None)


def check_tensor(path: str, argument: str, what: str) -> None:
    """A .safetensors file holds a tensor for `argument`: its own name's, or the only one.

    Raises:
        ValueError: it does not.
    """
    try:
        _tensor_name(Path(path), argument)
    except ValueError as error:
        raise ValueError(f"{what}{str(error).removeprefix(path)}") from error


def tensors_header(path: str | Path) -> dict[str, Any]:
    """The header of a .safetensors file: a length in 8 bytes, then JSON (the format's own description)."""
    with _told(path), open(path, "rb") as file:
        data = file.read(8)
        length = struct.unpack("<Q", data)[0] if len(data) == 8 else 2**63
        with suppress(ValueError):
            return json.loads(file.read(min(length, 100_000_000)))
    raise ValueError(f"{path} cannot be read: it is no .safetensors file.")


def _tensor_name(path: Path, argument: str) -> str:
    names = [name for name in tensors_header(path) if name != "__metadata__"]
    if argument in names:
        return argument
    if len(names) != 1:
        raise ValueError(f"{path} cannot be read: it has no {argument}; it has {', '.join(names) or 'nothing'}.")
    return names[0]


# -- for a pipeline


def opened(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with what its files hold in place of their paths: str, Path or Clip, in arguments that take pictures, clips, sounds or tensors."""
    name = type(pipe).__name__.removeprefix("USP")
    values: dict[str, Any] = {}
    for argument, value in call.items():
        if (wanted := form(name, argument)) and _are_files(value):
            values[argument] = _opened(pipe, argument, value, wanted)
        elif _is_tensor_file(value) and argument in (parameters := inspect.signature(type(pipe).__call__).parameters):
            values[argument] = _tensor(Path(value), argument) if "Tensor" in str(parameters[argument].annotation) else value
        else:
            values[argument] = value
    for argument, value in values.items():
        if argument in call and (wanted := form(name, argument)) and (wanted.kind, wanted.mode) == ("clip", "L"):
            values[argument] = _as_long(value, values.get("video"), wanted)
    if "initial_audio_waveforms" in values:
        values.setdefault("initial_audio_sampling_rate", sampling_rate(pipe))
    return values


def _are_files(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_are_files, value))
    return isinstance(value, (str, Path, Clip)) or (isinstance(value, dict) and _are_files(value.get("frames")))


def _is_tensor_file(value: Any) -> bool:
    return isinstance(value, (str, Path)) and Path(value).suffix == TENSORS


def _opened(pipe: Any, argument: str, value: Any, wanted: Form) -> Any:
    """One argument: a file, or a list of them."""
    if isinstance(value, (list, tuple)):
        return [_opened(pipe, argument, item, replace(wanted, listed=False)) for item in value]
    if wanted.kind == "condition":
        return _condition(pipe, argument)(**{**value, "frames": read_clip(value["frames"])})
    if wanted.kind == "picture":
        picture = read_picture(value, wanted.mode)
        return [picture] if wanted.listed else picture
    if wanted.kind == "sound":
        rate, channels = sampling_rate(pipe), getattr(pipe.vae.config, "audio_channels", None)
        return _as_tensor(pipe, read_sound(value, rate, channels), "CN", wanted)
    clip = value if isinstance(value, Clip) else Clip(str(value))
    frames = read_clip(clip.path, wanted.mode, clip.frames)
    return _pixels(pipe, frames, wanted) if wanted.axes else frames


def _as_long(mask: Any, video: Any, wanted: Form) -> Any:
    """A mask of one frame for every frame of its clip."""
    if wanted.axes and video is not None and mask.shape[wanted.axes.index("F")] == 1:
        return mask.expand(*mask.shape[:2], video.shape[wanted.axes.index("F")], *mask.shape[3:])
    return mask * len(video) if isinstance(mask, list) and isinstance(video, list) and len(mask) == 1 else mask


def _condition(pipe: Any, argument: str) -> Any:
    """The class of the pipeline's module that its annotation names."""
    function = inspect.unwrap(type(pipe).__call__)
    names = re.findall(r"\w+Condition\b", str(inspect.signature(function).parameters[argument].annotation))
    return function.__globals__[names[0]]


def _pixels(pipe: Any, frames: list[Image], wanted: Form) -> Any:
    import numpy as np

    return _as_tensor(pipe, np.stack([np.atleast_3d(np.asarray(frame)) for frame in frames]).astype(np.float32) / 255 * wanted.scale, "FHWC", wanted)


def _as_tensor(pipe: Any, array: np.ndarray, axes: str, wanted: Form) -> Any:
    """An array as a tensor with the axes that are wanted, of which B is new, where the pipeline computes."""
    import torch

    tensor = torch.from_numpy(array).permute(*(axes.index(axis) for axis in wanted.axes if axis != "B"))
    tensor = tensor.to(pipe._execution_device, pipe.vae.dtype if wanted.kind == "sound" else torch.float32)
    return tensor[None] if wanted.axes.startswith("B") else tensor


def _tensor(path: Path, argument: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(_tensor_name(path, argument))


def sampling_rate(pipe: Any) -> int:
    """Samples a second of the sound that a pipeline takes and gives."""
    for path in _RATES:
        with suppress(AttributeError):
            return int(reduce(getattr, path.split("."), pipe))
    raise ValueError(f"{type(pipe).__name__} does not say at what rate it samples sound.")


def has_pyav() -> bool:
    """Whether clips with a codec can be read and written."""
    return importlib.util.find_spec("av") is not None

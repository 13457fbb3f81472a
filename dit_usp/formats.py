"""Files that pillow does not write: clips with a codec, sounds, tensors; each with its story. No torch or PyAV before one is written or read."""

from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_usp.media import tensors_header

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

KEY = "dit-usp"  # of the metadata in formats that let us choose one

# container -> codecs of pictures and sound, and what the encoder is told
_MOVIES: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4": ("libx264", "aac", {"crf": "18", "preset": "medium"}),  # crf 18: x264's own documentation calls it nearly without loss
    "webm": ("libvpx-vp9", "libopus", {"crf": "24", "b:v": "0"}),  # b:v 0: quality alone decides, says libvpx
}
_BT709 = 1  # its number for primaries, transfer and matrix in ITU-T H.273
_LIMITED = 1  # libavutil's number for a range of 16 to 235


@dataclass(frozen=True)
class Sound:
    """Samples from -1 to 1, (C, N) or (N,), at `rate` a second."""

    samples: np.ndarray
    rate: int


@dataclass(frozen=True)
class Clip:
    """Frames, and the sound that goes with them."""

    frames: Sequence[Image]
    sound: Sound | None = None


def write_movie(clip: Clip, path: Path, form: str, fps: float, told: Mapping[str, Any]) -> None:
    """Write H.264 and AAC in mp4, ready to play while it loads, or VP9 and Opus in webm.

    Both code colours for two by two pixels: an odd last column or row is there twice in the file.
    """
    import av

    codec, sound_codec, options = _MOVIES[form]
    with av.open(path, "w", format=form, options={"movflags": "+faststart"} if form == "mp4" else {}) as container:
        container.metadata.update(title=str(told.get("prompt", "")), comment=json.dumps(dict(told)))
        video: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        width, height = clip.frames[0].size
        video.width, video.height, video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = video.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = _LIMITED
        sound: Any = _sound_stream(container, sound_codec, clip.sound) if clip.sound else None
        for picture in clip.frames:
            frame = av.VideoFrame.from_ndarray(_even(picture), format="rgb24")
            container.mux(video.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")))
        container.mux(video.encode(None))
        if clip.sound:
            for heard in (*_sound_frames(clip.sound, sound.rate), None):
                container.mux(sound.encode(heard))


def _even(picture: Image) -> np.ndarray:
    """(H, W, 3) with H and W even, the edge repeated."""
    import numpy as np

    array = np.asarray(picture.convert("RGB"))
    return np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")


def _sound_stream(container: Any, codec: str, sound: Sound) -> Any:
    """At the sound's own rate if the codec has it, else at 48 kHz."""
    import av

    rates = av.Codec(codec, "w").audio_rates or []
    return container.add_stream(codec, rate=sound.rate if sound.rate in rates else 48000, layout=_layout(sound))


def _sound_frames(sound: Sound, rate: int) -> Iterator[Any]:
    """The samples as PyAV's frames at `rate`, each with its time: the resampler leaves out the first one's."""
    import av
    import numpy as np

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(_channels(sound), dtype=np.float32), format="fltp", layout=_layout(sound))
    frame.sample_rate = sound.rate
    resampler = av.AudioResampler(format="fltp", layout=_layout(sound), rate=rate)
    start = 0
    for part in (part for given in (frame, None) for part in resampler.resample(given)):  # None: what it still holds
        part.pts, part.time_base = start, Fraction(1, rate)
        start += part.samples
        yield part


def _channels(sound: Sound) -> np.ndarray:
    """(C, N), one or two channels."""
    return sound.samples.reshape(-1, sound.samples.shape[-1])[:2]


def _layout(sound: Sound) -> str:
    return "stereo" if len(_channels(sound)) == 2 else "mono"


def movie_metadata(path: str | Path) -> str | None:
    """The JSON text in a clip with a codec, if there is one."""
    import av

    try:
        with av.open(path) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}  # Matroska's are in capitals
    except av.FFmpegError as error:
        raise ValueError(f"{path} is not a clip that can be read.") from error
    return tags.get("comment")


def wav(sound: Sound, told: Mapping[str, Any]) -> bytes:
    """A WAV file of 16 bits a sample. The story is its comment: an INFO list behind the samples (RIFF, Multimedia Programming Interface 1.0)."""
    import numpy as np

    samples = np.clip(np.nan_to_num(_channels(sound)), -1, 1) * 32767
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((len(samples), 2, sound.rate, 0, "NONE", ""))
        file.writeframes(samples.T.round().astype("<i2").tobytes())
    whole = data.getvalue() + _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", json.dumps(dict(told)).encode() + b"\0"))
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def wav_metadata(path: str | Path) -> str | None:
    """The JSON text in a WAV file, if there is one."""
    data = Path(path).read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError(f"{path} is not a sound that can be read.")
    chunks = _chunks(data[12:])
    info = chunks.get(b"LIST", b"")
    return _chunks(info[4:]).get(b"ICMT", b"").rstrip(b"\0").decode() or None if info[:4] == b"INFO" else None


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a RIFF file by name."""
    found, start = {}, 0
    while start + 8 <= len(data):
        length = struct.unpack("<I", data[start + 4 : start + 8])[0]
        found[data[start : start + 4]] = data[start + 8 : start + 8 + length]
        start += 8 + length + length % 2
    return found


def tensors(named: Mapping[str, Any], told: Mapping[str, Any]) -> bytes:
    """A .safetensors file of torch tensors."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}, {KEY: json.dumps(dict(told))})


def tensors_metadata(path: str | Path) -> str | None:
    """The JSON text in a .safetensors file, if there is one."""
    return tensors_header(path).get("__metadata__", {}).get(KEY)

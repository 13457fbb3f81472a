"""What pillow does not write: clips that a browser plays, sounds, tensors; each says how it was made."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dit_usp.formats import Clip, Sound
from dit_usp.saving import Target, read_metadata, save

TOLD = {"prompt": 'ein "rotes" Herz ❤\nzwei', "seed": 2**63 - 1, "set": {"eta": None}, "versions": {"dit-usp": "1.2"}}
SOUND = Sound(np.sin(np.arange(12000) / 9)[None].repeat(2, 0), 24000)


def frames(width: int, height: int, count: int = 6) -> list[Image.Image]:
    return [Image.new("RGB", (width, height), (200, 30 * number, 60)) for number in range(count)]


def test_an_mp4_plays_in_a_browser(tmp_path: Path) -> None:
    """H.264 in 4:2:0, its index before its data, the colours marked as what they are."""
    path = save(Clip(frames(48, 32), SOUND), Target(str(tmp_path / "a.mp4"), TOLD, fps=12.5))
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt, video.average_rate) == ("h264", "yuv420p", 12.5)
        assert (video.codec_context.colorspace, video.codec_context.color_range) == (1, 1)
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", 24000, 2)
        assert len(list(container.decode(video))) == 6
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert [name.name for name in tmp_path.iterdir()] == ["a.mp4"]


def test_a_webm_is_vp9_and_opus(tmp_path: Path) -> None:
    path = save(Clip(frames(48, 32), SOUND), Target(str(tmp_path / "a.webm"), TOLD, fps=12.5))
    with av.open(str(path)) as container:
        assert (container.streams.video[0].codec_context.name, container.streams.audio[0].codec_context.name) == ("vp9", "opus")


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("sound", [None, SOUND, Sound(np.zeros(500), 22222)])
def test_metadata_of_clips_comes_back(tmp_path: Path, suffix: str, sound: Sound | None) -> None:
    """Also beside a sound at a rate that no codec has, and for a prompt longer than any picture's."""
    told = {**TOLD, "prompt": "x" * 100_000}
    path = save(Clip(frames(48, 32), sound), Target(str(tmp_path / f"a.{suffix}"), told, fps=10))
    rate = {"sampling_rate": sound.rate} if sound else {}
    assert read_metadata(path) == {**told, "width": 48, "height": 32, "frames": 6, "fps": 10, **rate}


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_odd_sizes_get_their_last_row_and_column_twice(tmp_path: Path, suffix: str) -> None:
    path = save(frames(47, 31), Target(str(tmp_path / f"a.{suffix}"), TOLD))
    told = read_metadata(path)
    assert (told["width"], told["height"]) == (47, 31)
    with av.open(str(path)) as container:
        picture = np.asarray(next(container.decode(video=0)).to_image()).astype(int)
    assert picture.shape == (32, 48, 3)
    assert abs(picture - (200, 0, 60)).max() <= 8


def test_others_clips_and_sounds_carry_no_metadata(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.mux([*stream.encode(av.VideoFrame.from_image(frames(48, 32)[0])), *stream.encode(None)])
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 100)
    torch.save({}, tmp_path / "a.pt")
    for name in ("a.mp4", "a.wav"):
        with pytest.raises(ValueError, match="carries no metadata"):
            read_metadata(tmp_path / name)
    for suffix in ("mp4", "wav", "safetensors"):
        other = (tmp_path / "a.pt").rename(tmp_path / f"b.{suffix}")
        with pytest.raises(ValueError, match=r"cannot be read|can be read"):
            read_metadata(other)
        other.rename(tmp_path / "a.pt")


@pytest.mark.parametrize("samples", [np.linspace(-1.5, 1.5, 400), np.linspace(-1, 1, 801)[None], np.zeros((2, 400))])
def test_a_sound_is_a_wav_that_every_program_reads(tmp_path: Path, samples: np.ndarray) -> None:
    path = save(Sound(samples, 8000), Target(str(tmp_path / "a.wav"), TOLD))
    assert read_metadata(path) == {**TOLD, "seconds": round(samples.shape[-1] / 8000, 3), "sampling_rate": 8000}
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (
            max(1, samples.ndim and len(samples.reshape(-1, samples.shape[-1]))),
            2,
            8000,
        )
        heard = np.frombuffer(file.readframes(10**6), "<i2").reshape(-1, file.getnchannels()).T / 32767
    assert abs(heard - samples.clip(-1, 1)).max() < 1e-4


def test_latents_keep_every_bit(tmp_path: Path) -> None:
    named = {"latents": torch.randn(1, 4, 3).bfloat16(), "audio_latents": torch.randn(5, 2).T}
    path = save(named, Target(str(tmp_path / "a.safetensors"), TOLD))
    assert read_metadata(path) == TOLD
    assert all(torch.equal(value, named[name]) for name, value in load_file(path).items())


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations_hold_the_pictures_of_a_clip_with_sound(tmp_path: Path, suffix: str) -> None:
    path = save(Clip(frames(48, 32), SOUND), Target(str(tmp_path / f"a.{suffix}"), TOLD))
    told = read_metadata(path)
    assert told["frames"] == 6
    assert "sampling_rate" not in told

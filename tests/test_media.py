"""Reading what pipelines start from: as cameras mean it, in any format, and in one line where it cannot be read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_usp.formats import Clip, Sound, tensors, wav, write_movie
from dit_usp.media import clip_fps, count_frames, form, opened, read_clip, read_picture, read_sound, sampling_rate


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """Red grows to the right, green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, red * 0], axis=-1).astype(np.uint8))


def error(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


# -- pictures


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Exif 2.3, 4.6.4: the top row is the right side
    gradient().save(tmp_path / "a.png", exif=exif)
    assert error(read_picture(tmp_path / "a.png"), gradient().rotate(-90, expand=True)) == 0


def test_transparent_parts_are_white_and_in_masks_black(tmp_path: Path) -> None:
    picture = gradient().convert("RGBA")
    picture.paste((9, 9, 9, 0), (0, 0, 10, 10))
    picture.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").getpixel((5, 5)) == (255, 255, 255)
    assert read_picture(tmp_path / "a.png", "L").getpixel((5, 5)) == 0
    assert read_picture(tmp_path / "a.png", "RGBA").getpixel((5, 5)) == (9, 9, 9, 0)
    assert read_picture(tmp_path / "a.png").getpixel((20, 20)) == gradient().getpixel((20, 20))


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.save(tmp_path / "a.gif", transparency=1)
    assert read_picture(tmp_path / "a.gif").getpixel((3, 3)) == (255, 255, 255)


def test_sixteen_bits_a_pixel_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").getpixel((3, 3)) == (128, 128, 128)


# -- clips


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A clip of 12 frames that turn from red to blue, at 12.5 frames a second with a second of sound, in every form."""
    folder = tmp_path_factory.mktemp("clips")
    frames = [Image.new("RGB", (48, 32), (255 - 20 * number, 0, 20 * number)) for number in range(12)]
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / "frames" / f"frame{number}.png")
    sound = Sound(np.sin(np.arange(24000) / 12)[None], 24000)
    for suffix in ("mp4", "webm"):
        write_movie(Clip(frames, sound), folder / f"a.{suffix}", suffix, 12.5, {})
    for suffix in ("gif", "webp"):
        frames[0].save(folder / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=80)
    (folder / "a.wav").write_bytes(wav(sound, {}))
    return {path.suffix.removeprefix(".") or path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif", "webp", "frames"])
def test_a_clip_is_read_in_order(clip: dict[str, Path], suffix: str) -> None:
    frames = read_clip(clip[suffix])
    colours = np.array([np.asarray(frame)[16, 24] for frame in frames])
    wanted = np.array([(255 - 20 * number, 0, 20 * number) for number in range(12)])
    assert abs(colours - wanted).max() <= 8  # of the right matrix: BT.601 taken for BT.709 is 20 off
    assert [frame.getpixel((5, 5)) for frame in read_clip(clip[suffix], frames=3)] == [frame.getpixel((5, 5)) for frame in frames[:3]]
    assert count_frames(clip[suffix]) == 12
    assert clip_fps(clip[suffix]) == (None if suffix == "frames" else 12.5)


def test_a_clip_is_turned_as_its_camera_says(clip: dict[str, Path], tmp_path: Path) -> None:
    """The matrix in the track's header (ISO/IEC 14496-12, 8.3.2) says how to turn it: here by a quarter."""
    upright, quarter = (b"".join(number.to_bytes(4, "big", signed=True) for number in (*matrix, 0, 0, 0x40000000)) for matrix in MATRICES)
    data = clip["mp4"].read_bytes()
    start = data.index(upright, data.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(data[:start] + quarter + data[start + 36 :])
    assert read_clip(tmp_path / "turned.mp4", frames=1)[0].size == (32, 48)


MATRICES = ((0x10000, 0, 0, 0, 0x10000, 0), (0, 0x10000, 0, -0x10000, 0, 0))


# -- sounds


@pytest.mark.parametrize("suffix", ["wav", "mp4", "webm"])
def test_a_sound_is_read_at_the_rate_and_in_the_channels_wanted(clip: dict[str, Path], suffix: str) -> None:
    sound = read_sound(clip[suffix], 16000, channels=2)
    assert sound.shape[0] == 2
    assert sound.shape[1] == pytest.approx(16000, abs=1000)
    spectrum = abs(np.fft.rfft(sound[0]))
    assert spectrum.argmax() * 16000 / sound.shape[1] == pytest.approx(24000 / 12 / 2 / np.pi, abs=3)  # the same tone
    assert len(read_sound(clip[suffix], 16000)) == 1


# -- for pipelines


def stand_in(name: str, **members: Any) -> Any:
    """An object whose class has that name and a call that takes latents."""

    def call(self: Any, latents: torch.Tensor | None = None) -> None: ...

    cls = type(name, (), {"__call__": call})
    pipe = cls()
    vars(pipe).update(
        _execution_device="cpu", vae=SimpleNamespace(dtype=torch.float32, config=SimpleNamespace(sampling_rate=16000, audio_channels=2))
    )
    vars(pipe).update(members)
    return pipe


def test_paths_become_what_the_pipeline_wants(clip: dict[str, Path], tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    picture, many = str(tmp_path / "a.png"), str(clip["gif"])
    call = opened(stand_in("USPFluxImg2ImgPipeline"), {"image": picture, "mask_image": Path(picture), "prompt": picture, "strength": 0.5})
    assert (call["image"].mode, call["mask_image"].mode, call["prompt"], call["strength"]) == ("RGB", "L", picture, 0.5)
    assert [picture.size for picture in opened(stand_in("OmniGenPipeline"), {"input_images": picture})["input_images"]] == [(48, 32)]
    assert len(opened(stand_in("WanVideoToVideoPipeline"), {"video": many})["video"]) == 12
    assert opened(stand_in("EasyAnimateInpaintPipeline"), {"video": many})["video"].shape == (1, 3, 12, 32, 48)
    masks = opened(stand_in("EasyAnimateInpaintPipeline"), {"video": many, "mask_video": picture})["mask_video"]
    assert masks.shape == (1, 1, 12, 32, 48)
    assert masks.max() > 1  # 255 is white there
    call = opened(stand_in("StableAudioPipeline"), {"initial_audio_waveforms": str(clip["wav"])})
    assert call["initial_audio_waveforms"].shape[:2] == (1, 2)
    assert call["initial_audio_sampling_rate"] == 16000
    assert opened(stand_in("AceStepPipeline"), {"src_audio": str(clip["wav"])})["src_audio"].dim() == 2


def test_pictures_and_tensors_pass_as_they_are() -> None:
    image, video = gradient(), torch.zeros(1)
    call = opened(stand_in("FluxImg2ImgPipeline"), {"image": image, "latents": video})
    assert (call["image"], call["latents"]) == (image, video)


def test_a_tensor_is_read_by_its_name_or_as_the_only_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.write_bytes(tensors({"other": torch.ones(3)}, {}))
    two.write_bytes(tensors({"other": torch.ones(3), "latents": torch.zeros(2)}, {}))
    pipe = stand_in("FluxPipeline")
    assert torch.equal(opened(pipe, {"latents": str(one)})["latents"], torch.ones(3))
    assert torch.equal(opened(pipe, {"latents": two})["latents"], torch.zeros(2))
    assert opened(pipe, {"prompt": str(one)}) == {"prompt": str(one)}


def test_every_input_of_the_table_has_one_form() -> None:
    assert form("WanVACEPipeline", "mask") != form("BriaFibo2Pipeline", "mask")
    assert form("StableAudio3InpaintPipeline", "mask") is None
    assert form("FluxPipeline", "prompt") is None


def test_the_sampling_rate_is_the_vocoders_before_the_vaes() -> None:
    vocoder = SimpleNamespace(config=SimpleNamespace(output_sampling_rate=48000))
    assert sampling_rate(stand_in("LTX2Pipeline", vocoder=vocoder)) == 48000
    with pytest.raises(ValueError, match=r"^FluxPipeline does not say at what rate it samples sound\.$"):
        sampling_rate(stand_in("FluxPipeline", vae=None))

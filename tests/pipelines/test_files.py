"""From files to files with tiny pipelines: what a rank opens, what the first one writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import shared
from files import options, prepared, write_configs
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import build, default_call

from dit_usp import media
from dit_usp.cli.model import find_model
from dit_usp.cli.prepare import prepare
from dit_usp.media import read_clip, read_sound
from dit_usp.request import Request
from dit_usp.saving import read_metadata
from dit_usp.signature import FRAMES
from dit_usp.worker import Worker

pytestmark = pytest.mark.usefixtures("one_process")


def made(name: str, inputs: Path, **given: Any) -> list[str]:
    """The files that the command line's request for `name` makes, in this process."""
    pipe = build(name, Path("parts"))
    model = find_model(str(write_configs(pipe, Path.cwd() / name)))
    worker = Worker(None)
    worker.pipe = pipe
    pipe.set_progress_bar_config(disable=True)
    return carried_out(worker, prepared(model, inputs, **given).request, name)


def carried_out(worker: Worker, request: Request, name: str) -> list[str]:
    """A request with what else its tiny pipeline must be told."""
    ours = ("prompt", "height", "width", "output_type", "generator", *FRAMES)
    tiny = {key: value for key, value in default_call(name).items() if key not in ours and not media.form(name, key)}
    return worker.make_files(
        [picture.prompt for picture in request.pictures],
        [picture.seed for picture in request.pictures],
        [request.target(picture) for picture in request.pictures],
        tiny | dict(request.call),
    )


def test_a_picture_becomes_a_picture(inputs: Path) -> None:
    (path,) = made("FluxImg2ImgPipeline", inputs, output="new/folder/made.png")
    told = read_metadata(path)
    assert (path, told["image"], told["height"]) == (
        "new/folder/made.png",
        str(inputs / "picture.png"),
        default_call("FluxImg2ImgPipeline")["height"],
    )


def test_layers_are_files_of_their_own(inputs: Path) -> None:
    paths = made("QwenImageLayeredPipeline", inputs, output="owl.png")
    assert paths[:2] == ["owl-1.png", "owl-2.png"]
    assert {Image.open(path).mode for path in paths} == {"RGBA"}


def test_a_clip_has_the_frames_asked_for(inputs: Path) -> None:
    """Wan's frames come as an array."""
    (path,) = made("WanPipeline", inputs, frames=11, output="a.mp4")
    told = read_metadata(path)
    assert (told["frames"], told["fps"]) == (9, 16)
    assert [frame.size for frame in read_clip(path)] == [(told["width"], told["height"])] * 9


def test_a_clip_of_a_clip_is_cut_and_keeps_its_speed(inputs: Path) -> None:
    (path,) = made("WanVideoToVideoPipeline", inputs, frames=6, output="a.webm")
    assert (len(read_clip(path)), read_metadata(path)["fps"]) == (5, 10)


def test_one_frame_may_be_a_picture(inputs: Path) -> None:
    (path,) = made("WanPipeline", inputs, frames=1, output="a.png")
    assert "frames" not in read_metadata(path)


def test_a_mask_of_one_frame_is_every_frames(inputs: Path) -> None:
    black = inputs / "black.png"
    Image.new("L", (128, 96)).save(black)
    (path,) = made("WanVACEPipeline", inputs, video=str(inputs / "clip.gif"), mask=str(black), output="a.webp")
    assert read_metadata(path)["frames"] == 9


def test_first_and_last_pictures_are_conditions(inputs: Path) -> None:
    picture = str(inputs / "picture.png")
    (path,) = made("LTX2ConditionPipeline", inputs, image=(picture,), last_image=picture, output="a.mp4")
    told = read_metadata(path)
    assert told["conditions"] == [f"frames {picture} index 0", f"frames {picture} index -1"]
    assert told["sampling_rate"] == 24000
    sound = read_sound(path, 24000)
    assert abs(sound.shape[1] / 24000 - told["frames"] / told["fps"]) < 0.2
    assert sound.std() > 0


@pytest.mark.parametrize("name", ["StableAudioPipeline", "AceStepPipeline", "LongCatAudioDiTPipeline"])
def test_a_sound_lasts_as_long_as_asked_for(inputs: Path, name: str) -> None:
    (path,) = made(name, inputs, duration=1.5)
    told = read_metadata(path)
    assert path.endswith(".wav")
    assert told["seconds"] == pytest.approx(1.5, abs=0.5)


@pytest.mark.parametrize("name", ["FluxPipeline", "LTX2Pipeline", "SanaWMPipeline", "StableAudioPipeline"])
def test_latents_are_kept_and_decoded_again(inputs: Path, name: str) -> None:
    (path,) = made(name, inputs, output="a.safetensors")
    held = load_file(path)
    assert held["latents"].std() > 0
    assert ("audio_latents" in held) == (name == "LTX2Pipeline")
    assert read_metadata(path)["seed"] == 1


def test_latents_start_another_picture(inputs: Path) -> None:
    """Given latents are the noise: the same picture comes from the seed that drew them."""
    torch.manual_seed(1)
    noise = torch.randn(1, 60, 16)
    from dit_usp.formats import tensors

    Path("noise.safetensors").write_bytes(tensors({"latents": noise}, {}))
    (path,) = made("FluxPipeline", inputs, settings=("latents=noise.safetensors",), output="a.png")
    pipe = build("FluxPipeline", Path("parts"))
    wanted = pipe(**default_call("FluxPipeline"), latents=noise).images[0]
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(wanted))


def five_hundred_and_twelve() -> Any:
    """On a rank: the latents of a call that names a size and nothing else of PixArt's."""
    worker = Worker(lambda *args: None)
    worker.load("emoji-pixart-256", None, "cpu", "float32", {})
    return worker.generate("a red heart", [1], [], {"height": 512, "width": 512, "num_inference_steps": 2, "output_type": "latent"})


def test_the_model_that_comes_with_us_draws_the_size_asked_for(ranks: Any) -> None:
    output, nothing = ranks(2, five_hundred_and_twelve)
    assert output.images.shape == (1, 8, 64, 64)
    assert nothing is None
    made = prepare(options(model="emoji-pixart-256", prompt=("a red heart",), height=512, width=512))
    assert "512 x 512" in made.plan[2]
    assert "1024 tokens" in made.plan[2]
    assert made.request.call["use_resolution_binning"] is False


def on_a_rank(folder: str, request: Request) -> list[str]:
    name = "FluxImg2ImgPipeline"
    with shared(name, folder, (2, 1)) as pipe:
        worker = Worker(None)
        worker.pipe, worker.is_first = pipe, pipe.mesh.is_first
        return carried_out(worker, request, name)


def test_every_rank_reads_and_the_first_one_writes(ranks: Any, inputs: Path) -> None:
    (alone,) = made("FluxImg2ImgPipeline", inputs, output="alone.png")
    build("FluxImg2ImgPipeline", Path("parts")).save_pretrained("model")
    request = prepared(find_model("model"), inputs, output=str(Path.cwd() / "shared.png")).request
    (path,), nothing = ranks(2, on_a_rank, str(Path.cwd() / "model"), request)
    assert nothing == []
    difference = np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(alone)).astype(int)
    assert abs(difference).max() <= 2

"""The training of the video model: subjects move as their captions say, and a training of seconds leaves a pipeline that diffusers loads."""

import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import emoji.wan
import train_emoji_video
from emoji.captions import COLOUR_NAMES, Mixture, pictures_of
from emoji.motion import MOTION_NAMES, MOTION_WORDS, MOTIONS, caption, move, on_background, paths
from emoji.subjects import Subject, meanings
from emoji.wan import ClipCodec, LinearPatches, new_transformer, new_vae

STAR = Subject("star", "Travel", ("yellow", "spin"))
SQUARE = torch.full((1, 4, 16, 16), 255, dtype=torch.uint8)


def square(motion, rgba=SQUARE, **options):
    """A white square on black in this motion: (F, 32, 32), 1 where it is."""
    moved = move(rgba, torch.tensor([MOTION_NAMES.index(motion)]), 32, **options)
    return (on_background(moved, torch.tensor([COLOUR_NAMES.index("black")]))[0, 0] > 0).float()


def centre(frame):
    """Row and column of the middle of what is white, in halves of the picture."""
    return [round(((line * torch.linspace(-1, 1, 32)).sum() / line.sum()).item(), 1) for line in (frame.sum(1), frame.sum(0))]


def test_subjects_move_as_they_are_told():
    assert [centre(frame)[1] for frame in square("right")[::12]] == pytest.approx([-0.6, 0.6], abs=0.06)
    assert [centre(frame)[0] for frame in square("up")[::12]] == pytest.approx([0.6, -0.6], abs=0.06)
    assert [centre(frame)[0] for frame in square("bouncing")[::3]] == pytest.approx([0.45, -0.35, 0.45, -0.35, 0.45], abs=0.06)
    sides = square("growing").sum((1, 2)).sqrt() / 32
    assert sides[0] == pytest.approx(0.25, abs=0.05)
    assert sides[-1] == pytest.approx(0.9, abs=0.05)
    upper = SQUARE * (torch.arange(16) < 8)[:, None]
    assert centre(square("spinning", upper)[3]) == pytest.approx([0, 0.3], abs=0.06)  # a quarter of a turn, clockwise
    corner = square("spinning", frames=9)[1]  # an eighth of a turn: on its tip, wider along the axes than on the diagonal
    assert corner[16].sum() > corner.diagonal().sum() + 2


def test_a_window_is_a_part_of_the_picture():
    window = square("left", window=torch.tensor([[-0.5, 0.25, 0.5]]))
    whole = move(SQUARE, torch.tensor([MOTION_NAMES.index("left")]), 64)
    whole = (on_background(whole, torch.tensor([COLOUR_NAMES.index("black")]))[0, 0] > 0).float()
    assert torch.equal(window, whole[:, 24:56, 0:32])


def test_every_path_starts_and_ends_in_sight():
    reach = paths()[:, :, :2].abs() - paths()[:, :, 2:3]
    assert (reach < 1).all()


def test_captions_say_the_motion_and_the_colour():
    rng = random.Random(0)
    (picture,) = pictures_of([STAR], ["3d"], meanings([STAR]), Mixture(alone=0))
    for motion, colour in [(motion, colour) for motion in MOTION_NAMES for colour in (0, 3)] * 5:
        text = caption(picture, motion, colour, Mixture(alone=0), rng)
        assert not text or any(all(part in text for part in phrase.split("{}")) for phrase in MOTIONS[motion].phrases)
        assert not text or (COLOUR_NAMES[colour] in text) or colour == 0
    assert {"spinning", "left", "spin"} <= MOTION_WORDS


def test_the_codec_is_the_vae_in_fewer_steps():
    torch.manual_seed(0)
    vae, clip = new_vae().eval(), torch.rand(1, 3, 13, 16, 16) * 2 - 1
    with torch.no_grad():
        moments = ClipCodec(vae).moments(clip)
        torch.testing.assert_close(moments, vae.encode(clip).latent_dist.parameters, rtol=1e-4, atol=1e-5)
        rebuilt = ClipCodec(vae).rebuild(moments[:, :16]).clamp(-1, 1)
        torch.testing.assert_close(rebuilt, vae.decode(moments[:, :16]).sample, rtol=1e-4, atol=1e-5)


def test_patches_by_a_matrix_product():
    transformer, latents = new_transformer(), torch.randn(2, 16, 3, 4, 6)
    convolved = transformer.patch_embedding(latents)
    transformer.patch_embedding.__class__ = LinearPatches
    torch.testing.assert_close(transformer.patch_embedding(latents), convolved, rtol=1e-4, atol=1e-5)


def webp(colour):
    file = io.BytesIO()
    Image.new("RGBA", (16, 16), colour).save(file, "WEBP")
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.fixture
def pack(tmp_path):
    """Two subjects of one colour each."""
    files = [webp("red"), webp("gold")]
    offsets, both = np.cumsum([0, *map(len, files)]), np.array(["3d", "3d"])
    words = {"names": ["red heart", "star"], "groups": ["Smileys", "Travel"], "kws": ["love|heart", "yellow|spin"]}
    np.savez(tmp_path / "pack.npz", data=np.concatenate(files), off=offsets, style=both, subj=np.arange(2), **words)
    return tmp_path / "pack.npz"


def train(monkeypatch, pack, out, *options):
    tiny = "--device cpu --pixels 16 --frames 5 --batch 2 --vae-batch 1 --vae-seconds 0.01 --denoiser-seconds 0.01 --bank 3"
    monkeypatch.setattr(emoji.wan, "LAYERS", 1)
    monkeypatch.setattr(sys, "argv", ["train_emoji_video.py", str(pack), str(out), *tiny.split(), *options])
    train_emoji_video.main()
    return json.loads((out / "stats.json").read_text())


def test_a_training_leaves_a_pipeline(monkeypatch, pack, tmp_path):
    figures = train(monkeypatch, pack, tmp_path / "first")
    assert figures["clips"] == 2 * len(MOTIONS)
    assert json.loads((tmp_path / "first/model/meaning.json").read_text()) == {"heart": "red heart", "love": "red heart", "yellow": "star"}
    pipeline = WanPipeline.from_pretrained(tmp_path / "first/model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    call = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 32, "output_type": "pt"}
    assert pipeline("a bouncing star", **call).frames.shape == (1, 5, 3, 16, 16)
    # A second training goes on from it, the VAE too.
    train(monkeypatch, pack, tmp_path / "second", "--start", str(tmp_path / "first/model"))
    first, second = (AutoencoderKLWan.from_pretrained(tmp_path / which / "model/vae").state_dict() for which in ("first", "second"))
    distance = sum((first[name] - second[name]).float().abs().mean() for name in first) / len(first)
    assert 0 < distance < 0.01

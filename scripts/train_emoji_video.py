"""Train the embedded video model: a WanPipeline of 10 M parameters (20 MB in fp16) that shows named emoji in motion, 13 frames of 128 x 128.

First the VAE, then the transformer together with its UMT5 text encoder (flow matching on latents computed once). OUT gets stats.json and model/:
the pipeline with known.json (subject: its keywords) and meaning.json (keyword: the subject it means alone) beside its parts.

A training may take several sittings: each ends after --minutes, and the same command goes on from OUT/checkpoint.pt.

From nothing, about 10 minutes on one H100:
    python scripts/emoji/pack.py node_modules pack.npz
    python scripts/train_emoji_video.py pack.npz OUT --compile
From given weights, whose tokenizer is kept (--vae-seconds 0: the VAE too):
    python scripts/train_emoji_video.py pack.npz OUT --compile --start MODEL --denoiser-seconds 400
Dry run on a CPU:
    python scripts/train_emoji_video.py pack.npz OUT --device cpu --pixels 32 --frames 5 --subjects 2 --batch 4 --vae-batch 2 --vae-seconds 20 \\
        --denoiser-seconds 20
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from emoji.captions import HOUSE_STYLE, Mixture, pictures_of
from emoji.cast import CAST
from emoji.motion import FRAMES, MOTION_NAMES, MOTION_WORDS, draw_captions
from emoji.networks import caption_tensors, new_tokenizer, read_tokenizer
from emoji.pictures import Pack, Pictures
from emoji.subjects import Subject, meanings, write_words
from emoji.trainer import Recipe, begin, cached, options, prepare_vae, train_denoiser
from emoji.wan import (
    CAPTION_TOKENS,
    ClipCodec,
    Clips,
    WanTraining,
    WanVaeTraining,
    latent_bank,
    new_text_encoder,
    new_transformer,
    new_vae,
    read_denoiser,
    read_vae,
    reconstruction,
)
from torch import Tensor, nn

VOCABULARY = 2048


@dataclass(frozen=True)
class VideoRecipe(Recipe):
    """What train_emoji_video.py adds."""

    frames: int


def parse() -> argparse.Namespace:
    parser = options(
        __doc__,
        "keep its tokenizer, go on from its VAE, transformer and text encoder",
        **dict(pixels=128, batch=384, vae_batch=16, vae_seconds=180.0, denoiser_seconds=300.0, bank=64, alone=0.2, colour=0.4),
    )
    parser.add_argument("--frames", type=int, default=FRAMES)
    return parser.parse_args()


def main() -> None:
    args = parse()
    sitting, model = begin(args, VideoRecipe), args.out / "model"
    pictures = Pictures.load(Pack(args.pack), {HOUSE_STYLE: 1.0}, args.pixels, sitting.device, args.subjects, CAST)
    clips = Clips(pictures.rgba, args.pixels, args.frames, args.colour)
    meaning = {word: subject for word, subject in meanings(pictures.subjects).items() if not MOTION_WORDS & set(word.split())}
    write_words(model, pictures.subjects, meaning)
    if not prepare_vae(args, sitting, bool(args.start and not args.vae_seconds), lambda: vae_training(args, clips)):
        return
    vae = read_vae(model).to(sitting.device)
    sitting.note({"subjects": len(pictures), "clips": len(clips), **reconstruction(vae, clips)})
    bank = cached(args.out / "bank.pt", lambda: make_bank(args, pictures, meaning, clips, vae), sitting.device)
    sitting.say("bank:", {name: tuple(tensor.shape) for name, tensor in bank.items()})
    training = lambda denoiser: WanTraining(denoiser, bank, clips.weights, args.batch, model, args.compile)  # noqa: E731
    train_denoiser(args, sitting, lambda: networks(args, model), training)


def vae_training(args: argparse.Namespace, clips: Clips) -> WanVaeTraining:
    device = clips.rgba.device
    vae = read_vae(args.start).train().requires_grad_() if args.start else new_vae()
    return WanVaeTraining(ClipCodec(vae.to(device)), clips.draw, args.vae_batch, args.out / "model", device, compile=False)


def make_bank(args: argparse.Namespace, pictures: Pictures, meaning: dict[str, Subject], clips: Clips, vae: nn.Module) -> dict[str, Tensor]:
    """Captions as tokens, the background each one fits, and the latents on all backgrounds. Writes the tokenizer into OUT/model."""
    mixture = Mixture(alone=args.alone, colour=args.colour)
    told = pictures_of(pictures.subjects, pictures.styles, meaning, mixture)
    bank = draw_captions([(picture, motion) for picture in told for motion in MOTION_NAMES], args.bank, mixture, args.seed)
    texts = [text for some in bank.texts for text in some]
    tokenizer = read_tokenizer(args.start) if args.start else new_tokenizer(texts[::7], VOCABULARY)
    tokenizer.save_pretrained(args.out / "model" / "tokenizer")
    return {**caption_tensors(tokenizer, bank, CAPTION_TOKENS, pictures.rgba.device), "latents": latent_bank(vae, clips, bank)}


def networks(args: argparse.Namespace, folder: Path) -> tuple[nn.Module, nn.Module]:
    """Transformer and text encoder, new or from --start."""
    return read_denoiser(args.start) if args.start else (new_transformer(), new_text_encoder(len(read_tokenizer(folder))))


if __name__ == "__main__":
    main()

"""Train the embedded emoji model: a PixArtAlphaPipeline of 10 M parameters (20 MB in fp16) that draws 1,188 named emoji at 256 x 256.

First the VAE, then the transformer together with its T5 text encoder (flow matching on latents computed once). OUT gets stats.json and model/:
the pipeline with known.json (subject: its keywords) and meaning.json (keyword: the subject it means alone) beside its parts.

A training may take several sittings: each ends after --minutes, and the same command goes on from OUT/checkpoint.pt.

From nothing, about 25 minutes on one H100:
    python scripts/emoji/pack.py node_modules pack.npz
    python scripts/train_emoji.py pack.npz OUT --compile
From given weights, whose VAE and tokenizer are kept (so the shipped model was finished, 8 minutes in one sitting):
    python scripts/train_emoji.py pack.npz OUT --compile --start MODEL --denoiser-seconds 390
Dry run on a CPU:
    python scripts/train_emoji.py pack.npz OUT --device cpu --pixels 64 --subjects 8 --batch 8 --vae-batch 8 --vae-seconds 20 --denoiser-seconds 20
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from emoji.captions import HOUSE_STYLE, CaptionBank, Mixture, pictures_of
from emoji.networks import caption_tensors, new_text_encoder, new_tokenizer, new_transformer, new_vae, read_denoiser, read_tokenizer, read_vae
from emoji.parts import TEXT_TOKENS, PictureCodec, PixArtTraining, VaeTraining, latent_bank, reconstruction
from emoji.pictures import Pack, Pictures
from emoji.subjects import Subject, meanings, write_words
from emoji.trainer import Recipe, begin, cached, options, prepare_vae, train_denoiser
from torch import Tensor, nn


@dataclass(frozen=True)
class PictureRecipe(Recipe):
    """What train_emoji.py adds."""

    small: float
    any_word: bool


STYLES = {HOUSE_STYLE: 0.75, "flat": 0.25}  # shares of the pictures seen


def parse() -> argparse.Namespace:
    parser = options(
        __doc__,
        "keep its VAE and tokenizer, go on from its transformer and text encoder",
        **dict(pixels=256, batch=512, vae_batch=64, vae_seconds=280.0, denoiser_seconds=1000.0, bank=256, alone=0.35, colour=0.6),
    )
    parser.add_argument("--words", choices=["best", "any"], default="best", help="a lone keyword means one subject, or any that has it")
    parser.add_argument("--small", type=float, default=0.4, help="share of the pictures on a colour with a small subject at a place")
    args = parser.parse_args()
    args.any_word = args.words == "any"
    return args


def main() -> None:
    args = parse()
    sitting, model = begin(args, PictureRecipe), args.out / "model"
    pictures = Pictures.load(Pack(args.pack), STYLES, args.pixels, sitting.device, args.subjects)
    sitting.say(f"{len(pictures)} pictures of {len(pictures.unique_subjects)} subjects")
    meaning = meanings(pictures.unique_subjects)
    write_words(model, pictures.unique_subjects, meaning)
    mixture = Mixture(args.alone, args.colour, args.small, args.any_word)
    if not prepare_vae(args, sitting, bool(args.start), lambda: vae_training(args, pictures, mixture)):
        return
    vae = read_vae(model).to(sitting.device)
    sitting.note({"subjects": len(pictures.unique_subjects), "pictures": len(pictures), **reconstruction(vae, pictures)})
    bank = cached(args.out / "bank.pt", lambda: make_bank(args, pictures, meaning, mixture, vae), sitting.device)
    sitting.say("bank:", {name: tuple(tensor.shape) for name, tensor in bank.items()})
    training = lambda denoiser: PixArtTraining(denoiser, bank, pictures.weights, args.batch, model, args.compile)  # noqa: E731
    train_denoiser(args, sitting, lambda: networks(args, model), training)


def vae_training(args: argparse.Namespace, pictures: Pictures, mixture: Mixture) -> VaeTraining:
    device = pictures.rgba.device
    vae = new_vae(args.pixels).to(device, memory_format=torch.channels_last)
    draw = partial(pictures.draw, colour_share=mixture.colour, small_share=mixture.small)
    return VaeTraining(PictureCodec(vae), draw, args.vae_batch, args.out / "model", device, args.compile)


def make_bank(args: argparse.Namespace, pictures: Pictures, meaning: dict[str, Subject], mixture: Mixture, vae: nn.Module) -> dict[str, Tensor]:
    """Captions as tokens, the scene each one fits, and the latents of all scenes. Writes the tokenizer into OUT/model."""
    bank = CaptionBank.draw(pictures_of(pictures.subjects, pictures.styles, meaning, mixture), args.bank, mixture, args.seed)
    if args.start:
        tokenizer = read_tokenizer(args.start)
    else:
        texts = [text for some in bank.texts for text in some]
        names = [subject.name for subject in pictures.unique_subjects]
        tokenizer = new_tokenizer([*texts[::7], *(names * 4), *(word for subject in pictures.unique_subjects for word in subject.keywords)])
    tokenizer.save_pretrained(args.out / "model" / "tokenizer")
    return {**caption_tensors(tokenizer, bank, TEXT_TOKENS, pictures.rgba.device), "latents": latent_bank(vae, pictures, bank)}


def networks(args: argparse.Namespace, folder: Path) -> tuple[nn.Module, nn.Module]:
    """Transformer and text encoder, new or from --start."""
    return read_denoiser(args.start) if args.start else (new_transformer(args.pixels), new_text_encoder(len(read_tokenizer(folder))))


if __name__ == "__main__":
    main()

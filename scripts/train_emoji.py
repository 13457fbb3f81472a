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
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from emoji.captions import HOUSE_STYLE, CaptionBank, Mixture, pictures_of
from emoji.networks import new_text_encoder, new_tokenizer, new_transformer, new_vae, read_denoiser, read_tokenizer, read_vae, tokens_of
from emoji.parts import TEXT_TOKENS, PictureCodec, PixArtTraining, VaeTraining, latent_bank, reconstruction
from emoji.pictures import Pack, Pictures
from emoji.subjects import Subject, meanings, write_words
from emoji.trainer import Recipe, Sitting, cached, train
from torch import Tensor, nn


@dataclass(frozen=True)
class PictureRecipe(Recipe):
    """What train_emoji.py adds."""

    small: float
    any_word: bool


STYLES = {HOUSE_STYLE: 0.75, "flat": 0.25}  # shares of the pictures seen


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="the npz that scripts/emoji/pack.py writes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="folder of a saved model: keep its VAE and tokenizer, go on from its transformer and text encoder")
    parser.add_argument("--minutes", type=float, help="end this sitting after so many minutes, with a checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--subjects", type=int, help="learn only the first so many, for a dry run")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--vae-seconds", type=float, default=280, help="of training, compilation not counted")
    parser.add_argument("--denoiser-seconds", type=float, default=1000)
    parser.add_argument("--bank", type=int, default=256, help="captions drawn for each picture")
    parser.add_argument("--words", choices=["best", "any"], default="best", help="a lone keyword means one subject, or any that has it")
    parser.add_argument("--alone", type=float, default=0.35, help="share of captions that are a lone keyword")
    parser.add_argument("--colour", type=float, default=0.6, help="share of pictures on a colour")
    parser.add_argument("--small", type=float, default=0.4, help="share of these with a small subject at a place")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.any_word = args.words == "any"
    return args


def main() -> None:
    args = parse()
    device, model = torch.device(args.device), args.out / "model"
    model.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    sitting = Sitting(args.out, PictureRecipe.of(args), args.minutes, device)
    pictures = Pictures.load(Pack(args.pack), STYLES, args.pixels, device, args.subjects)
    sitting.say(f"{len(pictures)} pictures of {len(pictures.unique_subjects)} subjects")
    meaning = meanings(pictures.unique_subjects)
    write_words(model, pictures.unique_subjects, meaning)
    mixture = Mixture(args.alone, args.colour, args.small, args.any_word)
    if not prepare_vae(args, pictures, mixture, sitting):
        return
    vae = read_vae(model).to(device)
    sitting.note({"subjects": len(pictures.unique_subjects), "pictures": len(pictures), **reconstruction(vae, pictures)})
    bank = cached(args.out / "bank.pt", lambda: make_bank(args, pictures, meaning, mixture, vae), device)
    sitting.say("bank:", {name: tuple(tensor.shape) for name, tensor in bank.items()})
    torch.manual_seed(args.seed)
    denoiser = make_denoiser(args, model).to(device).train()
    figures = train(PixArtTraining(denoiser, bank, pictures.weights, args.batch, model, args.compile), args.denoiser_seconds, sitting)
    if figures:
        sitting.note(figures)


def prepare_vae(args: argparse.Namespace, pictures: Pictures, mixture: Mixture, sitting: Sitting) -> bool:
    """Put a VAE into OUT/model: the one already there, the one given, or a new one; False when the sitting ended first."""
    folder = args.out / "model"
    if (folder / "vae").exists():
        return True
    if args.start:
        shutil.copytree(args.start / "vae", folder / "vae")
        return True
    torch.manual_seed(args.seed)
    vae = new_vae(args.pixels).to(pictures.rgba.device, memory_format=torch.channels_last)
    draw = partial(pictures.draw, colour_share=mixture.colour, small_share=mixture.small)
    training = VaeTraining(PictureCodec(vae), draw, args.vae_batch, folder, sitting.device, args.compile)
    figures = train(training, args.vae_seconds, sitting)
    sitting.note(figures or {})
    return figures is not None


def make_bank(args: argparse.Namespace, pictures: Pictures, meaning: dict[str, Subject], mixture: Mixture, vae: nn.Module) -> dict[str, Tensor]:
    """Captions as tokens, the scene each one fits, and the latents of all scenes. Writes the tokenizer into OUT/model."""
    bank = CaptionBank.draw(pictures_of(pictures.subjects, pictures.styles, meaning, mixture), args.bank, mixture, args.seed)
    texts = [text for some in bank.texts for text in some]
    if args.start:
        tokenizer = read_tokenizer(args.start)
    else:
        names = [subject.name for subject in pictures.unique_subjects]
        tokenizer = new_tokenizer([*texts[::7], *(names * 4), *(word for subject in pictures.unique_subjects for word in subject.keywords)])
    tokenizer.save_pretrained(args.out / "model" / "tokenizer")
    device = pictures.rgba.device
    return {
        "tokens": tokens_of(tokenizer, texts, TEXT_TOKENS).view(len(pictures), args.bank, TEXT_TOKENS).to(device),
        "chosen": torch.tensor(bank.chosen, device=device),
        "latents": latent_bank(vae, pictures, bank),
    }


def make_denoiser(args: argparse.Namespace, folder: Path) -> nn.ModuleDict:
    """Transformer and text encoder, new or from --start."""
    if args.start:
        transformer, text_encoder = read_denoiser(args.start)
    else:
        transformer, text_encoder = new_transformer(args.pixels), new_text_encoder(len(read_tokenizer(folder)))
    return nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})


if __name__ == "__main__":
    main()

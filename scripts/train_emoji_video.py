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
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from emoji.captions import HOUSE_STYLE, Mixture, pictures_of
from emoji.cast import CAST
from emoji.motion import FRAMES, MOTION_NAMES, MOTION_WORDS, draw_captions
from emoji.networks import new_tokenizer, read_tokenizer, tokens_of
from emoji.pictures import Pack, Pictures
from emoji.subjects import Subject, meanings, write_words
from emoji.trainer import Recipe, Sitting, cached, train
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="the npz that scripts/emoji/pack.py writes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="folder of a saved model: keep its tokenizer, go on from its VAE, transformer and text encoder")
    parser.add_argument("--minutes", type=float, help="end this sitting after so many minutes, with a checkpoint")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--subjects", type=int, help="learn only the first so many, for a dry run")
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--vae-seconds", type=float, default=180, help="of training, compilation not counted")
    parser.add_argument("--denoiser-seconds", type=float, default=300)
    parser.add_argument("--bank", type=int, default=64, help="captions drawn for each subject in each motion")
    parser.add_argument("--alone", type=float, default=0.2, help="share of captions that name the subject by a lone keyword")
    parser.add_argument("--colour", type=float, default=0.4, help="share of clips on a colour")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse()
    device, model = torch.device(args.device), args.out / "model"
    model.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    sitting = Sitting(args.out, VideoRecipe.of(args), args.minutes, device)
    pictures = Pictures.load(Pack(args.pack), {HOUSE_STYLE: 1.0}, args.pixels, device, args.subjects, CAST)
    clips = Clips(pictures.rgba, args.pixels, args.frames, args.colour)
    meaning = {word: subject for word, subject in meanings(pictures.subjects).items() if not MOTION_WORDS & set(word.split())}
    write_words(model, pictures.subjects, meaning)
    if not prepare_vae(args, clips, sitting):
        return
    vae = read_vae(model).to(device)
    sitting.note({"subjects": len(pictures), "clips": len(clips), **reconstruction(vae, clips)})
    bank = cached(args.out / "bank.pt", lambda: make_bank(args, pictures, meaning, clips, vae), device)
    sitting.say("bank:", {name: tuple(tensor.shape) for name, tensor in bank.items()})
    torch.manual_seed(args.seed)
    denoiser = make_denoiser(args, model).to(device).train()
    figures = train(WanTraining(denoiser, bank, clips.weights, args.batch, model, args.compile), args.denoiser_seconds, sitting)
    if figures:
        sitting.note(figures)


def prepare_vae(args: argparse.Namespace, clips: Clips, sitting: Sitting) -> bool:
    """Put a VAE into OUT/model: the one already there, or the given or a new one, trained; False when the sitting ended first."""
    folder = args.out / "model"
    if (folder / "vae").exists():
        return True
    if args.start and not args.vae_seconds:
        shutil.copytree(args.start / "vae", folder / "vae")
        return True
    torch.manual_seed(args.seed)
    vae = read_vae(args.start).train().requires_grad_() if args.start else new_vae()
    training = WanVaeTraining(ClipCodec(vae.to(sitting.device)), clips.draw, args.vae_batch, folder, sitting.device, compile=False)
    figures = train(training, args.vae_seconds, sitting)
    sitting.note(figures or {})
    return figures is not None


def make_bank(args: argparse.Namespace, pictures: Pictures, meaning: dict[str, Subject], clips: Clips, vae: nn.Module) -> dict[str, Tensor]:
    """Captions as tokens, the background each one fits, and the latents on all backgrounds. Writes the tokenizer into OUT/model."""
    mixture = Mixture(alone=args.alone, colour=args.colour)
    told = pictures_of(pictures.subjects, pictures.styles, meaning, mixture)
    bank = draw_captions([(picture, motion) for picture in told for motion in MOTION_NAMES], args.bank, mixture, args.seed)
    texts = [text for some in bank.texts for text in some]
    tokenizer = read_tokenizer(args.start) if args.start else new_tokenizer(texts[::7], VOCABULARY)
    tokenizer.save_pretrained(args.out / "model" / "tokenizer")
    device = pictures.rgba.device
    return {
        "tokens": tokens_of(tokenizer, texts, CAPTION_TOKENS).view(len(clips), args.bank, CAPTION_TOKENS).to(device),
        "chosen": torch.tensor(bank.chosen, device=device),
        "latents": latent_bank(vae, clips, bank),
    }


def make_denoiser(args: argparse.Namespace, folder: Path) -> nn.ModuleDict:
    """Transformer and text encoder, new or from --start."""
    if args.start:
        transformer, text_encoder = read_denoiser(args.start)
    else:
        transformer, text_encoder = new_transformer(), new_text_encoder(len(read_tokenizer(folder)))
    return nn.ModuleDict({"transformer": transformer, "text_encoder": text_encoder})


if __name__ == "__main__":
    main()

"""The two parts of the training: the VAE, then the transformer together with its text encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from emoji.captions import CaptionBank, Mixture
from emoji.networks import LATENT_CHANNELS, VAE_SCALE, save_half, save_pipeline
from emoji.optim import Muon, update_average
from emoji.pictures import Pictures

VAE_LR, LR, MUON_LR = 2e-3, 1e-3, 0.02
TEXT_TOKENS = 24  # the longest caption; the pipeline pads to more and masks it
PAD = 0


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on the GPU; nothing on the CPU, where a dry run wants plain fp32."""
    return torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")


def compiled(function: Callable, enabled: bool) -> Callable:
    return torch.compile(function) if enabled else function


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class VaeTraining:
    """L1 + L2 + L1 of the slopes + a little KL; cosine learning rate."""

    name = "vae"

    def __init__(self, vae: AutoencoderKL, pictures: Pictures, mixture: Mixture, batch: int, folder: Path, compile: bool) -> None:
        self.vae, self.pictures, self.mixture, self.batch, self.folder = vae, pictures, mixture, batch, folder
        self.device = pictures.rgba.device
        self.optimizer = torch.optim.AdamW(vae.parameters(), VAE_LR, betas=(0.9, 0.98), weight_decay=1e-4, fused=self.device.type == "cuda")
        self.loss = compiled(self._loss, compile)

    def _loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], noise (B, z, h, w) -> scalar."""
        with autocast(self.device):
            mean, log_variance = self.vae.quant_conv(self.vae.encoder(images)).float().chunk(2, 1)
            log_variance = log_variance.clamp(-30, 10)
            latents = mean + noise * torch.exp(0.5 * log_variance)
            rebuilt = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        edges = (rebuilt.diff(dim=-1) - images.diff(dim=-1)).abs().mean() + (rebuilt.diff(dim=-2) - images.diff(dim=-2)).abs().mean()
        return F.l1_loss(rebuilt, images) + 0.5 * F.mse_loss(rebuilt, images) + edges + 1e-3 * kl

    def step(self, step: int, share: float) -> Tensor:
        set_lr(self.optimizer, VAE_LR * min(1, (step + 1) / 100) * max(0.005, 0.5 + 0.5 * math.cos(math.pi * share)))
        images = self.pictures.draw(self.batch, self.mixture.colour, self.mixture.small).contiguous(memory_format=torch.channels_last)
        size = images.shape[-1] // VAE_SCALE
        loss = self.loss(images, torch.randn(self.batch, LATENT_CHANNELS, size, size, device=self.device))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])

    def finish(self) -> dict[str, Any]:
        self.vae.eval().requires_grad_(False)
        whiten(self.vae, torch.cat([encode(self.vae, self.pictures.draw(32, self.mixture.colour, self.mixture.small)) for _ in range(16)]))
        save_half(self.vae, self.folder / "vae")
        return {}


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Mean latents: (B, 3, H, W) in [-1, 1] -> (B, z, h, w)."""
    with autocast(images.device):
        moments = vae.quant_conv(vae.encoder(images.contiguous(memory_format=torch.channels_last)))
    return moments[:, :LATENT_CHANNELS].float()


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: Tensor) -> None:
    """Fold mean 0 and deviation 1 of each latent channel into the VAE's two 1x1 convolutions, so that scaling_factor 1 holds."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    scale = torch.cat([1 / deviation, torch.ones_like(deviation)])
    into.weight.mul_(scale[:, None, None, None])
    into.bias.mul_(scale).add_(torch.cat([-mean / deviation, -2 * deviation.log()]))
    out.bias.add_((out.weight[:, :, 0, 0] * mean).sum(1))
    out.weight.mul_(deviation[None, :, None, None])


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, pictures: Pictures, count: int = 256) -> dict[str, float]:
    """PSNR of `count` pictures on white, spread over the pack: mean and worst, in dB."""
    index = torch.arange(0, len(pictures), max(1, len(pictures) // count), device=pictures.rgba.device)[:count]
    errors = []
    for part in index.split(16):
        images = pictures.compose(part, torch.zeros_like(part), torch.zeros_like(part))
        rebuilt = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((rebuilt - images) ** 2).mean((1, 2, 3)) / 4)
    decibels = -10 * torch.cat(errors).log10()
    return {"vae_psnr_db": round(decibels.mean().item(), 2), "vae_psnr_worst_db": round(decibels.min().item(), 2)}


def latent_bank(vae: AutoencoderKL, pictures: Pictures, bank: CaptionBank) -> Tensor:
    """Latents of every picture in every scene of its own: (N, scenes, z, h, w) fp16."""
    device = pictures.rgba.device
    scenes = torch.tensor(bank.scenes, device=device)  # (N, scenes, 2)
    size = pictures.rgba.shape[-1] // VAE_SCALE
    latents = torch.empty(*scenes.shape[:2], LATENT_CHANNELS, size, size, dtype=torch.float16, device=device)
    for scene in range(scenes.shape[1]):
        for index in torch.arange(len(pictures), device=device).split(256):
            latents[index, scene] = encode(vae, pictures.compose(index, *scenes[index, scene].unbind(1))).half()
    return latents


class DenoiserTraining:
    """Flow matching of the transformer and its text encoder, on latents and captions that stay on the device.

    The learning rate is constant for half the budget, then falls to nearly 0 on a line.

    Args:
        data: latents (N, scenes, z, h, w), tokens (N, bank, text) and chosen (N, bank): the scene each caption fits.
        weights: (N,) how often each picture is drawn.
        folder: where the pipeline is written; it has the VAE and the tokenizer.
    """

    name = "denoiser"

    def __init__(self, model: nn.ModuleDict, data: dict[str, Tensor], weights: Tensor, batch: int, folder: Path, compile: bool) -> None:
        self.model, self.data, self.weights, self.batch, self.folder = model, data, weights, batch, folder
        self.device = weights.device
        self.average = copy.deepcopy(model).requires_grad_(False)
        matrices = {n for n, p in model.named_parameters() if n.startswith("transformer.transformer_blocks") and n.endswith("weight") and p.ndim == 2}
        others = [p for n, p in model.named_parameters() if n not in matrices]
        self.adam = torch.optim.AdamW(others, LR, betas=(0.9, 0.98), weight_decay=0.01, fused=self.device.type == "cuda")
        self.muon = Muon([p for n, p in model.named_parameters() if n in matrices], MUON_LR)
        self.loss = compiled(self._loss, compile)

    def _loss(self, latents: Tensor, noise: Tensor, time: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
        """Velocity from picture (time 0) to noise (time 1): (B, z, h, w) twice, (B,), (B, T, C), (B, T) -> scalar."""
        weight = time[:, None, None, None]
        with autocast(self.device):
            velocity = self.model["transformer"](
                (1 - weight) * latents + weight * noise,
                encoder_hidden_states=captions,
                encoder_attention_mask=mask,
                timestep=time * 1000,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0]
        return F.mse_loss(velocity.float(), noise - latents)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Latents (B, z, h, w) and tokens (B, T) of random pictures."""
        picture = torch.multinomial(self.weights, self.batch, True)
        caption = torch.randint(0, self.data["chosen"].shape[1], (self.batch,), device=self.device)
        scene = self.data["chosen"][picture, caption]
        return self.data["latents"][picture, scene].float(), self.data["tokens"][picture, caption].long()

    def step(self, step: int, share: float) -> Tensor:
        fade = min(1, (step + 1) / 200) * max(0.005, min(1.0, 2 * (1 - share)))
        set_lr(self.adam, LR * fade)
        set_lr(self.muon, MUON_LR * fade)
        latents, tokens = self.draw()
        mask = (tokens != PAD).long()
        with autocast(self.device):
            captions = self.model["text_encoder"](tokens, attention_mask=mask)[0]
        time = torch.sigmoid(torch.randn(self.batch, device=self.device))
        loss = self.loss(latents, torch.randn_like(latents), time, captions, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in (self.adam, self.muon):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_average(self.average, self.model, step)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("model", "average", "adam", "muon")}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, content in state.items():
            getattr(self, name).load_state_dict(content)

    def finish(self) -> dict[str, Any]:
        save_pipeline(self.folder, self.average["transformer"].eval(), self.average["text_encoder"].eval())
        return {"bytes": sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())}

"""The two parts of a training: the VAE, then the transformer together with its text encoder. What is particular to a model is a subclass."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from emoji.captions import CaptionBank
from emoji.networks import LATENT_CHANNELS, VAE_SCALE, save_half, save_pipeline
from emoji.optim import Muon, update_average
from emoji.pictures import Pictures

VAE_LR, LR, MUON_LR = 2e-3, 1e-3, 0.02
TEXT_TOKENS = 24  # the longest caption; the pipeline pads to more and masks it
PAD = 0


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on the GPU; nothing on the CPU, where a dry run wants plain fp32."""
    return torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class Codec(Protocol):
    """A VAE as its training sees it: H and W are the last dims of pictures and clips."""

    vae: nn.Module

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance of the latents, channel after channel."""

    def rebuild(self, latents: Tensor) -> Tensor: ...

    def whiten(self, latents: Tensor) -> None:
        """Make latents like these have mean 0 and deviation 1 for the transformer."""


class VaeTraining:
    """L1 + L2 + L1 of the slopes + a little KL; cosine learning rate.

    Args:
        draw: that many random pictures or clips, in [-1, 1].
        folder: where the VAE is written.
    """

    name = "vae"
    kl_weight = 1e-3

    def __init__(self, codec: Codec, draw: Callable[[int], Tensor], batch: int, folder: Path, device: torch.device, compile: bool) -> None:
        self.codec, self.vae, self.draw, self.batch, self.folder, self.device = codec, codec.vae, draw, batch, folder, device
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), VAE_LR, betas=(0.9, 0.98), weight_decay=1e-4, fused=device.type == "cuda")
        self.loss = torch.compile(self._loss) if compile else self._loss

    def _loss(self, images: Tensor) -> Tensor:
        with autocast(self.device):
            mean, log_variance = self.codec.moments(images).float().chunk(2, 1)
            log_variance = log_variance.clamp(-30, 10)
            latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
            rebuilt = self.codec.rebuild(latents).float()
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        edges = (rebuilt.diff(dim=-1) - images.diff(dim=-1)).abs().mean() + (rebuilt.diff(dim=-2) - images.diff(dim=-2)).abs().mean()
        return F.l1_loss(rebuilt, images) + 0.5 * F.mse_loss(rebuilt, images) + edges + self.kl_weight * kl

    def images(self, step: int) -> Tensor:
        """What this step learns."""
        return self.draw(self.batch)

    def step(self, step: int, share: float) -> Tensor:
        set_lr(self.optimizer, VAE_LR * min(1, (step + 1) / 100) * max(0.005, 0.5 + 0.5 * math.cos(math.pi * share)))
        loss = self.loss(self.images(step))
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
        self.codec.whiten(torch.cat([encode(self.codec, self.draw(32)) for _ in range(16)]))
        save_half(self.vae, self.folder / "vae")
        return {}


@torch.no_grad()
def encode(codec: Codec, images: Tensor) -> Tensor:
    """Mean latents of pictures or clips in [-1, 1], in fp32."""
    with autocast(images.device):
        return codec.moments(images).chunk(2, 1)[0].float()


def decibels(rebuilt: Tensor, images: Tensor) -> Tensor:
    """PSNR of each picture or clip in [-1, 1]: (B, ...) twice -> (B,)."""
    return -10 * (((rebuilt.clamp(-1, 1) - images) ** 2).flatten(1).mean(1) / 4).log10()


def quality(psnr: Tensor) -> dict[str, float]:
    """Mean and worst, for stats.json."""
    return {"vae_psnr_db": round(psnr.mean().item(), 2), "vae_psnr_worst_db": round(psnr.min().item(), 2)}


class PictureCodec:
    """AutoencoderKL of pictures (B, 3, H, W)."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae

    def moments(self, images: Tensor) -> Tensor:
        return self.vae.quant_conv(self.vae.encoder(images.contiguous(memory_format=torch.channels_last)))

    def rebuild(self, latents: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(latents))

    @torch.no_grad()
    def whiten(self, latents: Tensor) -> None:
        """Fold mean and deviation of each channel into the VAE's two 1x1 convolutions, so that scaling_factor 1 holds."""
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        into, out = self.vae.quant_conv, self.vae.post_quant_conv
        scale = torch.cat([1 / deviation, torch.ones_like(deviation)])
        into.weight.mul_(scale[:, None, None, None])
        into.bias.mul_(scale).add_(torch.cat([-mean / deviation, -2 * deviation.log()]))
        out.bias.add_((out.weight[:, :, 0, 0] * mean).sum(1))
        out.weight.mul_(deviation[None, :, None, None])


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, pictures: Pictures, count: int = 256) -> dict[str, float]:
    """PSNR of `count` pictures on white, spread over the pack."""
    index = torch.arange(0, len(pictures), max(1, len(pictures) // count), device=pictures.rgba.device)[:count]
    psnr = []
    for part in index.split(16):
        images = pictures.compose(part, torch.zeros_like(part), torch.zeros_like(part))
        psnr.append(decibels(vae.decode(vae.encode(images).latent_dist.mean).sample, images))
    return quality(torch.cat(psnr))


def latent_bank(vae: AutoencoderKL, pictures: Pictures, bank: CaptionBank) -> Tensor:
    """Latents of every picture in every scene of its own: (N, scenes, z, h, w) fp16."""
    device, codec = pictures.rgba.device, PictureCodec(vae)
    scenes = torch.tensor(bank.scenes, device=device)  # (N, scenes, 2)
    size = pictures.rgba.shape[-1] // VAE_SCALE
    latents = torch.empty(*scenes.shape[:2], LATENT_CHANNELS, size, size, dtype=torch.float16, device=device)
    for scene in range(scenes.shape[1]):
        for index in torch.arange(len(pictures), device=device).split(256):
            latents[index, scene] = encode(codec, pictures.compose(index, *scenes[index, scene].unbind(1))).half()
    return latents


class DenoiserTraining(ABC):
    """Flow matching of a transformer and its text encoder, on latents and captions that stay on the device.

    The learning rate is constant for half the budget, then falls to nearly 0 on a line.

    Args:
        data: latents (N, scenes, z, ...), tokens (N, bank, text) and chosen (N, bank): the scene each caption fits.
        weights: (N,) how often each picture or clip is drawn.
        folder: where the pipeline is written; it has the VAE and the tokenizer.
    """

    name = "denoiser"
    blocks: str  # the transformer's attribute that holds its blocks

    def __init__(self, model: nn.ModuleDict, data: dict[str, Tensor], weights: Tensor, batch: int, folder: Path, compile: bool) -> None:
        self.model, self.data, self.weights, self.batch, self.folder = model, data, weights, batch, folder
        self.device = weights.device
        self.average = copy.deepcopy(model).requires_grad_(False)
        blocks = f"transformer.{self.blocks}"
        matrices = {name for name, p in model.named_parameters() if name.startswith(blocks) and name.endswith("weight") and p.ndim == 2}
        others = [p for n, p in model.named_parameters() if n not in matrices]
        self.adam = torch.optim.AdamW(others, LR, betas=(0.9, 0.98), weight_decay=0.01, fused=self.device.type == "cuda")
        self.muon = Muon([p for n, p in model.named_parameters() if n in matrices], MUON_LR)
        self.loss = self.compiled_loss() if compile else self._loss

    @abstractmethod
    def velocity(self, noisy: Tensor, time: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
        """The transformer's answer: (B, z, ...), (B,), (B, T, C), (B, T) -> (B, z, ...)."""

    @abstractmethod
    def save(self, transformer: nn.Module, text_encoder: nn.Module) -> None:
        """Write the pipeline."""

    def compiled_loss(self) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        return torch.compile(self._loss)

    def _loss(self, latents: Tensor, noise: Tensor, time: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
        """Velocity from picture (time 0) to noise (time 1): (B, z, ...) twice, (B,), (B, T, C), (B, T) -> scalar."""
        weight = time.view(-1, *[1] * (latents.ndim - 1))
        with autocast(self.device):
            velocity = self.velocity((1 - weight) * latents + weight * noise, time, captions, mask)
        return F.mse_loss(velocity.float(), noise - latents)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Latents (B, z, ...) and tokens (B, T) of random pictures or clips."""
        number = torch.multinomial(self.weights, self.batch, True)
        caption = torch.randint(0, self.data["chosen"].shape[1], (self.batch,), device=self.device)
        scene = self.data["chosen"][number, caption]
        return self.data["latents"][number, scene].float(), self.data["tokens"][number, caption].long()

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
        self.save(self.average["transformer"].eval(), self.average["text_encoder"].eval())
        return {"bytes": sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())}


class PixArtTraining(DenoiserTraining):
    """PixArtTransformer2DModel: the caption's padding is masked."""

    blocks = "transformer_blocks"

    def velocity(self, noisy: Tensor, time: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
        return self.model["transformer"](
            noisy,
            encoder_hidden_states=captions,
            encoder_attention_mask=mask,
            timestep=time * 1000,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]

    def save(self, transformer: nn.Module, text_encoder: nn.Module) -> None:
        save_pipeline(self.folder, transformer, text_encoder)

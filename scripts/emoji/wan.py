"""The video model: a WanPipeline with a VAE of 4 frames x 8 x 8 pixels a latent, made new, trained, written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from emoji.captions import COLOURS, CaptionBank
from emoji.motion import MOTION_NAMES, MOTIONS, move, on_background, paths
from emoji.networks import HEAD_DIM, HEADS, LAYERS, TEXT_DIM, save_parts, start_at_zero, text_config
from emoji.parts import DenoiserTraining, VaeTraining, decibels, encode, quality

LATENT_CHANNELS = 16
SCALE = 8
CAPTION_TOKENS = 32  # the longest caption
# WanPipeline pads captions with zeros that its transformer attends to like words: 512 by default, fewer when it should be quick. Learnt with a number
# between, a caption means the same with either.
PADDED = 128
CLOSEUP = 0.5  # width of the window that a close-up shows


def new_vae() -> AutoencoderKLWan:
    """A VAE of 2.2 M parameters that works on patches of 2 x 2 pixels."""
    return AutoencoderKLWan(
        base_dim=24,
        decoder_base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=SCALE,
    )


def new_transformer() -> WanTransformer3DModel:
    """A transformer of 6.6 M parameters; its output and modulation start at zero."""
    transformer = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        ffn_dim=896,
        num_layers=LAYERS,
    )
    start_at_zero(transformer.proj_out, transformer.condition_embedder.time_proj)
    return transformer


def new_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """A UMT5 encoder of 0.8 M parameters, trained together with the transformer."""
    return UMT5EncoderModel(UMT5Config(**text_config(vocabulary)))


def read_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE of a pipeline folder, in fp32, frozen."""
    return AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32).eval().requires_grad_(False)


def read_denoiser(folder: Path) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """Transformer and text encoder of a pipeline folder, in fp32."""
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
    return transformer, UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)


class ClipCodec:
    """AutoencoderKLWan of clips (B, 3, 4n + 1, H, W).

    The VAE itself takes one latent frame at a time: its convolutions are causal, and what they need of earlier frames is in a cache. Here the first
    frame goes alone, as it must, and all the others together, which gives the same in fewer launches.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        for param in vae.parameters():
            if param.ndim > 3:
                layout = torch.channels_last if param.ndim == 4 else torch.channels_last_3d
                param.data = param.data.contiguous(memory_format=layout)

    def moments(self, images: Tensor) -> Tensor:
        patches = patchify(images, self.vae.config.patch_size).contiguous(memory_format=torch.channels_last_3d)
        cache: list[Tensor | None] = [None] * self.vae._cached_conv_counts["encoder"]
        parts = [self.vae.encoder(part, feat_cache=cache, feat_idx=[0]) for part in _first_and_rest(patches)]
        return self.vae.quant_conv(torch.cat(parts, 2))

    def rebuild(self, latents: Tensor) -> Tensor:
        patches = self.vae.post_quant_conv(latents)
        cache: list[Tensor | None] = [None] * self.vae._cached_conv_counts["decoder"]
        parts = [
            self.vae.decoder(part, feat_cache=cache, feat_idx=[0], first_chunk=number == 0) for number, part in enumerate(_first_and_rest(patches))
        ]
        return unpatchify(torch.cat(parts, 2), self.vae.config.patch_size)

    def whiten(self, latents: Tensor) -> None:
        """WanPipeline takes mean and deviation of each channel from the VAE's config."""
        mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
        self.vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())

    def whitened(self, images: Tensor) -> Tensor:
        """Latents of clips as the transformer sees them."""
        mean, deviation = (torch.tensor(self.vae.config[name], device=images.device) for name in ("latents_mean", "latents_std"))
        return (encode(self, images) - mean[:, None, None, None]) / deviation[:, None, None, None]


def _first_and_rest(frames: Tensor) -> list[Tensor]:
    return list(frames.split([1, frames.shape[2] - 1], 2)) if frames.shape[2] > 1 else [frames]


class Clips:
    """Every subject in every motion, drawn when they are needed: clip n is subject n // motions in motion n % motions.

    Args:
        rgba: (subjects, 4, H, W) uint8.
        colour: share of the random clips on a colour.
    """

    def __init__(self, rgba: Tensor, pixels: int, frames: int, colour: float) -> None:
        self.rgba, self.pixels, self.frames, self.colour = rgba, pixels, frames, colour
        self.weights = torch.tensor([motion.weight for motion in MOTIONS.values()], device=rgba.device).repeat(len(rgba))

    def __len__(self) -> int:
        return len(self.weights)

    def compose(self, number: Tensor, colour: Tensor, window: Tensor | None = None) -> Tensor:
        """Clips on a background: (B,) twice -> (B, 3, F, H, W) in [-1, 1]; a window of them, as `move` takes it, has its share of the pixels."""
        pixels = self.pixels if window is None else round(self.pixels * CLOSEUP)
        moved = move(self.rgba[number // len(MOTION_NAMES)], number % len(MOTION_NAMES), pixels, self.frames, window)
        return on_background(moved, colour)

    def draw(self, count: int, closeup: bool = False) -> Tensor:
        """`count` random clips; close-ups are a part of the picture that the subject passes, at the same scale."""
        device = self.rgba.device
        number = torch.multinomial(self.weights, count, True)
        coloured = torch.rand(count, device=device) < self.colour
        colour = torch.where(coloured, torch.randint(0, len(COLOURS), (count,), device=device), 0)
        return self.compose(number, colour, self._window(number % len(MOTION_NAMES)) if closeup else None)

    def _window(self, motion: Tensor) -> Tensor:
        """Around the subject's place in a random frame: (B,) -> (B, 3)."""
        frame = torch.randint(0, self.frames, motion.shape, device=motion.device)
        place = paths(self.frames).to(motion.device)[motion, frame, :2]
        centre = (place + 0.4 * (torch.rand_like(place) - 0.5)).clamp(CLOSEUP - 1, 1 - CLOSEUP)
        return torch.cat([centre, torch.full_like(centre[:, :1], CLOSEUP)], 1)


@torch.no_grad()
def reconstruction(vae: AutoencoderKLWan, clips: Clips, count: int = 256) -> dict[str, float]:
    """PSNR of `count` clips on white, spread over subjects and motions, through the VAE's own encode and decode."""
    index = torch.arange(0, len(clips), max(1, len(clips) // count), device=clips.rgba.device)[:count]
    psnr = []
    for part in index.split(16):
        images = clips.compose(part, torch.zeros_like(part))
        psnr.append(decibels(vae.decode(vae.encode(images).latent_dist.mean).sample, images))
    return quality(torch.cat(psnr))


def latent_bank(vae: AutoencoderKLWan, clips: Clips, bank: CaptionBank) -> Tensor:
    """Whitened latents of every clip on every background of its own: (N, scenes, z, f, h, w) fp16."""
    device, codec = clips.rgba.device, ClipCodec(vae)
    colours = torch.tensor(bank.scenes, device=device)[:, :, 0]
    shape = LATENT_CHANNELS, (clips.frames - 1) // 4 + 1, clips.pixels // SCALE, clips.pixels // SCALE
    latents = torch.empty(*colours.shape, *shape, dtype=torch.float16, device=device)
    for scene in range(colours.shape[1]):
        for index in torch.arange(len(clips), device=device).split(64):
            latents[index, scene] = codec.whitened(clips.compose(index, colours[index, scene])).half()
    return latents


class WanVaeTraining(VaeTraining):
    """Two steps of three see close-ups: most of a clip is background, of which a whole clip in the third step shows enough."""

    kl_weight = 1e-4

    def images(self, step: int) -> Tensor:
        return self.draw(self.batch) if step % 3 == 0 else self.draw(round(self.batch / CLOSEUP**2), closeup=True)


class WanTraining(DenoiserTraining):
    """WanTransformer3DModel: captions are padded with zeros, as WanPipeline does it."""

    blocks = "blocks"

    def compiled_loss(self) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
        self.model["transformer"].patch_embedding.__class__ = LinearPatches
        self.model["transformer"].compile_repeated_blocks(dynamic=False)  # in seconds, where the whole takes a minute
        return self._loss

    def velocity(self, noisy: Tensor, time: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
        captions = F.pad(captions * mask[:, :, None], (0, 0, 0, PADDED - captions.shape[1]))
        return self.model["transformer"](noisy, timestep=time * 1000, encoder_hidden_states=captions, return_dict=False)[0]

    def save(self, transformer: nn.Module, text_encoder: nn.Module) -> None:
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
        save_parts(self.folder, WanPipeline, scheduler, {"transformer": transformer, "text_encoder": text_encoder, "vae": read_vae(self.folder)})


class LinearPatches(nn.Conv3d):
    """The transformer's patch embedding as the matrix product that it is: cuDNN's gradient of such a convolution is slow."""

    def forward(self, input: Tensor) -> Tensor:
        height, width = self.kernel_size[1:]
        patches = input.unflatten(4, (-1, width)).unflatten(3, (-1, height))  # (B, z, F, h, height, w, width)
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)

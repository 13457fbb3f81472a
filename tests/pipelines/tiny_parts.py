"""What the tiny pipelines are made of: real classes of diffusers and transformers with random weights, and tokenizers made here.

Pictures are 24 x 40 pixels, 6 x 10 tokens unless a family says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTokenizer, Gemma2Config, Gemma2Model, PreTrainedTokenizerFast, T5Config, T5EncoderModel


class Tiny(NamedTuple):
    """How to make and to call the tiny pipeline of one diffusers class.

    Attributes:
        build: the pipeline, from the class's name and a folder for files of its own.
        call: arguments that make a small result. `num_inference_steps=2` is added where they do not say.
    """

    build: Callable[[str, Path], Any]
    call: dict[str, Any] | Callable[[], dict[str, Any]]


HEIGHT, WIDTH = 24, 40
WORDS = ["a", "red", "blue", "green", "heart", "dog", "face", "cat", "big", "small", "on", "the", "left", "of", "right", "puppy", "rocket"]


def t5_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=12)


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """One token a letter: CLIP's byte alphabet without merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # in another order in every process
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def t5(words: int = 32, width: int = 24) -> T5EncoderModel:
    config = T5Config(vocab_size=words, d_model=width, d_kv=8, num_heads=3, d_ff=32, num_layers=1, feed_forward_proj="gated-gelu")
    return T5EncoderModel(config).eval()


def clip(tokenizer: CLIPTokenizer, kind: Callable[..., Any], width: int = 12, tokens: int = 16) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=width,
        max_position_embeddings=tokens, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    return kind(config).eval()


def vae(channels: int = 4, blocks: int = 2, **config: Any) -> diffusers.AutoencoderKL:
    """Halves height and width at each block but the last."""
    return diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(8,) * (blocks - 1) + (16,), norm_num_groups=4, sample_size=32, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, **config,
    ).eval()  # fmt: skip


def gemma2(width: int = 24) -> Gemma2Model:
    return Gemma2Model(
        Gemma2Config(
            vocab_size=32, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        )
    ).eval()  # fmt: skip


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def mask() -> torch.Tensor:
    """Which pixels to paint anew."""
    return (picture(1)[:, :1] > 0.5).float()

"""A diffusers pipeline on all ranks that torchrun starts; without torchrun, on one.

torchrun --standalone --nproc-per-node 2 examples/pipeline.py
"""

from importlib.resources import files

import torch

from dit_usp.pipelines import USPPixArtAlphaPipeline

MODEL = files("dit_usp") / "data" / "emoji-pixart-256"  # or a hub id, such as "PixArt-alpha/PixArt-XL-2-1024-MS"

pipe = USPPixArtAlphaPipeline.from_pretrained(MODEL)  # parallel=ParallelConfig(ulysses_degree=2) would choose the layout, here it is ours
images = pipe("a red heart", num_inference_steps=10, guidance_scale=3.0, generator=torch.Generator().manual_seed(1)).images

if pipe.mesh.is_first:  # images is None on the other ranks
    images[0].save("heart.png")
    print(f"heart.png, made with {pipe.mesh.config}")

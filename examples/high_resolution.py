"""A large picture: where sharding pays. On 4 GPUs, with the 2048-pixel model named below:

torchrun --standalone --nproc-per-node 4 examples/high_resolution.py
"""

import os
import sys

import torch

import dit_usp
from dit_usp.config import choose_layout

# "PixArt-alpha/PixArt-Sigma-XL-2-2K-MS": 16 heads, 2048 x 2048 pixels = 16,384 tokens. Any folder and size can be given instead.
model, size = sys.argv[1:] or ("PixArt-alpha/PixArt-Sigma-XL-2-2K-MS", 2048)
prompt = "a lighthouse on a cliff at dawn, photograph"

parallel, reasons = choose_layout(int(os.environ["WORLD_SIZE"]), heads=16, guidance=True)  # guidance first, then Ulysses
pipe = dit_usp.auto_pipeline(model, parallel=parallel, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32)
pipe.vae.enable_tiling()  # the first rank decodes alone: in tiles, the decoder's memory stays small
images = pipe(prompt, height=int(size), width=int(size), num_inference_steps=20, generator=torch.Generator().manual_seed(1)).images

if pipe.mesh.is_first:
    print(*reasons, sep="\n")
    images[0].save("lighthouse.png")

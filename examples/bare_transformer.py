"""A diffusers transformer without a pipeline: your own sampling loop, sharded by two calls.

torchrun --standalone --nproc-per-node 2 examples/bare_transformer.py
"""

import torch
import torch.distributed as dist
from diffusers import PixArtTransformer2DModel

import dit_usp

dist.init_process_group("gloo")  # "nccl" on GPUs
mesh = dit_usp.init_mesh(dit_usp.ParallelConfig(ulysses_degree=dist.get_world_size()), device_type="cpu")

torch.manual_seed(0)  # every rank holds the whole weights and gets the whole inputs
transformer = PixArtTransformer2DModel(
    sample_size=32, num_attention_heads=4, attention_head_dim=16, num_layers=2, cross_attention_dim=64, caption_channels=32
).eval()
# with real weights: PixArtTransformer2DModel.from_pretrained("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", subfolder="transformer")
inputs = dict(
    hidden_states=torch.randn(2, 4, 26, 38),  # latents: 13 x 19 = 247 tokens
    encoder_hidden_states=torch.randn(2, 20, 32),
    timestep=torch.full((2,), 500),
    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
)

with torch.no_grad():
    expected = transformer(**inputs).sample
    dit_usp.parallelize(transformer, mesh)  # in place; the call stays as it was
    out = transformer(**inputs).sample  # each rank computes its share of the tokens, all get the whole output
    dit_usp.unparallelize(transformer)

error = (out - expected).abs().max() / expected.abs().max()
print(f"rank {dist.get_rank()}: {tuple(out.shape)}, relative error {error:.0e}", flush=True)
assert error < 1e-5
dist.destroy_process_group()

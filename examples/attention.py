"""USP attention by itself, against scaled_dot_product_attention on one process.

torchrun --standalone --nproc-per-node 4 examples/attention.py
"""

import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

import dit_usp

dist.init_process_group("gloo")  # "nccl" on GPUs
mesh = dit_usp.init_mesh(dit_usp.ParallelConfig(ulysses_degree=2, ring_degree=2), device_type="cpu")
rank, ranks = mesh.sequence.rank(), mesh.sequence.size()

torch.manual_seed(0)  # the same whole tensors on every rank, only to compare with
query, key, value = torch.randn(3, 2, 5, 1001, 64)  # batch, heads, tokens, head size: neither heads nor tokens divide evenly
expected = scaled_dot_product_attention(query, key, value).tensor_split(ranks, dim=2)[rank]

pieces = [whole.tensor_split(ranks, dim=2) for whole in (query, key, value)]  # in real use a rank holds its own piece only
lengths = [piece.shape[2] for piece in pieces[0]]  # tokens on each rank; without them all pieces count as equally long
out = dit_usp.usp_attention(*(piece[rank] for piece in pieces), mesh=mesh, lengths=lengths)

error = (out - expected).abs().max() / expected.abs().max()
print(f"rank {rank}: {out.shape[2]} of {sum(lengths)} tokens, relative error {error:.0e}", flush=True)
assert error < 1e-5
dist.destroy_process_group()

"""The pool of ranks: what one function does to its world is not the next one's."""

import torch.distributed as dist

from dit_usp.bench import alone


def leave(world_size):
    """Leave the pool's world, and with a size become the first rank of a world whose other ranks do not exist."""
    dist.barrier()  # a rank that leaves while another one still connects closes its connections
    dist.destroy_process_group()
    if world_size:
        alone.start(world_size)


def world():
    return dist.get_backend(), dist.get_world_size()


def test_the_next_function_finds_the_pools_world(ranks):
    for size in (1, 2):
        for others in (0, 1, 3):
            ranks(size, leave, others)
            assert ranks(size, world) == [("gloo", size)] * size

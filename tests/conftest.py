"""Shared by all tests: the pool of ranks, and an environment in which nothing asks the network."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks are processes; several threads each spin against one another

import pytest
from ranks import RankPool, set_imports_aside


def pytest_collection_finish() -> None:
    set_imports_aside()


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[RankPool]:
    pool = RankPool(4)
    yield pool
    pool.close()


@pytest.fixture
def ranks(rank_pool: RankPool) -> RankPool:
    """`ranks(world_size, function, *args)` runs function(*args) on that many gloo ranks and returns their results."""
    return rank_pool


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    """A pipeline loaded in the test process joins a group of one rank, which the next test must not find."""
    yield
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()

"""Shared by all tests: the pool of ranks, and an environment in which nothing asks the network."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks are processes; several threads each spin against one another

import pytest
from ranks import RankPool


@pytest.fixture(scope="session")
def rank_pool() -> Iterator[RankPool]:
    pool = RankPool(4)
    yield pool
    pool.close()


@pytest.fixture
def ranks(rank_pool: RankPool) -> RankPool:
    """`ranks(world_size, function, *args)` runs function(*args) on that many gloo ranks and returns their results."""
    return rank_pool

"""ParallelConfig refuses nonsense at birth; the automatic layout fits the ranks, the heads and the images."""

import itertools

import pytest

from dit_usp.config import ParallelConfig, choose_layout
from dit_usp.errors import UnsupportedError


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True, None])
@pytest.mark.parametrize("name", ["ulysses_degree", "ring_degree", "cfg_degree", "data_degree"])
def test_a_degree_is_a_whole_number(name, bad):
    with pytest.raises(ValueError, match=f"{name}={bad!r} is not a whole number of ranks"):
        ParallelConfig(**{name: bad})


def test_unknown_ring_method_and_cfg_degree():
    with pytest.raises(ValueError, match="choose from rotate, gather"):
        ParallelConfig(ring_method="allgather")
    with pytest.raises(UnsupportedError, match="cfg_degree=4: guidance has two halves; try cfg_degree=2 and data_degree=2"):
        ParallelConfig(cfg_degree=4)


def test_too_few_heads_names_layouts_that_work():
    with pytest.raises(UnsupportedError) as error:
        ParallelConfig(ulysses_degree=8).check_heads(6, "SD3Transformer2DModel")
    assert str(error.value) == (
        "ulysses_degree=8 needs at least 8 heads; SD3Transformer2DModel has 6. Try ulysses_degree=4 ring_degree=2 or ulysses_degree=6."
    )
    ParallelConfig(ulysses_degree=6).check_heads(6, "SD3Transformer2DModel")


@pytest.mark.parametrize("world_size", range(1, 33))
def test_auto_uses_every_rank_and_fits_the_heads(world_size):
    for heads, (guidance, num_images) in itertools.product((1, 2, 6, 8, 12, 16, 24, 30, 38), ((False, 1), (True, 1), (True, 4), (False, 6))):
        config, reasons = choose_layout(world_size, heads=heads, guidance=guidance, num_images=num_images)
        assert config.world_size == world_size
        assert config.ulysses_degree <= heads
        assert num_images % config.data_degree == 0
        assert config.cfg_degree == 1 or guidance
        assert reasons


@pytest.mark.parametrize(
    ("arguments", "degrees"),
    [
        (dict(world_size=2, heads=16, guidance=True), (1, 1, 2, 1)),
        (dict(world_size=2, heads=24), (1, 2, 1, 1)),
        (dict(world_size=4, heads=24, guidance=True), (1, 2, 2, 1)),
        (dict(world_size=4, heads=24), (4, 1, 1, 1)),
        (dict(world_size=4, heads=6), (2, 2, 1, 1)),
        (dict(world_size=8, heads=16, guidance=True, num_images=2), (1, 2, 2, 2)),
        (dict(world_size=3, heads=2), (1, 3, 1, 1)),
    ],
)
def test_auto_picks(arguments, degrees):
    config = ParallelConfig.auto(**arguments)
    assert (config.ulysses_degree, config.ring_degree, config.cfg_degree, config.data_degree) == degrees

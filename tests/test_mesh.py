"""The groups of a Mesh hold the ranks that the formula of ParallelConfig says."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from dit_usp.config import ParallelConfig
from dit_usp.mesh import init_mesh


def groups_of(config):
    mesh = init_mesh(config, "cpu")
    return {axis: dist.get_process_group_ranks(getattr(mesh, axis)) for axis in ("ulysses", "ring", "sequence", "cfg", "data")}


@pytest.mark.parametrize("degrees", [d for d in itertools.product((1, 2, 4), repeat=4) if d[2] < 4 and torch.tensor(d).prod() in (2, 4)])
def test_groups_follow_the_rank_formula(ranks, degrees):
    config = ParallelConfig(*degrees)
    for rank, groups in enumerate(ranks(config.world_size, groups_of, config)):
        ulysses, rest = rank % config.ulysses_degree, rank // config.ulysses_degree
        ring, rest = rest % config.ring_degree, rest // config.ring_degree
        cfg, data = rest % config.cfg_degree, rest // config.cfg_degree

        def at(data=data, cfg=cfg, ring=ring, ulysses=ulysses):
            return ((data * config.cfg_degree + cfg) * config.ring_degree + ring) * config.ulysses_degree + ulysses

        assert groups["ulysses"] == [at(ulysses=u) for u in range(config.ulysses_degree)]
        assert groups["ring"] == [at(ring=r) for r in range(config.ring_degree)]
        assert groups["sequence"] == [at(ring=r, ulysses=u) for r in range(config.ring_degree) for u in range(config.ulysses_degree)]
        assert groups["cfg"] == [at(cfg=c) for c in range(config.cfg_degree)]
        assert groups["data"] == [at(data=d) for d in range(config.data_degree)]


def groups_of_a_users_mesh(names):
    mesh = init_mesh(init_device_mesh("cpu", (2, 2), mesh_dim_names=names), ring_method="gather")
    sizes = {axis: getattr(mesh, axis).size() for axis in ("ulysses", "ring", "sequence", "cfg", "data")}
    return mesh.config, sizes, dist.get_process_group_ranks(mesh.sequence)


def test_a_users_device_mesh_keeps_its_other_dims(ranks):
    for rank, (config, sizes, sequence) in enumerate(ranks(4, groups_of_a_users_mesh, ("ulysses", "tp"))):
        assert config == ParallelConfig(ulysses_degree=2, ring_method="gather")
        assert sizes == {"ulysses": 2, "ring": 1, "sequence": 2, "cfg": 1, "data": 1}
        assert sequence == [rank % 2, rank % 2 + 2]
    for rank, (_, sizes, sequence) in enumerate(ranks(4, groups_of_a_users_mesh, ("cfg", "ring"))):
        assert sizes == {"ulysses": 1, "ring": 2, "sequence": 2, "cfg": 2, "data": 1}
        assert sequence == [rank // 2 * 2, rank // 2 * 2 + 1]


def wrong_world():
    with pytest.raises(ValueError, match=r"ulysses 3 x ring 1 x cfg 1 x data 1 needs 3 ranks, but 2 were started"):
        init_mesh(ParallelConfig(3), "cpu")
    return True


def test_a_world_of_another_size_is_refused(ranks):
    assert all(ranks(2, wrong_world))


def test_without_torch_distributed_the_error_says_what_to_start():
    with pytest.raises(ValueError, match="torchrun"):
        init_mesh(ParallelConfig())

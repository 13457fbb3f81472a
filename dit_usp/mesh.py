"""Mesh: the process groups of this rank, built once from a ParallelConfig and passed down as a value."""

from __future__ import annotations

import atexit
import os
import time
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from dit_usp.config import ParallelConfig

AXES = ("data", "cfg", "ring", "ulysses")  # outermost first
REST_S = 0.2  # sufficed with twelve busy processes on two cores


@dataclass(frozen=True)
class Mesh:
    """The groups of one rank. `group.rank()` is this rank's coordinate on that axis, `group.size()` the degree.

    Attributes:
        config: the degrees it was built from.
        device: where this rank computes.
        ulysses, ring, cfg, data: the groups of the four axes.
        sequence: ring x ulysses, the ranks that share the tokens of a forward; rank = ring * ulysses_degree + ulysses.
        asked: what its ranks have asked one another once.
    """

    config: ParallelConfig
    device: torch.device
    ulysses: dist.ProcessGroup
    ring: dist.ProcessGroup
    sequence: dist.ProcessGroup
    cfg: dist.ProcessGroup
    data: dist.ProcessGroup
    asked: set[str] = field(default_factory=set, init=False, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank decodes, reports and saves."""
        return all(group.rank() == 0 for group in (self.data, self.cfg, self.sequence))


def init_mesh(config: ParallelConfig | DeviceMesh, device_type: str | None = None, *, ring_method: str = "rotate") -> Mesh:
    """Build this rank's groups. torch.distributed is initialised already; every rank calls this.

    Args:
        config: the degrees, or an existing DeviceMesh with some of the dims "data", "cfg", "ring", "ulysses" (others, such as "tp", are left alone).
        device_type: "cuda" or "cpu"; None: cuda where there is one.
        ring_method: for a DeviceMesh only, which carries none.

    Raises:
        ValueError: torch.distributed is not initialised, or the world size is not config.world_size.
    """
    if not dist.is_initialized():
        raise ValueError(
            "init_mesh needs torch.distributed to be initialised: start with torchrun, or call dit_usp.Engine, which starts the ranks itself."
        )
    if isinstance(config, DeviceMesh):
        device_mesh, config = config, _config_of(config, ring_method)
    else:
        device_mesh = _device_mesh(config, device_type or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config.world_size > 1:
        _rest_at_exit()
    groups = {axis: _group(device_mesh, (axis,)) for axis in AXES}
    # Where one of the two axes is off, the other is the sequence: a group less to set up, and with NCCL a communicator less in memory.
    alone = {1: groups["ulysses"], config.sequence_degree: groups["ring"]}.get(config.ring_degree)
    return Mesh(config=config, device=_device(device_mesh.device_type), sequence=alone or _group(device_mesh, ("ring", "ulysses")), **groups)


@cache
def _rest_at_exit() -> None:
    """Let gloo's threads end what they do before the interpreter ends: a fixed pause, since torch does not tell when they have.

    Such a thread takes Python's lock to let go of a collective's tensors, when the waiting rank has been told already and goes on. If that rank
    ends meanwhile, CPython before 3.14 ends the thread within C++, and the process aborts: "terminate called without an active exception"
    (pytorch/pytorch#190489). Destroying the groups ends only the threads of those that no mesh holds.
    """
    atexit.register(time.sleep, REST_S)


def _device_mesh(config: ParallelConfig, device_type: str) -> DeviceMesh:
    if dist.get_world_size() != config.world_size:
        raise ValueError(f"{config} needs {config.world_size} ranks, but {dist.get_world_size()} were started.")
    shape = (config.data_degree, config.cfg_degree, config.ring_degree, config.ulysses_degree)
    return DeviceMesh(device_type, torch.arange(config.world_size).view(shape), mesh_dim_names=AXES)


def _config_of(device_mesh: DeviceMesh, ring_method: str) -> ParallelConfig:
    names = device_mesh.mesh_dim_names or ()
    degrees = {f"{axis}_degree": device_mesh.size(names.index(axis)) for axis in AXES if axis in names}
    return ParallelConfig(**degrees, ring_method=ring_method)  # type: ignore[arg-type]


def _group(device_mesh: DeviceMesh, axes: tuple[str, ...]) -> dist.ProcessGroup:
    """The group over `axes` (a dim the mesh lacks has one rank). Reshaping the mesh is public; flattening it moved between torch versions."""
    names = device_mesh.mesh_dim_names or ()
    present = [names.index(axis) for axis in axes if axis in names]
    if len(present) == 1 == len(axes):
        return device_mesh.get_group(axes[0])
    rest = [dim for dim in range(device_mesh.mesh.ndim) if dim not in present]
    ranks = device_mesh.mesh.permute(*rest, *present)
    size = ranks[(0,) * len(rest)].numel() if present else 1
    return DeviceMesh(device_mesh.device_type, ranks.reshape(-1, size), mesh_dim_names=("rest", "axis")).get_group("axis")


def _device(device_type: str) -> torch.device:
    if device_type == "cpu":
        return torch.device("cpu")
    # srun may show each of a machine's ranks a single GPU, its own
    return torch.device(device_type, int(os.environ.get("LOCAL_RANK", dist.get_rank())) % torch.accelerator.device_count())

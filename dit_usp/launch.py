"""Joining the other ranks: whoever started this process, torch.distributed is initialised once and a Mesh comes back."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_usp.config import ParallelConfig

if TYPE_CHECKING:
    from dit_usp.mesh import Mesh

# Who started us, by the variables that hold rank, world size and local rank. torchrun, Ray Train and our own ranks use the first row. Slurm's
# world is that of the step: SLURM_NTASKS is also set in a batch script, where one process runs.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
STORE = "DIT_USP_STORE"  # the rendezvous file of ranks that we started


@dataclass(frozen=True)
class Place:
    """Which of how many ranks this process is, on all machines and on this one."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place as its launcher's variables tell it; None if no launcher started it, or it was started alone.

    Raises:
        ValueError: a variable that is no number.
    """
    for rank, size, local_rank, local_size in _LAUNCHERS:
        if rank in environ and size in environ:
            local = local_rank if local_rank in environ else rank
            near = local_size if local_size in environ else size
            found = Place(*(_number(environ, name) for name in (rank, size, local, near)))
            return found if found.world_size > 1 else None
    return None


def _number(environ: Mapping[str, str], name: str) -> int:
    """The first whole number in a variable. Slurm writes "4(x2),3", tasks on each node: close enough to share out cores; OpenMP takes "4,2"."""
    if match := re.match(r"\d+(?=$|[,(])", environ[name]):
        return int(match[0])
    raise ValueError(f"{name}={environ[name]!r} in the environment is not a whole number; set it right or unset it.")


def under_launcher() -> bool:
    """Whether this process is a rank: started by us, torchrun, srun, mpirun or Ray."""
    return place() is not None


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs of this machine. torch (2 s) is loaded only where a driver's device files are."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def join(config: ParallelConfig | None = None, device_type: str | None = None) -> Mesh:
    """Join the other ranks of this job and return this rank's Mesh; calling it again gives another Mesh over the same ranks.

    Args:
        config: the degrees; None: `ParallelConfig.auto` for the ranks there are.
        device_type: "cuda" or "cpu"; None: cuda where there is one.

    Raises:
        ValueError: the ranks started are not config.world_size, or there are fewer GPUs than ranks on this machine.
    """
    import torch
    import torch.distributed as dist

    from dit_usp.mesh import init_mesh

    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if not dist.is_initialized():
        here = place() or Place(0, 1, 0, 1)
        _check(config, here, device_type)
        _initialise(here, device_type)
    return init_mesh(config or ParallelConfig.auto(dist.get_world_size()), device_type)


def _check(config: ParallelConfig | None, here: Place, device_type: str) -> None:
    """Refuse from what the environment says, before any rank waits for another."""
    if config is not None and config.world_size != here.world_size:
        started = "1 was" if here.world_size == 1 else f"{here.world_size} were"
        raise ValueError(
            f"{config} needs {config.world_size} ranks, but {started} started: "
            f"use torchrun --nproc-per-node {config.world_size}, or dit_usp.Engine, which starts them itself."
        )
    # torchrun, and we, show all ranks of a machine the same GPUs; srun and others may show each one its own (two on one GPU are refused by NCCL).
    same_for_all = STORE in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if device_type == "cuda" and (same_for_all or num_gpus() != 1):
        check_gpus(here.local_world_size)


def check_gpus(ranks: int) -> None:
    """Refuse more ranks than GPUs: NCCL cannot have two ranks on one.

    Raises:
        ValueError: ranks > GPUs of this machine; names both.
    """
    if ranks > (gpus := num_gpus()):
        raise ValueError(f"{ranks} ranks need {ranks} GPUs, but this machine has {gpus}. Start at most {gpus} ranks, or compute on the CPU.")


def _initialise(here: Place, device_type: str) -> None:
    import torch
    import torch.distributed as dist

    os.environ.setdefault("LOCAL_RANK", str(here.local_rank))  # the Mesh finds its device by it
    options: dict[str, Any] = {"rank": here.rank, "world_size": here.world_size, **_meeting_point(here)}
    if device_type == "cuda":
        device = torch.device("cuda", here.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        # An exchange is launched beside matrix products that fill the GPU: without priority it begins when they end. Read when a group is set up.
        os.environ.setdefault("TORCH_NCCL_HIGH_PRIORITY", "1")
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **options)
    else:
        torch.set_num_threads(num_threads(here.local_world_size))
        dist.init_process_group("gloo", **options)
        atexit.register(_leave)


def _leave() -> None:
    """End the threads of gloo's groups that nothing holds before the interpreter ends; for the others `init_mesh` has a pause made there."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def num_threads(local_world_size: int) -> int:
    """Threads for one of `local_world_size` ranks on this machine: more than its cores, and OpenMP's spinning threads stall one another.

    Raises:
        ValueError: OMP_NUM_THREADS is no number.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return max(1, _number(os.environ, "OMP_NUM_THREADS"))
    return max(1, num_cores() // local_world_size)


def _meeting_point(here: Place) -> dict[str, Any]:
    """Where the ranks find one another: memory if alone, a file between ranks of ours, else the launcher's address."""
    import torch.distributed as dist

    if here.world_size == 1:
        return {"store": dist.HashStore()}
    if STORE in os.environ:
        return {"init_method": f"file://{os.environ[STORE]}"}
    host, port = master_address()
    return {"init_method": f"tcp://{host}:{port}"}  # torch sees by itself whether torchrun already listens there


def master_address(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port of the first rank: MASTER_ADDR and MASTER_PORT, or for Slurm its first node and a port made of the job's number.

    Raises:
        ValueError: the launcher tells neither, or no number where one belongs.
    """
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        return environ["MASTER_ADDR"], _number(environ, "MASTER_PORT")
    if "SLURM_STEP_NODELIST" not in environ:
        raise ValueError("This launcher does not say where the first rank is: set MASTER_ADDR and MASTER_PORT.")
    job, step = (_number({name: "0", **environ}, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return first_host(environ["SLURM_STEP_NODELIST"]), 20000 + (job * 16 + step) % 12000  # below those that Linux gives out


def first_host(nodelist: str) -> str:
    """The first name in Slurm's short form of a list of hosts: "gpu[07-09,12],login1" -> "gpu07"."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodelist)[0])

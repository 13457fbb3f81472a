"""What this machine has: its devices and how they are linked, the attention kernels that work on them, and the layout that suits them."""

from __future__ import annotations

import itertools
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from dit_usp import __version__, launch
from dit_usp.config import choose_layout

# The legend of `nvidia-smi topo -m`, from near to far.
PATHS = {
    "NV": "NVLink",
    "PIX": "one PCIe switch",
    "PXB": "several PCIe switches",
    "PHB": "a PCIe host bridge",
    "NODE": "PCIe host bridges of one NUMA node",
    "SYS": "PCIe and the link between NUMA nodes",
}


def describe() -> dict[str, Any]:
    """Versions, devices, links, kernels, what `auto` takes and the layouts, as plain values."""
    devices = _gpus() or [_cpu()]
    device_type = devices[0]["type"]
    return {
        "versions": _versions(device_type),
        "devices": devices,
        "links": _links([device["uuid"] for device in devices]) if device_type == "cuda" else [],
        "kernels": _kernels(device_type),
        "auto": _choices(device_type),
        "layouts": _layouts(len(devices)),
    }


def _versions(device_type: str) -> dict[str, str]:
    import torch

    versions = {"dit-usp": __version__, "torch": torch.__version__}
    if device_type == "cuda":
        versions |= {"CUDA": torch.version.cuda or "none", "cuDNN": str(torch.backends.cudnn.version())}
        versions |= {"NCCL": ".".join(map(str, torch.cuda.nccl.version()))} if torch.distributed.is_nccl_available() else {}
    return versions


def _gpus() -> list[dict[str, Any]]:
    import torch

    return [_gpu(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]


def _gpu(properties: Any) -> dict[str, Any]:
    return {
        "type": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "uuid": str(properties.uuid),
    }


def _cpu() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = named[1] if named else platform.processor() or platform.machine()
    return {"type": "cpu", "name": name, "cores": launch.num_cores(), "threads": launch.num_threads(1)}


# -- links


def _links(uuids: list[str]) -> list[dict[str, Any]]:
    """For every pair of GPUs, whether they read each other's memory, and by what path; "" where nvidia-smi does not tell."""
    import torch

    pairs = list(itertools.combinations(range(len(uuids)), 2))
    paths = _paths(uuids) if pairs else {}
    return [{"devices": [a, b], "peer_access": torch.cuda.can_device_access_peer(a, b), "path": paths.get((a, b), "")} for a, b in pairs]


def _paths(uuids: list[str]) -> dict[tuple[int, int], str]:
    """nvidia-smi's words for the paths between torch's devices. It counts all GPUs, torch the visible ones: UUIDs tell which is which."""
    listed = re.findall(r"^GPU (\d+):.*\(UUID: GPU-([\w-]+)\)", _nvidia_smi("-L"), re.MULTILINE)
    index = {uuid: int(number) for number, uuid in listed}
    matrix = parse_matrix(_nvidia_smi("topo", "-m"))
    pairs = itertools.combinations(range(len(uuids)), 2)
    return {(a, b): matrix.get((index.get(uuids[a], -1), index.get(uuids[b], -1)), "") for a, b in pairs}


def _nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints; nothing if it is not there, fails or hangs."""
    try:
        return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def parse_matrix(text: str) -> dict[tuple[int, int], str]:
    """The table of `nvidia-smi topo -m`: (GPU, GPU) -> "NV18", "PIX", "SYS" ... Network cards and what cannot be read are left out."""
    lines = [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]
    heads = next((words for words in lines if words[:1] == ["GPU0"] and "X" not in words), [])
    columns = [int(word[3:]) if re.fullmatch(r"GPU\d+", word) else None for word in heads]
    paths = {}
    for name, *cells in (words for words in lines if words and words != heads and re.fullmatch(r"GPU\d+", words[0])):
        for column, cell in zip(columns, cells, strict=False):
            if column is not None and re.fullmatch(r"NV\d+|PIX|PXB|PHB|NODE|SYS", cell):
                paths[int(name[3:]), column] = cell
    return paths


def path_in_words(path: str) -> str:
    """What nvidia-smi's word means: "NV18" -> "NVLink (NV18)"; the number is that of its links."""
    return f"{PATHS[path.rstrip('0123456789')]} ({path})" if path else "a path that nvidia-smi does not tell"


# -- kernels and layouts


def _kernels(device_type: str) -> dict[str, str]:
    from dit_usp.attention import available

    return available(device_type)


def _choices(device_type: str) -> list[dict[str, Any]]:
    """The kernel that `auto` takes, by head size, without and with an LSE."""
    from dit_usp.attention.preference import HEAD_DIMS

    return [_choice(device_type, head_dim, lse) for lse in (False, True) for head_dim in HEAD_DIMS]


def _choice(device_type: str, head_dim: int, lse: bool) -> dict[str, Any]:
    import torch

    from dit_usp.attention import choose
    from dit_usp.attention.kernels import Call

    dtype = torch.bfloat16 if device_type == "cuda" else torch.float32
    kernel, why = choose("auto", Call(device_type, dtype, head_dim, head_dim, lse=lse))
    return {"head_dim": head_dim, "dtype": str(dtype).removeprefix("torch."), "lse": lse, "kernel": kernel, "why": why}


def _layouts(num_devices: int) -> list[dict[str, Any]]:
    """What `ParallelConfig.auto` picks for a rank a device, without guidance in one batch and with it."""
    found = []
    for guidance in (False, True):
        config, reasons = choose_layout(num_devices, guidance=guidance)
        found.append({"guidance": guidance, "ranks": num_devices, "layout": str(config), "ring_method": config.ring_method, "why": reasons})
    return found

"""What `dit-usp topo` finds: nvidia-smi's tables as it prints them, and a machine of several GPUs by stand-ins for torch's functions."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from dit_usp import attention, topology
from dit_usp.attention import choice
from dit_usp.attention.kernels import KERNELS
from dit_usp.cli import run

HGX = (
    "\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV18\tNV18\tPXB\t0-51\t0\t\tN/A\n"
    "GPU1\tNV18\t X \tNV18\tSYS\t0-51\t0\t\tN/A\n"
    "GPU2\tNV18\tNV18\t X \tSYS\t52-103\t1\t\tN/A\n"
    "NIC0\tPXB\tSYS\tSYS\t X \t\t\t\t\n"
    "\nLegend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)\n"
    "  NV#  = Connection traversing a bonded set of # NVLinks\n\nNIC Legend:\n\n  NIC0: mlx5_0\n"
)
DESKTOP = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tPHB\t0-15\t\tN/A\nGPU1\tPHB\t X \t0-15\t\tN/A\n"
LISTED = "".join(f"GPU {index}: NVIDIA H100 80GB HBM3 (UUID: GPU-aa-{index})\n" for index in range(3))


def test_the_matrix_of_nvidia_smi_is_read() -> None:
    assert topology.parse_matrix(HGX) == {(a, b): "NV18" for a in range(3) for b in range(3) if a != b}
    assert topology.parse_matrix(DESKTOP) == {(0, 1): "PHB", (1, 0): "PHB"}


@pytest.mark.parametrize(
    "text", ["", "Failed to initialize NVML: Unknown Error", "GPU0", "\tGPU0\tCPU Affinity\nGPU0\t X \t0-1\n", DESKTOP.partition("\n")[2]]
)
def test_what_cannot_be_read_tells_nothing(text: str) -> None:
    assert topology.parse_matrix(text) == {}


def test_a_machine_without_nvidia_smi_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert topology._nvidia_smi("topo", "-m") == ""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two H100, the third and the first of three that nvidia-smi lists."""
    uuids = ["aa-2", "aa-0"]

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 * 2**30, uuid=uuids[index])

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 9))
    monkeypatch.setattr(topology, "_nvidia_smi", lambda *arguments: LISTED if arguments == ("-L",) else HGX.replace("GPU2\tNV18", "GPU2\tPIX"))
    states = {name: "needs a package" if kernel.package else "runs on cpu" if name == "cpu" else "ok" for name, kernel in KERNELS.items()}
    monkeypatch.setattr(attention, "available", lambda device: states)
    monkeypatch.setattr(choice, "_state", lambda name, device: states[name])
    monkeypatch.setattr(choice, "_capability", lambda device: (9, 0))


@pytest.mark.usefixtures("gpus")
def test_two_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "NCCL 2.28.9" in lines[1]
    measured = "measured fastest on compute capability 9.0 (H100, torch 2.11), before flash, efficient"
    for line in (
        "  0, 1: NVIDIA H100 80GB HBM3, compute capability 9.0, 80.0 GiB",
        "  0-1: one PCIe switch (PIX), peer access",  # nvidia-smi's GPU2 and GPU0
        "  flash-attn-3: needs a package",
        f"  bfloat16, head size 64, 72, 128, without LSE: sdpa, {measured}",
        f"  bfloat16, head size 64, 72, 128, with LSE (a ring that rotates): cudnn, {measured}",
        "  guidance none: ulysses 1 x ring 2 x cfg 1 x data 1. "
        "ring 2: between two ranks one collective that gathers keys and values is as fast as two that trade heads, or faster.",
    ):
        assert line in lines
    assert lines[-1].startswith("  guidance in one batch: ulysses 1 x ring 1 x cfg 2 x data 1. cfg 2: ")


@pytest.mark.usefixtures("gpus")
def test_links_as_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["topo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["links"] == [{"devices": [0, 1], "peer_access": True, "path": "PIX"}]
    assert [gpu["uuid"] for gpu in found["devices"]] == ["aa-2", "aa-0"]


@pytest.mark.parametrize("tells", [True, False])
def test_links_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch, gpus: None, capsys: pytest.CaptureFixture[str], tells: bool) -> None:
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: False)
    if not tells:
        monkeypatch.setattr(topology, "_nvidia_smi", lambda *arguments: "")
    assert run(["topo"]) == 0
    path = "one PCIe switch (PIX)" if tells else "a path that nvidia-smi does not tell"
    assert f"  0-1: {path}, no peer access: copies go through the host" in capsys.readouterr().out.splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU has")
def test_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(topology.launch, "num_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run(["topo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (cpu,) = found["devices"]
    assert (cpu["type"], cpu["cores"], cpu["threads"], found["links"]) == ("cpu", 6, 3, [])
    assert found["kernels"] == attention.available("cpu")
    assert [(entry["head_dim"], entry["lse"]) for entry in found["auto"]] == [(size, lse) for lse in (False, True) for size in (64, 72, 128)]
    assert [entry["kernel"] for entry in found["auto"]] == ["sdpa"] * 3 + ["cpu"] * 3
    assert run(["topo"]) == 0
    text = capsys.readouterr().out
    assert "(CPU), 6 cores, 3 threads for one rank\nlinks:\n  none: one device\n" in text
    assert text.endswith("  ulysses 1 x ring 1 x cfg 1 x data 1. one rank: nothing to share.\n")

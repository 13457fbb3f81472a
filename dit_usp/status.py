"""Status: what a rank is doing, in a few bytes of shared memory that outlive it, so that its end can be told even after kill -9."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

STAGES = ("load", "idle", "encode", "denoise", "decode", "save")
_RECORD = struct.Struct("<QBII")  # beats, index of the stage, step, total
SIZE = _RECORD.size


def status_path(folder: str | os.PathLike[str], rank: int | str) -> str:
    """Where a rank's record is in the folder of its job."""
    return os.path.join(folder, f"status{rank}")


@dataclass(frozen=True)
class Doing:
    """A rank's stage, and how far it is in a stage that has steps (total 0: it has none)."""

    stage: str
    step: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.stage} step {self.step}/{self.total}" if self.total else self.stage


class Status:
    """One rank's record in a shared file: the rank writes, its parent reads. No message is queued, so nobody has to read in time."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, SIZE)
        self._memory = mmap.mmap(descriptor, SIZE)
        os.close(descriptor)

    def _read(self) -> tuple[int, int, int, int]:
        return _RECORD.unpack_from(self._memory)

    def beat(self) -> None:
        """Show that this process runs (the first field alone: another thread may be writing the others)."""
        struct.pack_into("<Q", self._memory, 0, self.beats + 1)

    def set(self, stage: str, step: int = 0, total: int = 0) -> None:
        """Say what is being done now."""
        struct.pack_into("<BII", self._memory, 8, STAGES.index(stage), step, total)

    @property
    def beats(self) -> int:
        """How often the rank has shown that it runs."""
        return self._read()[0]

    @property
    def doing(self) -> Doing:
        """What the rank said last."""
        _, stage, step, total = self._read()
        return Doing(STAGES[stage], step, total)

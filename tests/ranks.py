"""A pool of rank processes for the tests: started once a test process, gloo on the CPU, one thread each.

Spawning ranks for each test costs 12-58 s, a pool 20 s once and 0.02-0.2 s a test.
Ranks meet through a FileStore: hunting for a free port races.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from multiprocessing.connection import Connection
from typing import Any

FRESH_AFTER = 20  # calls: every mesh brings process groups with threads of their own, which last until the world is left
LIMIT_S = 120  # a call that takes longer hangs: the pool is ended and the test fails


def set_imports_aside() -> None:
    """What imports have left need not be looked through at every collection of garbage."""
    gc.collect()
    gc.freeze()


def _serve(rank: int, connection: Connection) -> None:
    """Run what the test process sends until it says None."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    joined, modules = None, 0
    while (message := connection.recv()) is not None:
        world_size, store, function, args = message
        try:
            if store != joined:
                joined = store
                if dist.is_initialized():
                    dist.destroy_process_group()
                dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
            world = dist.group.WORLD
            torch.manual_seed(0)
            result = function(*args)
            connection.send((True, result, dist.group.WORLD is world))
        except BaseException:
            connection.send((False, traceback.format_exc(), False))
        if len(sys.modules) > modules:
            modules = len(sys.modules)
            set_imports_aside()


def _launched(port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Run function(*args) on a rank that is told its place as by torchrun and has joined nothing yet."""
    import torch.distributed as dist

    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    dist.barrier()  # a rank that leaves while another one still connects closes its connections
    dist.destroy_process_group()
    before = dict(os.environ)
    os.environ.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=size, MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0", TORCHELASTIC_RUN_ID="pool")
    try:
        return function(*args)
    finally:
        os.environ.clear()
        os.environ.update(before)
        if dist.is_initialized():
            dist.destroy_process_group()


def run_script(path: str, folder: str, *arguments: str) -> str:
    """What `python path arguments` prints in `folder`, run in this process."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = [path, *arguments]
    try:
        with chdir(folder), redirect_stdout(printed):
            runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
    return printed.getvalue()


class RankPool:
    """At most `size` rank processes that run functions together.

    The functions are found by name in their module: top-level functions of test modules. Results come back in rank order.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.connections: list[Connection] = []
        self.folder = tempfile.TemporaryDirectory()
        self.store, self.calls = (0, ""), 0

    def __call__(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run function(*args) on ranks 0..world_size-1 of a gloo world and return their results; a failing rank fails the caller."""
        self._start(world_size)
        store = self._store(world_size)
        for connection in self.connections[:world_size]:
            connection.send((world_size, store, function, args))
        try:
            results = [self._receive(rank) for rank in range(world_size)]
        except BaseException:  # the test's time is over: the next one needs ranks that listen
            self.close()
            raise
        failures = [f"rank {rank}:\n{value}" for rank, (ok, value, _) in enumerate(results) if not ok]
        if failures:
            self.close()  # ranks that failed apart are in different collectives
            raise AssertionError("\n".join(failures))
        if not all(stayed for _, _, stayed in results):
            self.store = (0, "")  # the function left the world, perhaps for another one: the next call starts a new one
        return [value for _, value, _ in results]

    def launched(self, world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The same with ranks as torchrun leaves them: the variables are set, and who joins meets the others at the launcher's store."""
        from torch.distributed import TCPStore

        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        return self(world_size, _launched, store.port, function, args)

    def _store(self, world_size: int) -> str:
        """One file per world: another world size starts a new one, and so do many calls."""
        self.calls += 1
        if self.store[0] != world_size or self.calls % FRESH_AFTER == 0:
            self.store = (world_size, os.path.join(self.folder.name, f"store{self.calls}"))
        return self.store[1]

    def _start(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        while len(self.processes) < world_size:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(len(self.processes), theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def _receive(self, rank: int) -> tuple[bool, Any, bool]:
        """Whether the function ended, what it returned or how it failed, and whether the rank is still in the pool's world."""
        if not self.connections[rank].poll(LIMIT_S):
            return False, f"no answer in {LIMIT_S} s", False
        try:
            return self.connections[rank].recv()
        except EOFError:
            return False, "died", False

    def close(self) -> None:
        """End the processes; the next call starts new ones."""
        for process in self.processes:
            process.kill()
            process.join()
        self.processes, self.connections, self.store = [], [], (0, "")

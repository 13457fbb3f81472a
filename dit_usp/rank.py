"""One rank: `python -m dit_usp.rank CONNECTION FOLDER PARENT` does what its parent asks until it is told to stop or the parent is gone.

The parent (dit_usp.supervise) sends the paths of files that hold (name, arguments); the answer goes into another file, then one byte back: whoever
stops in between, nobody blocks on a full pipe.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from dit_usp.errors import UnsupportedError
from dit_usp.status import Status, status_path

BEAT_S = 0.5
UNWIND_S = 1.0  # from the parent's death to ours: time for a file being written to be removed

# What a rank refuses because of its input (OSError: no such model): raised alike on every rank, and raised again in the parent.
REFUSALS: dict[str, type[Exception]] = {"UnsupportedError": UnsupportedError, "ValueError": ValueError, "TypeError": TypeError, "OSError": OSError}


@dataclass(frozen=True)
class Failure:
    """An exception as it travels: its type's name (of its nearest ancestor in REFUSALS, if it has one) and its text on one line."""

    kind: str
    text: str


def main() -> NoReturn:
    """Serve the parent; leave by os._exit, since torch's own way out takes half a second and may wait for ranks that are gone."""
    connection, folder, parent = Connection(int(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    status = Status(status_path(folder, os.environ["RANK"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _leave)
    life = threading.Thread(target=_show_life, args=(status, parent), daemon=True)
    life.start()
    code = 1
    try:
        _serve(connection, status)
        code = 0
    except SystemExit:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        if os.getppid() != parent:  # it can no longer tidy up
            shutil.rmtree(folder, ignore_errors=True)
            life.join()
        os._exit(code)


def _leave(signal_number: int, frame: object) -> NoReturn:
    raise SystemExit(1)  # unwinds the main thread, so that a half-written file is removed


def _show_life(status: Status, parent: int) -> None:
    """Beat while the parent lives, then end all ranks: this one by unwinding, those that cannot (stopped, stuck in a library) outright."""
    while os.getppid() == parent:
        status.beat()
        time.sleep(BEAT_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(UNWIND_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _serve(connection: Connection, status: Status) -> None:
    from dit_usp.worker import Worker

    worker = Worker(status.set)
    while True:
        try:
            path = connection.recv_bytes().decode()
        except EOFError:
            return
        answer = _answer(worker, path)
        with open(f"{path}.{os.environ['RANK']}", "wb") as file:
            file.write(answer)
        connection.send_bytes(b"!")


def _answer(worker: Any, path: str) -> bytes:
    """Carry out the message in `path`; a Failure if it raises (its traceback goes to the log)."""
    try:
        with open(path, "rb") as file:
            name, arguments = pickle.load(file)
        return pickle.dumps(getattr(worker, name)(**arguments))
    except Exception as error:
        traceback.print_exc()
        kind = next((name for name, refusal in REFUSALS.items() if isinstance(error, refusal)), type(error).__name__)
        return pickle.dumps(Failure(kind, " ".join(str(error).split())))


if __name__ == "__main__":
    # Run as a module this file is `__main__`; what it pickles must be found under its real name.
    from dit_usp.rank import main as run

    run()

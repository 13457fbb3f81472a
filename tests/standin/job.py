"""What the command line does, on stand-in ranks: `python job.py FOLDER`. Prints the ranks' process numbers as soon as they run."""

import sys

from dit_usp.config import ParallelConfig
from dit_usp.engine import RankError, run
from dit_usp.request import Picture, Request
from dit_usp.supervise import Ranks

start = Ranks._start


def start_and_tell(ranks, rank):
    member = start(ranks, rank)
    print(member.process.pid, ranks.folder, flush=True)
    return member


Ranks._start = start_and_tell
try:
    run(Request("stand-in", (Picture("a red heart", 1, f"{sys.argv[1]}/heart.png"),), config=ParallelConfig(ulysses_degree=2)))
except RankError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)

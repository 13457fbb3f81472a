"""What a user does, on stand-in ranks: `python job.py FOLDER` is `dit-usp generate` on two ranks; it prints their process numbers first."""

import sys

from dit_usp import cli
from dit_usp.supervise import Ranks

start = Ranks._start


def start_and_tell(ranks, rank):
    member = start(ranks, rank)
    print(member.process.pid, ranks.folder, flush=True)
    return member


Ranks._start = start_and_tell
cli.main(["generate", "red heart", "-o", f"{sys.argv[1]}/heart.png", "--ulysses", "2", "--device", "cpu", *sys.argv[2:]])

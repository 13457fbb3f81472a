"""`dit-usp bench` from a bare clone, also under torchrun:

python scripts/bench_step.py pixart-1024 --share 4
torchrun --nproc-per-node 2 scripts/bench_step.py flux-1024 --mode compile --baseline diffusers-compile
"""

import sys

from dit_usp.cli import main

main(["bench", *sys.argv[1:]])

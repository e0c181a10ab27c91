"""Every benchmark, one after the other, as one Markdown document.

python benchmarks/run_all.py > performance.md
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from common import header, options

SCRIPTS = ("scoring", "prune_time", "input_pipeline", "training")


def main() -> None:
    parser = options(__doc__, repeats=0)
    parser.set_defaults(repeats=None)
    parser.add_argument("--only", nargs="+", default=list(SCRIPTS), choices=SCRIPTS)
    parsed = parser.parse_args()
    flags = ["--bare", "--threads", str(parsed.threads)]
    flags += ["--repeats", str(parsed.repeats)] if parsed.repeats else []
    flags += ["--quick"] if parsed.quick else []
    torch.set_num_threads(parsed.threads)
    print("# Performance\n")
    print("Median (minimum–maximum) over repeats in which the compared variants take turns.\n")
    print(header(parsed.threads), flush=True)
    for name in parsed.only:  # a process each: no benchmark starts with another's memory or threads
        script = Path(__file__).with_name(f"{name}.py")
        subprocess.run([sys.executable, str(script), *flags], check=True)


if __name__ == "__main__":
    main()

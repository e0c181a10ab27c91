"""``autosparse`` whose benchmark runs fake cells, as a program."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from autosparse.cli import bench, main  # noqa: E402

if __name__ == "__main__":
    bench.ENGINE = "fake_cells"
    sys.exit(main())

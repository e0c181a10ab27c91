"""A benchmark: every model on every data set by every method at every density with every seed.

A grid (YAML) stands for cells; each cell is one network, pruned in one way and trained; a folder holds one file a
cell. Processes of this machine or the tasks of a ray cluster work the cells off, and any of them may be killed.
"""

from autosparse.bench.cells import Cell, cells_of
from autosparse.bench.grid import DENSE, Grid, read_grid
from autosparse.bench.shared import Shared
from autosparse.bench.store import Store

__all__ = ["DENSE", "Cell", "Grid", "Shared", "Store", "cells_of", "read_grid"]

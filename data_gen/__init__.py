"""Iterative rewind pruning (IRP): which initial weights survive, recorded as HDF5."""

from data_gen.config import IRPConfig
from data_gen.records import SCHEMA_VERSION, IRPRun, list_runs, read_run
from data_gen.run import generate

__all__ = ["SCHEMA_VERSION", "IRPConfig", "IRPRun", "generate", "list_runs", "read_run"]

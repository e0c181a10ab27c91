"""Iterative rewind pruning (IRP): which initial weights survive, recorded as HDF5."""

from data_gen.config import IRPConfig
from data_gen.records import append_run
from data_gen.run import generate

__all__ = ["IRPConfig", "append_run", "generate"]

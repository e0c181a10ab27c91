"""Where a file came from: versions, source revision, hardware."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from autosparse.training.precision import processor_has_bf16

_PACKAGES = ("autosparse", "torch", "torchvision", "accelerate", "numpy", "h5py")


@cache
def source_revision() -> str:
    """The git commit of the code that runs, with ``+changes`` when files differ from it; ``""`` outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        # An installed package may lie inside some other project's checkout: its revision would say nothing.
        if git("ls-files", "--error-unmatch", "__init__.py") != "__init__.py":
            return ""
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", ":/autosparse", ":/data_gen") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return (("python", platform.python_version()), *found)


def provenance() -> dict[str, Any]:
    """Versions, source revision, threads and processor, JSON-able; the same in every file of one process."""
    return {
        "versions": dict(_versions()),
        "source_revision": source_revision(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor_bf16": processor_has_bf16(),  # decides what "auto" precision is
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }

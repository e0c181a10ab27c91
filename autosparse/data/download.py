"""Downloads that either arrive whole or leave nothing behind."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from autosparse.errors import AutoSparseError, first_line
from autosparse.files import write_errors

_WAYS_ON = "use --dataset digits (embedded) or --dataset imagefolder:PATH (your own images)"


def fetch(name: str, target: Path, download: Callable[[Path], Path]) -> None:
    """Put the folder that ``download(empty folder)`` makes and returns at ``target``, replacing a damaged one.

    ``download`` must verify what it got: torchvision's compares MD5 sums.

    Raises:
        AutoSparseError: no network, a damaged download, or no place to write it.
    """
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that moving it is a rename; removed whatever happens.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
            try:
                arrived = download(Path(scratch))
            except (OSError, RuntimeError, http.client.HTTPException) as error:  # URLError is an OSError
                if isinstance(error, OSError) and error.filename:  # about a local file: write_errors explains
                    raise
                reason = first_line(error)
                raise AutoSparseError(f"data set {name} could not be downloaded ({reason}): {_WAYS_ON}") from error
            shutil.rmtree(target, ignore_errors=True)
            os.replace(arrived, target)


def absent(name: str, place: Path) -> AutoSparseError:
    """The error when a set is missing and downloading is switched off."""
    return AutoSparseError(f"data set {name} is not in {place} and downloading is off: allow it, or {_WAYS_ON}")

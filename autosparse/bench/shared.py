"""Work that several cells need, done once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autosparse.bench.cells import digest
from autosparse.files import write_errors, write_json

_KIND = "autosparse-shared"
_SCHEMA_VERSION = 1


class Shared:
    """Folders of finished work below ``folder``, each named by what it is made from.

    Processes, also of several machines on one file system, may ask for the same work at once: one does it, the others
    wait. The operating system drops the lock of a process that dies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def get(self, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that ``make`` filled for ``key``; complete, by this process or another.

        Args:
            key: JSON-able facts that determine the contents.
            make: fills the folder that it is given. The folder exists, is the same whenever the work is begun again
                for ``key``, and holds what an attempt that was killed has left there.
        """
        found = self._get(key, make, timeout=-1)
        assert found is not None  # without a timeout
        return found

    def get_unless_busy(self, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path | None:
        """:meth:`get`, but ``None`` at once while another process does this work."""
        return self._get(key, make, timeout=0)

    def _get(self, key: Mapping[str, Any], make: Callable[[Path], None], timeout: float) -> Path | None:
        name = digest(key)
        done, work = self.folder / name, self.folder / f"{name}.work"
        if done.is_dir():
            return done
        with write_errors(done):
            self.folder.mkdir(parents=True, exist_ok=True)
            # The lock's file stays: those who wait for it must all wait for the same one.
            lock = FileLock(self.folder / f".{name}.lock", timeout=timeout)
        try:
            with lock:
                if not done.is_dir():
                    with write_errors(done):
                        work.mkdir(exist_ok=True)
                    write_json(work / "key.json", {"kind": _KIND, "schema_version": _SCHEMA_VERSION, "key": dict(key)})
                    make(work)
                    os.replace(work, done)
        except Timeout:
            return None
        return done

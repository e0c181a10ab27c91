"""Files that are never half written, never overwritten by accident and never trusted when read."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from autosparse.errors import AutoSparseError, FileFormatError, OutputExistsError

#: Version of the safetensors and JSON layouts written here; readers refuse anything newer.
SCHEMA_VERSION = 1
MAX_JSON_BYTES = 64 * 2**20

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_TEMPORARY = re.compile(r"^\.(.+)\.\d+\.tmp$")
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into one line."""
    try:
        yield
    except OSError as error:
        # A file in a temporary folder goes by the name it was to have.
        path = Path(*(_TEMPORARY.sub(r"\1", part) for part in path.parts))
        # HDF5 reports the cause only inside its message.
        full = error.errno in _FULL or any(f"errno = {code}," in str(error) for code in _FULL)
        if full:
            raise AutoSparseError(
                f"no space left to write {path}: free some space or choose another place; nothing was changed there"
            ) from error
        if error.errno in _DENIED:
            raise AutoSparseError(f"cannot write {path}: permission denied; choose another place") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
            raise AutoSparseError(f"cannot write {path}: {error.strerror}; choose another place") from error
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` that takes its place when the block ends well and vanishes when it does not.

    The data are on disk before the rename, so a process killed at any moment leaves the old file or the new one.
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder that becomes ``path`` when the block ends well; otherwise nothing changes.

    A process killed at any moment leaves no ``path`` or a whole one. In a folder that is there already files are
    replaced one by one, and those of other names stay.
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.mkdir()
        try:
            yield temporary
            if not path.exists():
                os.rename(temporary, path)
            else:
                for file in sorted(temporary.iterdir()):
                    os.replace(file, path / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and all that it holds, if it is there, at one moment.

    A process killed on the way leaves the whole folder, or a temporary one that :func:`exclusive` clears away.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
    with suppress(FileNotFoundError):
        os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; FileFormatError when it is absent, oversized or no object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FileFormatError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: not one of our JSON files")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not readable JSON ({error}): restore or remake it") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds no JSON object: restore or remake it")
    return value


def check_schema(path: Path, kind: str, found_kind: object, found_version: object, known: int = SCHEMA_VERSION) -> None:
    """FileFormatError unless the file calls itself ``kind`` and a version that this release reads."""
    if found_kind != kind:
        raise FileFormatError(f"{path} is no {kind} file of AutoSparse (it says {found_kind!r}): give the right file")
    try:
        version = int(str(found_version))
    except ValueError:
        raise FileFormatError(f"{path} has no readable schema version ({found_version!r}): remake it") from None
    if version > known:
        raise FileFormatError(
            f"{path} has schema version {version}, newer than {known} which this release reads: upgrade autosparse"
        )


def save_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as safetensors, atomically.

    Serialised in memory first, so that a full disk is an ordinary OSError with a cause. Equal contents give equal
    bytes.
    """
    header = {
        "kind": kind,
        "schema_version": str(SCHEMA_VERSION),
        "metadata": json.dumps(metadata, allow_nan=False),
        "names": json.dumps(list(tensors)),  # in this order, which the format does not keep
    }
    plain: dict[str, Tensor] = {}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        if plain[name].untyped_storage().data_ptr() in stored:  # tied weights: the format wants a copy of each
            plain[name] = plain[name].clone()
        stored.add(plain[name].untyped_storage().data_ptr())
    data = _ordered(safetensors.torch.save(plain, metadata=header))
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _ordered(data: bytes) -> bytes:
    """Serialised safetensors with sorted metadata: the library writes them in an order that varies."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns tensors to eight bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata written by :func:`save_tensors`.

    The header is checked against the file's size before anything is allocated; no code in the file can run.

    Raises:
        FileFormatError: the file is absent, truncated, foreign, of another kind or of a newer version.
    """
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist: give the path of a {kind} file")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            check_schema(path, kind, header.get("kind"), header.get("schema_version"))
            names = json.loads(header["names"]) if "names" in header else file.keys()
            if sorted(names) != sorted(file.keys()):
                raise ValueError("the names of its tensors do not agree")
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = json.loads(header.get("metadata", "{}"))
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged or no safetensors file ({error}): restore or remake it") from None
    if not isinstance(metadata, dict):
        raise FileFormatError(f"{path} has unreadable metadata: restore or remake it")
    return tensors, metadata


@contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Hold the only right to write ``output``; OutputExistsError while another process holds it.

    The operating system drops the lock when its holder dies, however it dies.
    """
    if output.name in ("", ".."):
        raise AutoSparseError(f"cannot write {output}: give a path that ends in a name of its own")
    with write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f".{output.name}.lock"), timeout=0)
    try:
        try:
            with write_errors(output):
                lock.acquire()
        except Timeout:
            raise OutputExistsError(
                f"another process is writing {output}: wait for it, stop it, or choose another --out"
            ) from None
        _sweep(output)
        yield
    finally:  # around acquiring it too: an interrupt may come as soon as it is held
        if lock.is_locked:
            # Removed while still held: whoever opens the path next makes a new file and locks that.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _sweep(output: Path) -> None:
    """Remove temporary files for ``output`` that a killed process left; whoever holds the lock is their only writer."""
    for stale in output.parent.glob(f".{glob.escape(output.name)}.*.tmp"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def work_folder(output: Path) -> Path:
    """Where an unfinished run for ``output`` keeps its state."""
    return output.with_name(output.name + ".work")


@contextmanager
def no_empty_work(work: Path) -> Iterator[None]:
    """Remove ``work`` afterwards if it is empty, however the block ends: a run that never began left no state."""
    try:
        yield
    finally:
        with suppress(OSError):  # absent, or not empty
            work.rmdir()


def require_space(path: Path, size: int) -> None:
    """AutoSparseError when the file system of ``path`` has less than ``size`` bytes left."""
    folder = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise AutoSparseError(
            f"no space left to write {path}: it needs about {size >> 20} MiB, {free >> 20} MiB are free; "
            "free some space or choose another place"
        )


def require_absent(path: Path, force: bool) -> None:
    """OutputExistsError when ``path`` exists (a file, or a folder with something in it) and ``force`` is not set."""
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and not force:
        raise OutputExistsError(f"{path} exists: choose another --out, or give --force to overwrite it")

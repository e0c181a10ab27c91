"""Folders and tar archives of images behind one interface. Archives are streamed, never unpacked."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from autosparse.errors import AutoSparseError, first_line

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))
MAX_FILE_BYTES = 64 * 2**20  # no photograph is larger; a forged size must not fill the memory


class Container(Protocol):
    """Named files below a root; names are relative and separated by '/'."""

    path: Path

    def identity(self) -> list[object]:
        """JSON-able values that change when the images do."""
        ...

    def names(self) -> tuple[list[str], list[str]]:
        """Names of all images and of all folders that are stated."""
        ...

    def read(self) -> Iterator[tuple[str, bytes]]:
        """Every image's name and content, in the container's own order."""
        ...


def open_container(path: Path) -> Container:
    """The folder or archive at ``path``; AutoSparseError when there is none."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise AutoSparseError(f"{path} does not exist: give imagefolder: the path of a folder or a .tar, .tar.gz, .tgz")
    return Archive(path)


def is_image(name: str) -> bool:
    pure = PurePosixPath(name)
    return pure.suffix.lower() in IMAGE_SUFFIXES and not pure.name.startswith(".")


def _check_size(where: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise AutoSparseError(f"{where} has {size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}: no image; remove it")


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    """Name ``file`` in the error when it cannot be read: it may be a dead link or another user's."""
    try:
        yield file
    except OSError as error:
        raise AutoSparseError(f"cannot read the image {file} ({error.strerror}): replace or remove it") from error


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def _walk(self) -> Iterator[tuple[str, bool]]:
        for folder, folders, files in os.walk(self.path, followlinks=True):
            folders.sort()  # os.walk descends in this order
            base = Path(folder).relative_to(self.path)
            yield from (((base / name).as_posix(), True) for name in folders)
            yield from (((base / name).as_posix(), False) for name in sorted(files) if is_image(name))

    def identity(self) -> list[object]:
        # A folder's own time does not change with the files below its subfolders: look at each.
        found: list[object] = []
        for name, is_folder in self._walk():
            if not is_folder:
                with _reading(self.path / name) as file:
                    stat = file.stat()
                found.append([name, stat.st_size, stat.st_mtime_ns])
        return found

    def names(self) -> tuple[list[str], list[str]]:
        images: list[str] = []
        folders: list[str] = []
        for name, is_folder in self._walk():
            (folders if is_folder else images).append(name)
        return images, folders

    def read(self) -> Iterator[tuple[str, bytes]]:
        for name, is_folder in self._walk():
            if not is_folder:
                with _reading(self.path / name) as file:
                    _check_size(str(file), file.stat().st_size)
                    content = file.read_bytes()
                yield name, content


class Archive:
    """A tar archive, compressed or not. Members are read in file order: seeking back in a .gz starts it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def identity(self) -> list[object]:
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns]

    def names(self) -> tuple[list[str], list[str]]:
        images: dict[str, None] = {}
        folders = []
        with self._open() as tar:
            for member in tar:
                name = _relative(member.name)
                if member.isdir():
                    folders.append(name)
                elif is_image(name):
                    self._check(member, name in images)
                    images[name] = None
                tar.members.clear()  # type: ignore[attr-defined]  # a million headers need not stay in memory
            # The checksum of a compressed file is compared only when its very end is read.
            while tar.fileobj is not None and tar.fileobj.read(2**20):
                pass
        return list(images), folders

    def _check(self, member: tarfile.TarInfo, repeated: bool) -> None:
        where = f"{self.path}: {member.name}"
        if not member.isfile():
            raise AutoSparseError(f"{where} is a link or device, not an image: pack it again with tar --dereference")
        if repeated:
            raise AutoSparseError(f"{where} is in the archive twice: pack it again from its folder")
        _check_size(where, member.size)

    def read(self) -> Iterator[tuple[str, bytes]]:
        with self._open() as tar:
            for member in tar:
                name = _relative(member.name)
                if member.isfile() and is_image(name):
                    _check_size(f"{self.path}: {member.name}", member.size)
                    stream = tar.extractfile(member)
                    if stream is not None:
                        yield name, stream.read()
                tar.members.clear()  # type: ignore[attr-defined]

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self.path, "r:*", tarinfo=_StrictHeader) as tar:
                yield tar
        except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
            reason = first_line(error)
            raise AutoSparseError(
                f"{self.path} is damaged or no tar archive ({reason}): fetch or pack it again"
            ) from error


def _relative(name: str) -> str:
    return PurePosixPath(name).as_posix()  # drops a leading './'


class _StrictHeader(tarfile.TarInfo):
    """A header that may be damaged: the base class would take that for the archive's end and lose the rest."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the regular end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error

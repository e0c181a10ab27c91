"""Files: written whole or not at all, never overwritten by accident, never trusted when read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from autosparse import files
from autosparse.errors import AutoSparseError, FileFormatError, OutputExistsError
from autosparse.files import (
    atomic_folder,
    atomic_path,
    check_schema,
    exclusive,
    load_tensors,
    read_json,
    remove_folder,
    require_absent,
    require_space,
    save_tensors,
    write_json,
    write_text,
)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert names_in(path.parent) == ["a.txt"]


def test_the_old_content_stays_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


def test_an_exception_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    result = run_python(
        """
        import resource, sys
        from pathlib import Path
        from autosparse.errors import AutoSparseError
        from autosparse.files import write_text
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_text(Path(sys.argv[1]), "x" * 100_000)
        except AutoSparseError as error:
            print(error)
        """,
        path,
    )
    assert result.stdout.startswith(f"no space left to write {path}:"), result.stderr
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")


def killed_before(change: int, work: Callable[[], None]) -> bool:
    """Whether a process of its own that does ``work`` came to its so-many-th change of a folder, and died before it."""
    if (process := os.fork()) == 0:
        seen = 0

        def watch(event: str, _: object) -> None:
            nonlocal seen
            seen += event in _CHANGES
            if seen > change:
                os._exit(1)

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1


def test_a_folder_is_made_whole_or_not_at_all_whenever_its_process_is_killed(tmp_path: Path) -> None:
    def make() -> None:
        with atomic_folder(path) as temporary:
            for name in ("masks", "state", "summary"):
                (temporary / name).write_text(name)

    for change in range(20):
        path = tmp_path / str(change) / "out"
        killed = killed_before(change, make)
        assert not path.exists() or names_in(path) == ["masks", "state", "summary"]
        if not killed:
            assert path.exists()
            break
    assert change >= 3


def test_a_folder_is_removed_whole_or_not_at_all_whenever_its_process_is_killed(tmp_path: Path) -> None:
    for change in range(20):
        path = tmp_path / str(change)
        for name in ("masks", "state", "summary"):
            (path / name).mkdir(parents=True)
            write_text(path / name / "file", name)
        killed = killed_before(change, partial(remove_folder, path))
        assert not path.exists() or names_in(path) == ["masks", "state", "summary"]
        if not killed:
            assert not path.exists()
            break
    assert change > 6
    for before in range(change):
        with exclusive(tmp_path / str(before)):  # clears away what the dead have left
            pass
    assert not list(tmp_path.glob(".*"))


def test_removing_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_folder(tmp_path / "nothing")
    assert names_in(tmp_path) == []


def test_a_folder_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(AutoSparseError, match=r"cannot write .*taken/a\.txt"):
        write_text(tmp_path / "taken" / "a.txt", "x")
    with pytest.raises(AutoSparseError, match=r"cannot write .*taken/a\.txt"), exclusive(tmp_path / "taken" / "a.txt"):
        pass


def test_a_folder_in_the_files_place_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(AutoSparseError, match=r"cannot write .*a\.txt"):
        write_text(tmp_path / "a.txt", "x")
    assert names_in(tmp_path) == ["a.txt"]


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "σ": "ü"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable JSON"),
        (b'{"a": 1', "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
        (b"[" * 200_000, "not readable JSON"),
        (b"[1]", "holds no JSON object"),
    ],
)
def test_unusable_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileFormatError, match=f"a.json.*{message}"):
        read_json(tmp_path / "a.json")


def test_absent_and_oversized_json_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileFormatError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 3)
    with pytest.raises(FileFormatError, match="larger than"):
        read_json(tmp_path / "a.json")


def test_tensors_round_trip_with_dtype_shape_and_metadata(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([True, False]),
        "c": torch.tensor(7),
        "d": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "e": torch.zeros(0, 3),
    }
    save_tensors(tmp_path / "a.safetensors", "thing", tensors, {"x": [1, "y"]})
    found, metadata = load_tensors(tmp_path / "a.safetensors", "thing")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert metadata == {"x": [1, "y"]}


def test_tied_tensors_and_views_are_saved_in_full(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    base = torch.arange(6.0)
    tensors = {**model.state_dict(), "view": base[2:4], "other": base[4:]}
    save_tensors(tmp_path / "a.safetensors", "thing", tensors, {})
    found, _ = load_tensors(tmp_path / "a.safetensors", "thing")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert found.keys() == tensors.keys()


def craft(path: Path, kind: str = "thing", version: str = "1", metadata: str = "{}") -> None:
    header = {"kind": kind, "schema_version": version, "metadata": metadata}
    safetensors.torch.save_file({"a": torch.zeros(100)}, str(path), metadata=header)


def test_damaged_foreign_and_future_tensor_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileFormatError, match="does not exist"):
        load_tensors(path, "thing")
    craft(path)
    whole = path.read_bytes()
    assert load_tensors(path, "thing")[0].keys() == {"a"}
    for broken in (b"", whole[:5], whole[:60], whole[:-1], b"\x80\x04pickle", b"\xff" * 8 + whole[8:]):
        path.write_bytes(broken)
        with pytest.raises(FileFormatError, match=r"a\.safetensors is damaged"):
            load_tensors(path, "thing")
    craft(path, kind="masks")
    with pytest.raises(FileFormatError, match=r"no thing file of AutoSparse .*'masks'"):
        load_tensors(path, "thing")
    craft(path, version="2")
    with pytest.raises(FileFormatError, match=r"schema version 2, newer than 1.*upgrade"):
        load_tensors(path, "thing")
    craft(path, version="new")
    with pytest.raises(FileFormatError, match="no readable schema version"):
        load_tensors(path, "thing")
    safetensors.torch.save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(FileFormatError, match="no thing file"):
        load_tensors(path, "thing")


@pytest.mark.parametrize("metadata", ["{", "[1]", "[" * 200_000])
def test_unreadable_metadata_is_refused(tmp_path: Path, metadata: str) -> None:
    craft(tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(FileFormatError, match=r"a\.safetensors"):
        load_tensors(tmp_path / "a.safetensors", "thing")


def test_older_schema_versions_are_read(tmp_path: Path) -> None:
    assert check_schema(tmp_path, "thing", "thing", 1, known=3) is None  # type: ignore[func-returns-value]
    with pytest.raises(FileFormatError, match="newer than 3"):
        check_schema(tmp_path, "thing", "thing", 4, known=3)


HOLDER = """
    import sys, time
    from pathlib import Path
    from autosparse.files import exclusive
    with exclusive(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "out.h5"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(out)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputExistsError, match=r"another process is writing .*out\.h5"), exclusive(out):
            pytest.fail("two processes hold the same output")
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    entered = False
    with exclusive(out):
        entered = True
    assert entered
    assert names_in(out.parent) == []


def test_the_right_to_write_returns_after_an_exception(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), exclusive(tmp_path / "out"):
            raise KeyError
    out, other = tmp_path / "out", tmp_path / "other"
    with exclusive(out), exclusive(other), pytest.raises(OutputExistsError), exclusive(out):
        pytest.fail("held twice")


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    file, empty, full = tmp_path / "a.txt", tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    require_absent(file, force=False)
    require_absent(empty, force=False)
    file.write_text("")
    (full / "x").write_text("")
    for taken in (file, full):
        with pytest.raises(OutputExistsError, match=f"{taken} exists.*--force"):
            require_absent(taken, force=False)
        require_absent(taken, force=True)
        assert taken.exists()


def test_too_little_space_is_told_beforehand(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(AutoSparseError, match="it needs about 1099511627776 MiB"):
        require_space(tmp_path / "a", 2**60)


def test_written_json_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": 1}

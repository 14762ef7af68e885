"""python -m nodeproc verify: everything is read, each damage named, nothing changed. Rule: K6."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lab.course.simfiles import SimFiles
from nodeproc.__main__ import main
from nodeproc.disk.files import RealFiles
from nodeproc.disk.verify import Damage, Untouched, _all, verify
from tests.nodeproc.disks import CHECKPOINT, FIRST, LINES, a_short_life
from tests.nodeproc.test_storage_damage import HEADERS, INDEX, with_a_checkpoint


def put(contents: dict[str, bytes], root: Path) -> Path:
    """A real data directory with these files."""
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def changed(contents: dict[str, bytes], name: str, at: int) -> dict[str, bytes]:
    data = contents[name]
    return contents | {name: data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]}


@pytest.mark.parametrize("life", [a_short_life, with_a_checkpoint])
def test_a_healthy_directory_is_without_damage_and_is_left_as_it_is(
    life: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, _ = life()  # type: ignore[operator]
    root = put(files.contents(), tmp_path)
    assert main(["verify", str(root)]) == 0
    assert capsys.readouterr().out == f"{root}: no damage\n"
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == files.contents() | {"lock": b""}


@pytest.mark.parametrize("name", [HEADERS, INDEX, LINES, CHECKPOINT])
def test_a_change_of_any_byte_is_found_and_named(name: str, tmp_path: Path) -> None:
    contents = with_a_checkpoint()[0].contents()
    root = put(contents, tmp_path)
    for at in range(0, len(contents[name]), 7):
        put(changed(contents, name, at), root)
        found = list(verify(root))
        assert found and all(isinstance(each, Damage) for each in found), at
        assert any(name in str(each) for each in found), (at, found)


def test_a_damaged_row_and_a_damaged_line_are_named_with_their_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = with_a_checkpoint()[0].contents()
    at = contents[LINES].index(b'{"seq_no":4,')
    root = put(changed(changed(contents, LINES, at), INDEX, 5 * 52), tmp_path)
    assert main(["verify", str(root)]) == 3
    *_, lines, row, last = capsys.readouterr().out.splitlines()
    assert f"{LINES}: offset " in lines and "messages from seq_no 3 to 4" in lines
    assert f"{INDEX}: offset {5 * 52}: messages from seq_no 9 to 12" in row
    assert last.endswith("damaged places")


def test_damage_in_the_wal_and_in_the_archive_is_told_together(tmp_path: Path) -> None:
    contents = with_a_checkpoint()[0].contents()
    wal_file = next(name for name, data in contents.items() if name.endswith(".wal") and b"behind" not in data)
    root = put(changed(changed(contents, wal_file, len(contents[wal_file]) // 2), INDEX, 60), tmp_path)
    found = list(verify(root))
    assert wal_file in found[0].file
    assert any(INDEX in each.file for each in found)


def test_a_torn_tail_is_no_damage(tmp_path: Path) -> None:
    files, _ = a_short_life()
    root = put(files.contents(), tmp_path)
    with (root / "wal/000000000001.wal").open("ab") as file:
        file.write(b"\0" * 20)
    assert list(verify(root)) == []


def test_a_directory_in_use_and_what_is_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put(a_short_life()[0].contents(), tmp_path / "used")
    files = RealFiles(root)
    try:
        assert main(["verify", str(root)]) == 2
        assert "in use" in capsys.readouterr().err
    finally:
        files.close()
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(SystemExit) as usage:
        main(["verify"])
    assert usage.value.code == 2


def test_an_empty_directory_of_a_first_start_is_without_damage(tmp_path: Path) -> None:
    files = SimFiles()
    files.put(LINES, b"")
    root = put(files.contents(), tmp_path)
    (root / "wal").mkdir()
    assert list(verify(root)) == []


@pytest.mark.parametrize(
    ("life", "name"),
    [(a_short_life, FIRST), *((with_a_checkpoint, name) for name in (LINES, CHECKPOINT, HEADERS, INDEX))],
)
def test_what_the_disk_can_not_read_is_damage_too_and_the_rest_is_read(life: object, name: str) -> None:
    for healthy in range(8):
        files, _ = life()  # type: ignore[operator]
        failed, left = 0, healthy

        def fail(what: str, file: str) -> None:
            nonlocal failed, left
            if what == "pread" and file == name:
                left -= 1
                if left < 0:
                    failed += 1
                    raise OSError(errno.EIO, "Input/output error")

        files.on_operation = fail
        found = list(_all(Untouched(files)))
        assert bool(found) == bool(failed), (healthy, found)
        assert not failed or any(name in str(each) for each in found), (healthy, found)

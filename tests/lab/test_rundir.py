"""The run directory: names, links, and rows that are read as they were written."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from lab import rows
from lab.rundir import RunDir, RunDirError, utc_stamp


def test_both_latest_links_follow_the_newest_run(tmp_path: Path) -> None:
    old = RunDir.create(tmp_path, "story", "20240101T000000.000Z")
    new = RunDir.create(tmp_path, "story", "20240102T000000.000Z")
    assert old.path != new.path
    assert (tmp_path / "latest").resolve() == new.path
    assert (tmp_path / "story" / "latest").resolve() == new.path


def test_a_taken_stamp_gets_a_number(tmp_path: Path) -> None:
    names = [RunDir.create(tmp_path, "story", "same").path.name for _ in range(3)]
    assert names == ["same", "same-2", "same-3"]


def test_two_processes_that_begin_runs_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, others = Path.replace, iter([os.getpid() + 1])

    def interrupted(fresh: Path, link: Path) -> Path:
        """The other process begins its run between two steps of this one."""
        if other := next(others, 0):
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: other)
                RunDir.create(tmp_path, "story", "20240101T000000.000Z")
        return replace(fresh, link)

    monkeypatch.setattr(Path, "replace", interrupted)
    own = RunDir.create(tmp_path, "story", "20240102T000000.000Z")
    assert (tmp_path / "latest").resolve() == (tmp_path / "story" / "latest").resolve() == own.path
    assert sorted(each.name for each in tmp_path.iterdir()) == ["latest", "story"]


def test_a_directory_without_a_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"no scenario\.yml in it"):
        RunDir.open(tmp_path)
    with pytest.raises(RunDirError, match="no such directory"):
        RunDir.open(tmp_path / "missing")


def test_stamps_sort_by_time() -> None:
    early = utc_stamp(datetime(2024, 10, 21, 12, 34, 56, 789000, tzinfo=UTC))
    late = utc_stamp(datetime(2024, 10, 21, 12, 34, 57, tzinfo=UTC))
    assert early == "20241021T123456.789Z" < late


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    written: list[rows.HistoryRow] = [
        rows.Invoke(t=1, client=101, session="s", n=1, count=2, intended=0, payloads=("a", "b")),
        rows.Invoke(t=2, client=101, session="s", n=3, count=9, intended=1, every=5, gen=rows.Gen(7, 100)),
        rows.Acked(t=3, session="s", n=2, seq_no=2),
        rows.Failed(t=4, session="s", n=3, count=1, reason="too large"),
        rows.Unknown(t=5, session="s", n=4, count=8),
        rows.Shown(t=6, client=5, first=1, last=2, crc=99),
        rows.Phase(t=7, phase="converged"),
    ]
    run.history.write_bytes(b"".join(map(rows.encode_row, written)))
    assert list(run.read_history()) == written


def test_a_row_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    RunDir(tmp_path).history.write_bytes(b'{"op":"guess","t":1}\n')
    with pytest.raises(msgspec.ValidationError):
        list(RunDir(tmp_path).read_history())


def test_node_ids_come_from_the_data_directories(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for node in (10, 2):
        run.node_dir(node).mkdir(parents=True)
    run.node_config(2).write_text("")
    assert run.node_ids() == [2, 10]

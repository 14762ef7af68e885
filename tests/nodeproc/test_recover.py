"""A cluster that has lost its majority goes on from what is left, when somebody says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nodeproc.__main__ import main
from nodeproc.core.effects import Promise
from nodeproc.core.messages import MemberList, MembersMark
from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage
from tests import TOO_LONG_S
from tests.nodeproc.disks import Scribe
from tests.nodeproc.nodes import PROJECT, Cluster, run_node, until
from tests.nodeproc.test_main import chat

AGREED = "--lose-what-only-the-others-had"


def recover(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nodeproc", "recover", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=TOO_LONG_S)


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_without_a_majority_nothing_is_done_unless_it_is_asked_for_by_name(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        assert chat(cluster, 1, 1) == 1
        for node in (1, 2, 3):
            cluster.kill(node)
    wal = tmp_path / "node_1" / "wal" / "000000000001.wal"
    wal.write_bytes(wal.read_bytes() + b"torn")
    before = contents(tmp_path / "node_1")
    done = recover(str(tmp_path / "node_1"), "--members", "1", "--out", str(tmp_path / "new"))
    assert done.returncode == 2
    assert contents(tmp_path / "node_1") == before
    assert "ACKNOWLEDGED MESSAGES THAT ONLY THE OTHER NODES HAD ARE GIVEN UP" in done.stdout
    assert "No new cluster was made" in done.stdout and not (tmp_path / "new").exists()


def test_what_one_node_has_becomes_a_new_cluster_that_refuses_the_old_nodes(tmp_path: Path) -> None:
    limits = {"segment_bytes": 4096, "max_payload_bytes": 8192}
    with Cluster(tmp_path, limits=limits) as cluster:
        cluster.start()
        for n in range(1, 9):
            assert chat(cluster, 1, n, "x" * 1000) == n
        until(lambda: len({cluster.log_lines(node) for node in (1, 2, 3)}) == 1)
        before = cluster.log_lines(1)
        for node in (1, 2, 3):
            cluster.kill(node)
        shutil.rmtree(tmp_path / "node_3")
        new = tmp_path / "new"
        made = recover(
            str(tmp_path / "node_1"), str(tmp_path / "node_2"), "--members", "1,2,3", "--out", str(new), AGREED
        )
        assert made.returncode == 0, made.stderr
        for node in (1, 2, 3):
            shutil.move(tmp_path / f"node_{node}", tmp_path / f"old_{node}") if node != 3 else None
            shutil.move(new / f"node_{node}", tmp_path / f"node_{node}")
        cluster.start()
        assert chat(cluster, 1, 9, "and on") == 9
        until(lambda: len({cluster.log_lines(node) for node in (1, 2, 3)}) == 1)
        assert cluster.log_lines(3).startswith(before)
        assert cluster.stop(2) == 0
        config = json.loads(cluster.config(2).read_text()) | {"data_dir": str(tmp_path / "old_2")}
        (tmp_path / "old.yml").write_text(json.dumps(config))
        cluster.processes[2] = run_node("--config", str(tmp_path / "old.yml"), "--quiet", log=tmp_path / "old.log")
        until(lambda: "unknown_member_refused" in {event["event"] for event in cluster.events(3)})
        assert chat(cluster, 1, 10, "still on") == 10


def test_one_node_goes_on_alone(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        assert chat(cluster, 1, 1) == 1
        until(lambda: len({cluster.log_lines(node) for node in (1, 2, 3)}) == 1)
        for node in (1, 2, 3):
            cluster.kill(node)
        made = recover(str(tmp_path / "node_1"), "--members", "7", "--out", str(tmp_path / "new"), AGREED)
        assert made.returncode == 0, made.stderr
        before = cluster.log_lines(1)
    with Cluster(tmp_path / "new", 1) as alone:
        config = json.loads(alone.config(1).read_text())
        config |= {"node_id": 7, "data_dir": str(tmp_path / "new" / "node_7")}
        (tmp_path / "seven.yml").write_text(json.dumps(config))
        alone.processes[1] = run_node("--config", str(tmp_path / "seven.yml"), "--quiet", log=tmp_path / "seven.log")
        assert chat(alone, 1, 2) == 2
    lines = (tmp_path / "new" / "node_7" / "logs" / "node_7_messages.jsonl").read_bytes()
    assert lines.startswith(before)


def test_the_lists_of_the_old_cluster_do_not_count_in_the_new_one(tmp_path: Path) -> None:
    """Rule: G1."""
    scribe = Scribe()
    storage, _, _ = Storage.open(RealFiles(tmp_path / "old"), 4, members=(1, 2, 3))
    mark = scribe.mark(7, MemberList(3, (2, 3, 4), learners=(5,), removed=(1,)))
    storage.write([Promise(8, 0), mark, batch := scribe.batch("one")])
    storage.deliver([batch])
    storage.close()
    assert main(["recover", str(tmp_path / "old"), "--members", "4,6", "--out", str(tmp_path / "new"), AGREED]) == 0
    for node in (4, 6):
        storage, recovered, _ = Storage.open(RealFiles(tmp_path / "new" / f"node_{node}"), node, members=(4, 6))
        last = recovered.marks[-1]
        assert last == MembersMark(9, 0, 1, MemberList(4, (4, 6), removed=(1, 2, 3, 5)))
        assert (recovered.term, recovered.position, recovered.delivered_seq) == (9, (9, 1), 1)
        storage.close()


def test_damage_in_the_newest_data_directory_is_filled_from_another_one_or_named(tmp_path: Path) -> None:
    with Cluster(tmp_path, limits={"segment_bytes": 4096, "max_payload_bytes": 8192}) as cluster:
        cluster.start()
        for n in range(1, 9):
            assert chat(cluster, 1, n, "x" * 1000) == n
        until(lambda: len({cluster.log_lines(node) for node in (1, 2, 3)}) == 1)
        lines = cluster.log_lines(1)
        for node in (1, 2, 3):
            cluster.kill(node)
    folders = [str(tmp_path / f"node_{node}") for node in (1, 2)]
    told = recover(*folders, "--members", "1", "--out", str(tmp_path / "new")).stdout
    newest = next(line for line in told.splitlines() if "the newest" in line).partition(": ")[0]
    log = next((Path(newest) / "logs").iterdir())
    log.write_bytes(lines[:300] + b"y" + lines[301:])
    alone = recover(newest, "--members", "1", "--out", str(tmp_path / "alone"), AGREED)
    assert alone.returncode == 3, alone.stderr
    assert f"nodeproc: {log}: offset 0: " in alone.stderr and "no other data directory given has these" in alone.stderr
    assert not (tmp_path / "alone" / "node_1").exists()
    made = recover(*folders, "--members", "1", "--out", str(tmp_path / "new"), AGREED)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "new" / "node_1" / "logs" / "node_1_messages.jsonl").read_bytes() == lines


def test_what_is_no_data_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    done = recover(str(tmp_path), "--members", "1", "--out", str(tmp_path / "new"), AGREED)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"nodeproc: {tmp_path}: not a node's data directory: it has no folder wal\n"


def test_the_names_of_new_data_directories_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "some" / "old", tmp_path / "new"
    durable: dict[int, list[str]] = {}
    """Inode of a folder -> the names in it at its last sync."""

    def sync_file(fd: int, is_folder: bool = False) -> None:
        if is_folder:
            durable[os.fstat(fd).st_ino] = sorted(os.listdir(fd))

    monkeypatch.setattr("nodeproc.disk.files.sync_file", sync_file)
    Storage.open(RealFiles(old), 1)[0].close()
    assert "some" in durable[tmp_path.stat().st_ino] and durable[old.parent.stat().st_ino] == ["old"]
    assert main(["recover", str(old), "--members", "1,2", "--out", str(new), AGREED]) == 0
    assert "new" in durable[tmp_path.stat().st_ino] and durable[new.stat().st_ino] == ["node_1", "node_2"]

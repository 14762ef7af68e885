"""python -m nodeproc: exit codes, signals, and three real processes that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage
from tests import TOO_LONG_S
from tests.nodeproc.nodes import PROJECT, Cluster, Line, run_node, until

GOOD = {"node_id": 1, "port": 0, "data_dir": "d"}


def finished(tmp_path: Path, config: str, *flags: str) -> tuple[int, str]:
    """Exit code and stderr of a node that ends by itself."""
    (tmp_path / "n.yml").write_text(config)
    done = subprocess.run(
        [sys.executable, "-m", "nodeproc", "--config", str(tmp_path / "n.yml"), *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=TOO_LONG_S,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_misspelt_key_is_one_clear_error_and_exit_code_2(tmp_path: Path) -> None:
    code, stderr = finished(tmp_path, "node_id: 1\nport: 0\ndata_dri: d\n")
    assert code == 2
    assert "n.yml:3:1: data_dri: unknown key (did you mean data_dir?)" in stderr
    assert "Traceback" not in stderr


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, stderr = finished(tmp_path, json.dumps({**GOOD, "port": port}))
    assert (code, stderr) == (2, f"nodeproc: can't listen on 127.0.0.1:{port}: Address already in use\n")


def test_a_host_that_is_no_host_name_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code, stderr = finished(tmp_path, json.dumps({**GOOD, "host": "a..b", "allow_open": True}))
    assert (code, stderr) == (2, "nodeproc: can't listen on a..b:0: not a host name\n")


def test_a_data_directory_that_cannot_be_made_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("a file")
    code, stderr = finished(tmp_path, json.dumps(GOOD))
    assert (code, stderr) == (2, "nodeproc: data directory d: File exists; it must be a writable directory\n")


def test_a_missing_file_is_exit_code_2(tmp_path: Path) -> None:
    process = run_node("--config", str(tmp_path / "none.yml"), stderr=subprocess.PIPE)
    _, stderr = process.communicate(timeout=TOO_LONG_S)
    assert (process.returncode, stderr.decode()) == (
        2,
        f"nodeproc: {tmp_path / 'none.yml'}: No such file or directory\n",
    )


def test_a_damaged_disk_is_exit_code_3_and_nothing_is_changed(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1) as cluster:
        cluster.start()
        for n in range(1, 4):
            chat(cluster, 1, n)
        assert cluster.stop(1) == 0
        [damaged] = sorted((tmp_path / "node_1" / "wal").glob("*.wal"))[:1]
        content = bytearray(damaged.read_bytes())
        content[20] ^= 1
        damaged.write_bytes(content)
        (tmp_path / "node_1" / "wal" / "checkpoint").unlink()
        cluster.start()
        assert cluster.wait(1) == 3
        assert damaged.read_bytes() == content
        assert damaged.name in (tmp_path / "1.log").read_text().splitlines()[-1]


def test_a_file_that_can_not_be_read_at_the_start_is_exit_code_4_and_no_failed_write(tmp_path: Path) -> None:
    Storage.open(RealFiles(tmp_path / "d"), 1)[0].close()
    (tmp_path / "d" / "wal" / "checkpoint").mkdir()  # The system refuses to open it as a file.
    code, stderr = finished(tmp_path, json.dumps(GOOD))
    assert code == 4
    assert stderr.startswith(
        "nodeproc: d/wal/checkpoint: can't be read: Is a directory: nothing was changed; start it again"
    )


def test_the_end_of_the_lifeline_ends_the_node(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with Cluster(tmp_path, 1) as cluster:
        config = str(cluster.config(1))
        process = cluster.processes[1] = run_node("--config", config, "--lifeline", str(ours), pass_fds=(ours,))
        until(lambda: cluster.status(1) is not None)
        os.close(theirs)
        assert process.wait(TOO_LONG_S) == 0
    os.close(ours)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="shows a process's descriptors")
def test_no_file_of_the_node_takes_the_place_of_a_closed_standard_stream(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1) as cluster:
        config = str(cluster.config(1))
        process = cluster.processes[1] = run_node("--config", config, preexec_fn=lambda: os.closerange(0, 3))
        until(lambda: cluster.status(1) is not None)
        assert [Path(f"/proc/{process.pid}/fd/{fd}").readlink() for fd in range(3)] == [Path(os.devnull)] * 3


def test_a_killed_parent_takes_its_node_along(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, time\n"
        "node = subprocess.Popen([sys.executable, '-m', 'nodeproc', *sys.argv[1:]])\n"
        "print(node.pid, flush=True)\n"
        "node.wait()\n"
    )
    with Cluster(tmp_path, 1) as cluster:
        flags = ["--config", str(cluster.config(1)), "--die-with-parent"]
        process = subprocess.Popen([sys.executable, "-c", parent, *flags], cwd=PROJECT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        node = int(process.stdout.readline())
        until(lambda: cluster.status(1) is not None)
        process.kill()
        process.wait()
        process.stdout.close()
        until(lambda: not Path(f"/proc/{node}").exists() or "Z" in Path(f"/proc/{node}/stat").read_text())


@pytest.mark.parametrize("quiet", [False, True])
def test_the_terminal_looks_as_in_the_guide(tmp_path: Path, quiet: bool) -> None:
    with Cluster(tmp_path, 1) as cluster:
        cluster.start(flags=["--quiet"] if quiet else [])
        chat(cluster, 1, 1, "Hello from node 1!")
        assert cluster.stop(1) == 0
    log = (tmp_path / "1.log").read_text()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(rf"^{stamp} - node\.1 - INFO - Became LEADER for term 1$", log, re.M)
    assert ("\n[seq=1] node_9999: Hello from node 1!\n" in log) != quiet
    events = [event["event"] for event in cluster.events(1)]
    assert {"starting", "listening", "became_leader", "stopping"} <= set(events)


def chat(cluster: Cluster, node: int, n: int, payload: str = "", session: str = "s") -> int:
    """Send message n until it is acknowledged, as a client would. Returns its seq_no."""
    until(lambda: cluster.status(node) is not None)
    with Line(cluster.port(node)) as line:
        line.say({"type": "HELLO", "client_id": 9999, "session_token": f"token.of.session.{session}", "born": 0})
        welcome = line.hear_type("WELCOME")
        message: dict[str, Any] = {"type": "CHAT", "first": n, "payloads": [payload or f"message {n}"]}
        leader = welcome["leader"]
        while True:
            if leader:
                line.say(message)
            heard = line.hear()
            if heard["type"] == "ACK" and heard["n"] >= n:
                return int(heard["seq_no"])
            leader = heard["leader"] if heard["type"] == "LEADER" else int(heard.get("retry", False))


def leader_that_knows(cluster: Cluster, seq_no: int) -> int | None:
    """The leader, if it knows that all the others have this message on their disks."""
    for node in cluster.processes:
        status = cluster.status(node)
        if status and status["role"] == "leader" and all(peer["durable_seq"] >= seq_no for peer in status["peers"]):
            return node
    return None


def test_three_processes_elect_order_survive_kills_and_agree(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        assert [chat(cluster, 1 + n % 3, n) for n in range(1, 6)] == [1, 2, 3, 4, 5]
        killed = cluster.leader()
        other = killed % 3 + 1
        cluster.kill(killed)
        assert chat(cluster, other, 6) == 6
        assert cluster.leader() != killed
        cluster.start(killed)
        until(lambda: len(cluster.log_lines(killed).splitlines()) == 6)
        assert chat(cluster, killed, 7) == 7
        for node in (1, 2, 3):
            cluster.kill(node)
        cluster.start()
        assert chat(cluster, 2, 8) == 8
        until(lambda: len({cluster.log_lines(node) for node in (1, 2, 3)}) == 1)
        lines = [json.loads(line) for line in cluster.log_lines(1).splitlines()]
        assert [line["seq_no"] for line in lines] == list(range(1, 9))
        assert [line["payload"] for line in lines] == [f"message {n}" for n in range(1, 9)]
        assert [cluster.stop(node) for node in (1, 2, 3)] == [0, 0, 0]


def test_a_killed_leader_is_noticed_by_its_closed_port_and_not_by_silence(tmp_path: Path) -> None:
    """No silence counts: the links of a stopped process would stay open."""
    settings = {"heartbeat_interval_ms": 10_000, "election_timeout_ms": 3_600_000, "answer_timeout_ms": 500}
    with Cluster(tmp_path, join_timeout_ms=3_600_000, coordinator_timeout_ms=3_600_000, **settings) as cluster:
        cluster.start()
        assert cluster.leader() == 3
        cluster.kill(3)
        assert chat(cluster, 1, 1) == 1
        reasons = [event["reason"] for event in cluster.events(2) if event["event"] == "leader_timeout"]
        assert reasons[0] == "the link is lost" and "not heard" not in reasons


def test_a_node_with_another_secret_stays_outside(tmp_path: Path) -> None:
    with Cluster(tmp_path, secret="right") as cluster:
        cluster.start(1, 2)
        config = cluster.config(3)
        config.write_text(config.read_text().replace("right", "wrong"))
        cluster.processes[3] = run_node("--config", str(config), "--quiet")
        assert chat(cluster, 1, 1) == 1

        def refusals() -> set[str]:
            return {event["reason"] for event in cluster.events(3) if event["event"] == "peer_refused"}

        until(lambda: refusals() == {"it does not know this cluster's secret"})
        assert cluster.log_lines(3) == b""


def test_peers_changed_under_existing_data_end_with_2_and_both_lists(tmp_path: Path) -> None:
    """Rule: M5."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        assert chat(cluster, 1, 1) == 1
        assert cluster.stop(1) == 0
        config = json.loads(cluster.config(1).read_text())
        config["peers"] = [{"id": 4, "port": cluster.port(2)}, {"id": 5, "port": cluster.port(3)}]
        other = tmp_path / "other.yml"
        other.write_text(json.dumps(config))
        with (tmp_path / "refused.log").open("wb"):
            process = run_node("--config", str(other), "--quiet", log=tmp_path / "refused.log")
            assert process.wait(TOO_LONG_S) == 2
        assert "found members 1, 4, 5, allowed 1, 2, 3" in (tmp_path / "refused.log").read_text()


def test_a_lost_disk_is_refused_until_it_is_declared_with_rebuild(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        assert [chat(cluster, 1, n) for n in (1, 2)] == [1, 2]
        cluster.linked()
        cluster.kill(1)
        shutil.rmtree(tmp_path / "node_1")
        cluster.start(1)
        until(lambda: "unknown_member_refused" in {event["event"] for event in cluster.events(3)})
        until(lambda: "peer_refused" in {event["event"] for event in cluster.events(1)})
        said = {event["reason"] for event in cluster.events(1) if event["event"] == "peer_refused"}
        assert all("refused (a lost disk needs --rebuild)" in reason for reason in said), "its own console says why"
        assert cluster.log_lines(1) == b""
        cluster.stop(1)
        shutil.rmtree(tmp_path / "node_1")
        cluster.start(1, flags=["--quiet", "--rebuild"])
        until(lambda: "node_readmitted" in {event["event"] for event in cluster.events(1)})
        assert chat(cluster, 1, 3) == 3
        until(lambda: cluster.log_lines(1) == cluster.log_lines(3))
        assert cluster.stop(1) == 0
        cluster.start(1, flags=["--quiet", "--rebuild"])
        assert cluster.wait(1) == 2
        assert "holds a member's data" in (tmp_path / "1.log").read_text().splitlines()[-1]


# ---- open files ----------------------------------------------------------------------------------


def open_files(soft: int, hard: int) -> Callable[[], None]:
    """For the child between fork and exec."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_limits_that_do_not_fit_under_the_open_files_are_refused_with_the_numbers(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1) as cluster:
        process = run_node(
            "--config", str(cluster.config(1)), stderr=subprocess.PIPE, preexec_fn=open_files(1024, 1024)
        )
        _, stderr = process.communicate(timeout=TOO_LONG_S)
    assert process.returncode == 2
    assert stderr.decode() == (
        "nodeproc: max_clients 1024 + max_silent 1024 + max_unproven 256 + 128 for the node itself need 2432 open "
        "files, allowed 1024 (ulimit -Hn): raise that limit, or lower these settings of `limits`\n"
    )


def test_connections_of_strangers_leave_descriptors_for_the_disk(tmp_path: Path) -> None:
    """The soft limit is below what strangers take; each message needs a new file of the write-ahead log."""
    limits = {"segment_bytes": 4096, "max_clients": 200, "max_silent": 200, "max_unproven": 100}
    strangers: list[socket.socket] = []
    with Cluster(tmp_path, 1, limits=limits) as cluster, contextlib.ExitStack() as held:
        cluster.processes[1] = run_node(
            "--config", str(cluster.config(1)), log=tmp_path / "1.log", preexec_fn=open_files(100, 700)
        )
        until(lambda: cluster.status(1) is not None)
        for _ in range(300):
            strangers.append(held.enter_context(socket.create_connection(("127.0.0.1", cluster.port(1)), TOO_LONG_S)))
        for n in range(1, 20):
            chat(cluster, 1, n, "x" * 4096)
        assert cluster.stop(1) == 0


def test_a_node_that_syncs_nothing_says_what_that_means(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1, durability="os") as cluster:
        cluster.start()
        assert cluster.leader() == 1
        assert "nothing_synced" in {event["event"] for event in cluster.events(1)}


def test_a_data_directory_put_back_from_an_older_copy_is_refused_by_those_that_know(tmp_path: Path) -> None:
    """Rule: M6."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        assert chat(cluster, 1, 1) == 1
        assert [cluster.stop(node) for node in (1, 2, 3)] == [0, 0, 0]
        shutil.copytree(tmp_path, tmp_path / "copies", ignore=shutil.ignore_patterns("copies"))
        cluster.start()
        assert chat(cluster, 1, 2) == 2
        knows = until(lambda: leader_that_knows(cluster, 2))
        assert [cluster.stop(node) for node in (1, 2, 3)] == [0, 0, 0]
        older, absent = (node for node in (1, 2, 3) if node != knows)
        for folder in ("wal", "logs"):
            shutil.rmtree(tmp_path / f"node_{older}" / folder)
            shutil.copytree(tmp_path / "copies" / f"node_{older}" / folder, tmp_path / f"node_{older}" / folder)
        cluster.start(knows, older)  # the third may not know of the promise, and could lead before these two have met
        assert cluster.wait(older) == 3
        assert "older than what it promised" in (tmp_path / f"{older}.log").read_text()
        cluster.start(absent)
        assert chat(cluster, knows, 3) == 3

"""deploy/ and the load test: the files fit each other, and their programs work without an engine.

deploy/verify.sh tries the containers themselves; it is too heavy for these tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples import load_test
from nodeproc.client import ChatClient
from nodeproc.config import NodeConfig, load
from nodeproc.errors import ConfigError
from tests import TOO_LONG_S
from tests.nodeproc.nodes import Cluster, free_ports, release_ports, until

PROJECT = Path(__file__).resolve().parents[1]
DEPLOY = PROJECT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text("utf-8"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", "")
SECRETS = {"CHAT_SECRET": "0123456789abcdef", "CHAT_CLIENT_TOKEN": "fedcba9876543210"}
NODES = (1, 2, 3)

each_node = pytest.mark.parametrize("node", NODES)


@pytest.fixture(autouse=True, scope="module")
def _ports() -> Iterator[None]:
    yield
    release_ports()


def service(node: int) -> dict[str, Any]:
    found: dict[str, Any] = COMPOSE["services"][f"node{node}"]
    return found


def config(node: int, monkeypatch: pytest.MonkeyPatch, **environment: str) -> NodeConfig:
    """The file that the node's container is started with, in the environment that Compose gives it."""
    for name in service(node)["environment"]:
        monkeypatch.setenv(name, environment.get(name, ""))
    option, path = service(node)["command"]
    assert option == "--config"
    return load(PROJECT / path)


# ---- the files fit each other -----------------------------------------------------------------------


@each_node
def test_a_container_has_the_guides_names_and_what_its_node_is_configured_for(
    node: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, of_node = service(node), config(node, monkeypatch)
    assert found["container_name"] == f"chat_node{node}"
    assert found["ports"] == [f"127.0.0.1:{5000 + node}:{of_node.port}"]
    assert found["volumes"] == [f"node{node}_data:{of_node.data_dir}"]
    assert f"node{node}_data" in COMPOSE["volumes"]
    assert found["healthcheck"]["test"] == ["CMD", "python", "deploy/healthy.py", str(of_node.port)]
    assert (of_node.node_id, of_node.members) == (node, NODES)
    assert {(peer.host, peer.port) for peer in of_node.peers} == {
        (f"node{peer}", config(peer, monkeypatch).port) for peer in NODES if peer != node
    }


@each_node
def test_a_container_may_do_little(node: int) -> None:
    found = service(node)
    assert (found["read_only"], found["cap_drop"]) == (True, ["ALL"])
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE) == ["chat"]


@each_node
def test_secrets_come_from_the_environment(node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    without, having = config(node, monkeypatch), config(node, monkeypatch, **SECRETS)
    assert (without.secret, without.client_token) == ("", "")
    assert (having.secret, having.client_token) == tuple(SECRETS.values())


@each_node
def test_without_its_last_line_a_node_demands_secrets(
    node: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (DEPLOY / f"node{node}.yml").read_text("utf-8")
    assert text.endswith("allow_open: true\n")
    monkeypatch.setenv("CHAT_SECRET", "")
    monkeypatch.setenv("CHAT_CLIENT_TOKEN", "")
    with pytest.raises(ConfigError, match="without a secret"):
        load("n.yml", text=text.removesuffix("allow_open: true\n"))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert load("n.yml", text=text.removesuffix("allow_open: true\n")).secret


def copied() -> list[str]:
    """What the Dockerfile copies, as paths in the project."""
    return [path for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]]


def test_the_image_has_every_file_that_is_named() -> None:
    named = {"examples/load_test.py", "deploy/healthy.py", "nodeproc"}
    named |= {service(node)["command"][1] for node in NODES}
    assert named | {"requirements.txt"} == set(copied())
    assert [path for path in copied() if not (PROJECT / path).exists()] == []


def test_the_build_context_is_what_the_image_copies() -> None:
    lines = (PROJECT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = {str(path.relative_to(PROJECT)) for line in lines if line[:1] == "!" for path in PROJECT.glob(line[1:])}
    assert lines[1] == "*" and let_in == set(copied())


def test_the_base_image_is_a_build_argument_with_one_default() -> None:
    build = service(1)["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert f"ARG BASE={build['args']['BASE'].removeprefix('${CHAT_BASE:-').removesuffix('}')}\n" in DOCKERFILE
    assert "ARG BASE=python:3.11-slim\nFROM ${BASE}\n" in DOCKERFILE


def test_one_service_builds_the_image_of_all_and_nothing_looks_for_it_in_a_registry() -> None:
    services = COMPOSE["services"].values()
    assert {each["image"] for each in services} == {"chatlab"}
    assert [each["pull_policy"] for each in services if "build" in each] == ["build"]
    assert {each["pull_policy"] for each in services if "build" not in each} == {"never"}


def test_the_client_in_a_container_reaches_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = COMPOSE["services"]["chat"]
    *start, host = chat["entrypoint"]
    assert start == ["python", "-m", "nodeproc.client_tui", "--host"]
    assert all(host in service(node)["networks"]["default"]["aliases"] for node in NODES)
    assert [int(word) for word in chat["command"][1::2]] == [config(node, monkeypatch).port for node in NODES]


# ---- the health check -------------------------------------------------------------------------------


def healthy(port: int, **environment: str) -> tuple[int, str]:
    """Run the health check. Returns its exit code and output."""
    done = subprocess.run(
        [sys.executable, DEPLOY / "healthy.py", str(port)],
        check=False, capture_output=True, text=True, timeout=TOO_LONG_S, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_node_is_healthy_when_it_knows_a_leader(tmp_path: Path) -> None:
    with Cluster(tmp_path, join_timeout_ms=100) as cluster:
        cluster.start(1)
        until(lambda: cluster.status(1) is not None)
        code, answer = healthy(cluster.port(1))
        assert code == 1 and '"leader":0,' in answer
        cluster.start(2)
        leader = cluster.leader()
        code, answer = healthy(cluster.port(1))
        assert code == 0 and f'"leader":{leader},' in answer


def test_a_node_that_does_not_answer_is_not_healthy() -> None:
    [port] = free_ports(1)
    code, answer = healthy(port)
    assert code == 1 and "refused" in answer


def test_the_health_check_shows_the_client_token(tmp_path: Path) -> None:
    with Cluster(tmp_path, count=1, client_token=SECRETS["CHAT_CLIENT_TOKEN"]) as cluster:
        cluster.start()
        until(lambda: healthy(cluster.port(1), **SECRETS)[0] == 0)
        assert healthy(cluster.port(1), CHAT_CLIENT_TOKEN="another token")[0] == 1


# ---- the load test ----------------------------------------------------------------------------------


def run_load_test(cluster: Cluster) -> int:
    ports = [str(cluster.port(node)) for node in NODES]
    return load_test.main(
        ["--messages", "20", "--rate", "1000", *(word for port in ports for word in ("--port", port))]
    )


def test_the_load_test_reads_every_message_from_every_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.leader()
        assert run_load_test(cluster) == 0
        assert run_load_test(cluster) == 0, "messages that were there before do not matter"
    printed = capsys.readouterr().out
    assert "20 messages acknowledged, the last one as seq_no 40" in printed
    assert printed.count("delivered all of them, once and in order") == 6


@pytest.mark.parametrize("damage", [lambda lines: lines[1:], lambda lines: lines[::-1], lambda lines: lines + lines])
def test_the_load_test_rejects_a_node_that_delivers_something_else(
    damage: Callable[[list[Any]], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = load_test.delivered

    async def doctored(*where: Any) -> list[Any]:
        return damage(await honest(*where))

    monkeypatch.setattr(load_test, "delivered", doctored)
    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.leader()
        assert run_load_test(cluster) == 1


def test_the_load_test_says_why_a_message_was_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ChatClient, "renew", lambda client: client.session.close("ended by the test"))
    with Cluster(tmp_path, count=1, limits={"max_payload_bytes": 10}) as cluster:
        cluster.start()
        until(lambda: bool((status := cluster.status(1)) and status["leader"]))
        assert load_test.main(["--messages", "1", "--port", str(cluster.port(1))]) == 1
    assert "1 of 1 messages not acknowledged: rejected: " in capsys.readouterr().out


# ---- the script that tries the containers -----------------------------------------------------------

TOOLS = ("bash", "basename", "date", "dirname", "find", "mktemp", "rm", "rmdir", "tail", "touch")


def verify(tmp_path: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Run deploy/verify.sh where only some tools and these programs, given as shell scripts, can be found."""
    found = tmp_path / "bin"
    found.mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path is not None
        (found / tool).symlink_to(path)
    for name, text in programs.items():
        (found / name).write_text(f"#!/bin/bash\n{text}\n")
        (found / name).chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [found / "bash", DEPLOY / "verify.sh"],
        check=False, capture_output=True, text=True, timeout=TOO_LONG_S,
        env={"PATH": str(found), "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert list(temporary.iterdir()) == [], "it leaves nothing"
    return done


COMPOSE_ONLY = 'case "$1" in compose) exit 0;; *) exit 1;; esac'


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "there is no docker"),
        ({"docker": "exit 1"}, "there is no docker compose"),
        ({"docker": COMPOSE_ONLY, "id": "echo 1000"}, "no engine runs, and only root can start one"),
        ({"docker": COMPOSE_ONLY, "id": "echo 0"}, "no engine runs, and there is no dockerd to start one"),
        ({"docker": "exit 0"}, "the engine has a container, volume or image chat_node1"),
    ],
)
def test_verify_is_skipped_with_a_reason_where_it_cannot_run(
    programs: dict[str, str], reason: str, tmp_path: Path
) -> None:
    done = verify(tmp_path, **programs)
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr.endswith(f"skipped: {reason}\n")


def test_verify_names_files_that_exist_and_the_clusters_names() -> None:
    text = (DEPLOY / "verify.sh").read_text("utf-8")
    subprocess.run(["bash", "-n", DEPLOY / "verify.sh"], check=True, timeout=TOO_LONG_S)
    assert [path for path in re.findall(r"\bdeploy/[\w.]+", text) if not (PROJECT / path).exists()] == []
    assert [service(node)["container_name"] in text for node in NODES] == [True] * 3

"""Members of a running cluster are added and removed by the commands for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeproc import members
from nodeproc.__main__ import main
from nodeproc.config import load
from nodeproc.core.messages import MemberAddress, MemberList
from nodeproc.errors import ConfigError, Unreachable
from nodeproc.joining import settings_of
from nodeproc.lines import MembersStatus, Status
from nodeproc.members import listing, removes_first
from tests import TOO_LONG_S
from tests.nodeproc.nodes import Cluster, free_ports, run_node
from tests.nodeproc.test_main import chat


def operate(cluster: Cluster, *words: str) -> int:
    """Run a `members` command that is told of node 1 only."""
    return main(["members", *words, "--at", f"127.0.0.1:{cluster.port(1)}", "--timeout", str(TOO_LONG_S)])


def test_a_node_joins_gets_a_vote_and_the_leader_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: G1, G2, G3, G5."""
    with Cluster(tmp_path, secret="the secret of all") as cluster:
        cluster.start()
        assert chat(cluster, cluster.leader(), 1) == 1
        [port], config = free_ports(1), tmp_path / "node4.yml"
        words = ["--node-id", "4", "--port", str(port), "--data-dir", str(tmp_path / "node_4"), "--config", str(config)]
        words += ["--like", str(tmp_path / "node1.yml"), "--quiet"]
        newcomer = run_node("join", f"127.0.0.1:{cluster.port(1)}", *words, log=tmp_path / "4.log")
        try:
            assert operate(cluster, "add", "4", f"127.0.0.1:{port}") == 0
            assert "done: list 2: voters 1, 2, 3, 4\n" in capsys.readouterr().out
            assert load(config).members == (1, 2, 3) and config.stat().st_mode & 0o777 == 0o600
            assert operate(cluster, "transfer", "3") == operate(cluster, "remove", "3") == 0
            assert "done: list 3: voters 1, 2, 4; removed 3\n" in capsys.readouterr().out
            assert cluster.wait(3) == 0, "a removed node stops by itself"
            assert chat(cluster, 1, 2) == 2
            assert operate(cluster, "list") == 0
            assert f"node_4    127.0.0.1:{port}" in capsys.readouterr().out
            assert operate(cluster, "add", "3", f"127.0.0.1:{cluster.port(3)}") == 1
            assert "members: refused: node_3 was removed, and no id is used again" in capsys.readouterr().err
            cluster.start(3)
            assert cluster.wait(3) == 0, "and once more if it is started again"
        finally:
            newcomer.kill()
            newcomer.wait()


def test_a_dead_member_is_replaced_by_a_command_that_can_be_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: G2, G3."""
    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.linked()
        assert chat(cluster, cluster.leader(), 1) == 1
        cluster.kill(2)
        [port] = free_ports(1)
        replace = ("replace", "2", f"4=127.0.0.1:{port}")
        assert operate(cluster, "replace", "7", f"4=127.0.0.1:{port}") == 1
        assert capsys.readouterr().err == "members: refused: found node 7, allowed 1, 2, 3\n"
        assert operate(cluster, "replace", "2", f"2=127.0.0.1:{port}") == 1
        assert (
            "refused: no id is used again; give the node that replaces node_2 an id other than 2"
            in capsys.readouterr().err
        )
        assert main(["members", *replace, "--at", f"127.0.0.1:{cluster.port(1)}", "--timeout", "2"]) == 1
        told = capsys.readouterr()
        assert "node_4 is a learner" in told.out and "not done within 2 s" in told.err
        words = ["--node-id", "4", "--port", str(port), "--data-dir", str(tmp_path / "node_4")]
        words += ["--config", str(tmp_path / "node4.yml"), "--quiet"]
        newcomer = run_node("join", f"127.0.0.1:{cluster.port(1)}", *words, log=tmp_path / "4.log")
        try:
            for _ in range(2):
                assert operate(cluster, *replace) == 0
                assert capsys.readouterr().out.endswith("done: list 3: voters 1, 3, 4; removed 2\n")
            assert operate(cluster, "replace", "3", f"2=127.0.0.1:{port}") == 1
            assert "no id is used again" in capsys.readouterr().err
            assert chat(cluster, 1, 2) == 2
        finally:
            newcomer.kill()
            newcomer.wait()


@pytest.mark.parametrize(
    ("voters", "learners", "first"),
    [((1, 2, 3), (), False), ((1, 2, 3), (4,), False), ((1, 3), (2,), True), (tuple(range(1, 10)), (), True)],
)
def test_a_replacement_adds_first_unless_the_list_has_no_place(
    voters: tuple[int, ...], learners: tuple[int, ...], first: bool
) -> None:
    """Rule: G2."""
    assert removes_first(MemberList(4, voters, learners), 2) is first


def test_commands_say_why_they_can_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    assert main(["members", "list", "--at", nobody]) == 1
    assert capsys.readouterr().err == f"members: {nobody}: Connection refused\n"
    assert main(["members", "remove", "4", "--at", nobody, "--timeout", "0.01"]) == 1
    assert f"not done within 0.01 s: {nobody}: Connection refused; what has begun goes on" in capsys.readouterr().err
    assert main(["join", nobody, "--node-id", "4", "--port", "5004", "--data-dir", "d"]) == 2
    assert capsys.readouterr().err == f"nodeproc: join: {nobody}: Connection refused\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["add", "x", "h:1"], "argument ID: found 'x', allowed a node id, 1..2147483647"),
        (["add", "4", "h"], "argument HOST:PORT: found 'h', allowed HOST:PORT, such as 127.0.0.1:5001"),
        (["add", "4", "h:70000"], "argument HOST:PORT: found 'h:70000', allowed HOST:PORT"),
        (["replace", "2", "4"], "argument NEW=HOST:PORT: found '', allowed HOST:PORT, such as 127.0.0.1:5001"),
        (["replace", "2", "x=h:1"], "argument NEW=HOST:PORT: found 'x', allowed a node id, 1..2147483647"),
        (["list", "--timeout", "0"], "--timeout 0: allowed above 0, below 1e6"),
    ],
)
def test_wrong_words_are_one_clear_error(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["members", *words])
    assert exit_.value.code == 2 and complaint in capsys.readouterr().err


MEMBERS = MembersStatus(4, True, (1, 2, 3), (1, 2, 4), (6,), (3,), (MemberAddress(2, "b", 2), MemberAddress(4, "d", 4)))
SEEN = Status(1, "leader", 7, 1, 0, 0, 0, members=MEMBERS)


def test_a_newcomers_configuration_names_the_founders_and_the_present_members() -> None:
    """Rule: G1."""
    peers = [{"id": 1, "host": "a", "port": 1}, {"id": 2, "host": "b", "port": 2}, {"id": 4, "host": "d", "port": 4}]
    assert settings_of(SEEN, ("a", 1), 6) == {"node_id": 6, "founders": [1, 2, 3], "peers": peers}


@pytest.mark.parametrize(
    ("seen", "newcomer", "complaint"),
    [
        (SEEN, 3, "--node-id 3: that node was removed, and no id is used again"),
        (SEEN, 2, "--node-id 2: allowed any but those of the founders: 1, 2, 3"),
        (Status(1, "leader", 7, 1, 0, 0, 0), 6, "join: node_1 runs an older version, which does not know lists"),
    ],
)
def test_an_id_that_no_newcomer_can_have_is_refused(seen: Status, newcomer: int, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        settings_of(seen, ("a", 1), newcomer)


def test_members_are_listed_as_the_leader_knows_them() -> None:
    older = MembersStatus(3, False, (1, 2, 3), (1, 2, 3, 4), (), (), ())
    follower = Status(2, "follower", 7, 1, 0, 0, 0, members=older)
    text = listing([(("b", 2), follower), (("a", 1), SEEN)])
    assert text.splitlines() == [
        "node_1    a:1                   voter    leader, term 7",
        "node_2    b:2                   voter    follower, term 7",
        "node_4    d:4                   voter    does not answer",
        "node_6    ?                     learner  does not answer",
        "list 4: voters 1, 2, 4; learner 6; removed 3",
    ]
    older_leader = (("c", 3), Status(3, "leader", 8, 3, 0, 0, 0))
    assert "no leader reports its list; this is what node_2 knows" in listing([older_leader, (("b", 2), follower)])
    with pytest.raises(Unreachable, match="c:3: runs an older version, which does not know lists of members"):
        listing([older_leader])


@pytest.mark.patches
def test_a_leader_of_an_older_version_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def status(*_: object, **__: object) -> Status:
        return Status(3, "leader", 8, 3, 0, 0, 0)

    monkeypatch.setattr(members, "status", status)
    for words in (["add", "4", "h:1"], ["remove", "1"], ["transfer"]):
        assert main(["members", *words]) == 1
        wanted = "refused: node_3, the leader, runs an older version, which does not know lists of members"
        assert capsys.readouterr().err == f"members: {wanted}\n"


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node4.yml"
    file.write_text("node_id: 4\n")
    words = ["--node-id", "4", "--port", "5004", "--data-dir", "d", "--config", str(file)]
    assert main(["join", "127.0.0.1:1", *words]) == 2
    wanted = f"nodeproc: {file} exists already: start the node with --config {file}\n"
    assert capsys.readouterr().err == wanted and file.read_text() == "node_id: 4\n"

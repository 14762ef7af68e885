"""A node's configuration file: defaults, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeproc.config import load
from nodeproc.errors import ConfigError

GOOD = """\
node_id: 1
port: 5001
peers:
  - {id: 2, port: 5002}
  - {id: 3, port: 5003}
data_dir: data/node_1
"""

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_short_file_gets_the_defaults() -> None:
    config = load("n.yml", text=GOOD)
    core = config.core()
    assert core.members == (1, 2, 3)
    assert (core.heartbeat_interval, core.election_timeout, core.priority) == (0.1, 0.5, 1)
    assert (config.host, config.durability, config.log_level) == ("127.0.0.1", "fsync", "INFO")


def test_everything_can_be_said() -> None:
    more = "priority: 9\nhost: 0.0.0.0\nallow_open: true\nsecret: s\ndurability: os\n"
    more += "log_level: DEBUG\nlimits: {max_clients: 3}\n"
    config = load("n.yml", text=GOOD + more)
    assert (config.core().priority, config.host, config.limits.max_clients) == (9, "0.0.0.0", 3)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_ready_configs_form_one_cluster(number: int) -> None:
    config = load(CONFIGS / f"node{number}.yml")
    assert (config.node_id, config.port, config.members) == (number, 5000 + number, (1, 2, 3))
    assert {peer.id: peer.port for peer in config.peers} == {n: 5000 + n for n in (1, 2, 3) if n != number}


def test_a_data_directory_may_lie_deep() -> None:
    deep = "/".join(["x" * 200] * 10)
    assert load("n.yml", text=GOOD.replace("data/node_1", deep)).data_dir == deep


def test_a_newcomer_names_the_founders_of_its_cluster_and_the_present_members() -> None:
    """Rule: M5, G1."""
    text = "node_id: 6\nport: 5006\ndata_dir: d\nfounders: [3, 1, 2]\npeers: [{id: 4, port: 5004}, {id: 5, port: 5005}]"
    config = load("n.yml", text=text)
    assert config.members == config.core().members == (1, 2, 3)
    with pytest.raises(ConfigError, match="peers: found none beside founders, allowed 1 or more"):
        load("n.yml", text="node_id: 6\nport: 5006\ndata_dir: d\nfounders: [1]")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (("node_id: 1", "node_id: one"), 'n.yml:1:10: node_id: found "one", allowed a whole number, 1..2147483647'),
        (("node_id: 1", "node_id: 0"), "n.yml:1:10: node_id: found 0, allowed 1..2147483647"),
        (("port: 5001", "port: 70000"), "n.yml:2:7: port: found 70000, allowed 0..65535"),
        (("port: 5001", "port: 0"), "n.yml:2:7: port: found 0 (any free port), allowed 1..65535"),
        (("{id: 2,", "{id: 1,"), "n.yml:4:10: peers[0].id: found 1, which is node_id already"),
        (("{id: 3,", "{id: 2,"), "n.yml:5:10: peers[1].id: found 2, which is peers[0].id already"),
        (("port: 5002", "port: 5001"), "peers[0].port: found 127.0.0.1:5001, which is host and port already"),
        (("port: 5003", "port: 5002"), "peers[1].port: found 127.0.0.1:5002, which is that of peers[0] already"),
        (("data_dir", "founders: [2, 2]\ndata_dir"), "founders: found [2, 2], allowed up to 9 ids, each once"),
        (("data_dir", f"founders: {list(range(1, 11))}\ndata_dir"), "10], allowed up to 9 ids, each once"),
        (("data_dir: data/node_1", "data_dri: x"), "data_dri: unknown key (did you mean data_dir?)"),
        (("data/node_1", "x" * 4097), ", allowed text of 1..4096 characters"),
        (("data_dir: data/node_1", "host: h"), "the key data_dir is missing"),
        (("data_dir", "host: 0.0.0.0\ndata_dir"), "n.yml:6:7: host: found '0.0.0.0', allowed 127.0.0.1"),
        (("data_dir", "election_timeout_ms: 150\ndata_dir"), "n.yml:6:22: election_timeout_ms: found an"),
        (("data_dir", "heartbeat_interval_ms: 800\ndata_dir"), "n.yml:6:24: heartbeat_interval_ms: found an"),
        (("data_dir", "durability: maybe\ndata_dir"), 'durability: found "maybe", allowed fsync, os'),
        (("data_dir", "log_level: LOUD\ndata_dir"), 'log_level: found "LOUD", allowed DEBUG, '),
        (("data_dir", "limits: {max_cleints: 1}\ndata_dir"), "limits.max_cleints: unknown key (did you mean max_cl"),
        (("data_dir", "limits: {max_line_bytes: 2048}\ndata_dir"), "limits.max_line_bytes: found a max_line_bytes"),
        (
            ("data_dir", "limits: {max_frame_bytes: 2097152}\ndata_dir"),
            "n.yml:6:27: limits.max_frame_bytes: found a max_frame_bytes of 2097152, allowed 7340032 or more",
        ),
        (("peers:", "peers: 7\nx:"), "n.yml:3:8: peers: found 7, allowed a list"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(changed: tuple[str, str], complaint: str) -> None:
    assert changed[0] in GOOD
    with pytest.raises(ConfigError) as caught:
        load("n.yml", text=GOOD.replace(*changed))
    assert complaint in str(caught.value)


def test_more_than_nine_members_are_refused() -> None:
    peers = "".join(f"  - {{id: {n}, port: {5000 + n}}}\n" for n in range(2, 11))
    with pytest.raises(ConfigError, match=r"peers: found 9 peers, allowed 0\.\.8"):
        load("n.yml", text=f"node_id: 1\nport: 5001\ndata_dir: d\npeers:\n{peers}")


SECRET, TOKEN = "secret: 0123456789abcdef\n", "client_token: fedcba9876543210\n"
OPEN = GOOD + "host: 0.0.0.0\n"


@pytest.mark.parametrize(
    "text",
    [
        OPEN + SECRET + TOKEN,
        OPEN + SECRET + "allow_any_client: true\n",
        OPEN + "allow_open: true\n",
        GOOD + "host: '::1'\n",
        GOOD + "host: 127.0.0.2\nsecret: short\nclient_token: short\n",
    ],
)
def test_secrets_or_an_explicit_word_open_the_node_to_other_machines(text: str) -> None:
    assert load("n.yml", text=text).node_id == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (OPEN, "without a secret (set secret, or allow_open: true)"),
        (OPEN + TOKEN, "without a secret (set secret, or allow_open: true)"),
        (OPEN + SECRET, "without a client_token (set client_token, or allow_any_client: true)"),
        (OPEN + "secret: short\n" + TOKEN, "n.yml:8:9: secret: found 5 characters, allowed 16 or more on a port"),
        (OPEN + SECRET + "client_token: 1234\n", "n.yml:9:15: client_token: found"),
        (OPEN + "secret: short\nallow_any_client: true\n", "secret: found 5 characters, allowed 16 or more"),
    ],
)
def test_a_node_that_others_can_reach_asks_for_secrets(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("n.yml", text=text)
    assert complaint in str(caught.value)


VARIABLES = "secret_variable: A_SECRET\nclient_token_variable: A_TOKEN\n"


def test_secrets_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "0123456789abcdef")
    monkeypatch.setenv("A_TOKEN", "fedcba9876543210")
    config = load("n.yml", text=OPEN + VARIABLES)
    assert (config.secret, config.client_token) == ("0123456789abcdef", "fedcba9876543210")


def test_an_environment_that_no_file_names_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHAT_SECRET", "CHAT_CLIENT_TOKEN"):
        monkeypatch.setenv(name, "0123456789abcdef")
    config = load("n.yml", text=GOOD)
    assert (config.secret, config.client_token) == ("", "")


@pytest.mark.parametrize(
    ("environment", "more", "complaint"),
    [
        ({}, "", "n.yml:8:18: secret_variable: found A_SECRET, which is not set in the environment"),
        ({"A_SECRET": ""}, "", "client_token_variable: found A_TOKEN, which is not set in the environment"),
        ({"A_SECRET": "", "A_TOKEN": ""}, "", "without a secret (set secret, or allow_open: true)"),
        ({"A_SECRET": "short", "A_TOKEN": "t" * 16}, "", "secret: found 5 characters, allowed 16 or more"),
        ({"A_SECRET": "s" * 16, "A_TOKEN": "t" * 257}, "", "found 257 characters in A_TOKEN, allowed 0..256"),
        ({"A_SECRET": "s" * 16, "A_TOKEN": ""}, SECRET, "secret_variable: found beside secret, allowed one of the two"),
    ],
)
def test_a_wrong_environment_is_refused(
    environment: dict[str, str], more: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load("n.yml", text=OPEN + VARIABLES + more)
    assert complaint in str(caught.value)

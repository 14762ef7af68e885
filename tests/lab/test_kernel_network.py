"""The kernel's network: rules as commands of nft, and live runs that lose packets, where this machine allows it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.engines.adapter import Config, Peer, place_of
from lab.live import enclosed, live
from lab.live.children import child_environment
from lab.live.enclosed import missing
from lab.live.kernel.links import chain, table
from lab.plan import scenario as plan
from lab.rundir import RunDir
from lab.steps.machine import RunFailed
from lab.steps.rules import Rule
from tests import TOO_LONG_S
from tests.lab.harness import LAST_STEP, harness_in_the_middle
from tests.lab.supervisable import needs_supervisor

# ---- the packet filter ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (Rule(loss=1.0), ""),
        (Rule(loss=1.0, larger_than=1000), "ip length > 1000 "),
        (Rule(loss=0.25), "numgen random mod 1000000 < 250000 "),
        (Rule(loss=1e-9), "numgen random mod 1000000 < 1 "),
    ],
)
def test_a_rule_drops_packets_of_its_link_and_counts_them(rule: Rule, match: str) -> None:
    added = chain((1, 2), rule).splitlines()[-1]
    assert added == f"add rule ip links link_1_2 {match}counter name lost_1_2 drop"


def test_a_healed_link_only_counts() -> None:
    assert chain((1, 2), None).splitlines() == [
        "flush chain ip links link_1_2",
        "add rule ip links link_1_2 counter name entered_1_2",
    ]


def test_a_rule_that_packets_cannot_obey_is_a_fault_of_the_lab() -> None:
    with pytest.raises(AssertionError, match="only packets are dropped"):
        chain((1, 2), Rule(loss=1.0, frames=("APPEND",)))


def test_each_packet_meets_the_chain_of_its_link_only() -> None:
    assert "127.77.0.254 . 127.77.0.1 : jump link_0_1, 127.77.0.1 . 127.77.0.254 : jump link_1_0" in table(
        [(0, 1), (1, 0)]
    )


def engine_hosts(*hosts: str) -> Mapping[int, str]:
    """Where the engines of nodes with these addresses listen."""
    peers = tuple(Peer(node, each, 5000 + node) for node, each in enumerate(hosts[1:], 2))
    return place_of(Config(1, hosts[0], 5001, peers, "data", "log", "events", "test", 100, 500))[0].hosts


def test_an_engine_listens_where_its_node_does_if_each_node_has_an_address_of_its_own() -> None:
    assert engine_hosts("127.77.0.1", "127.77.0.2") == {1: "127.77.0.1", 2: "127.77.0.2"}
    shared = engine_hosts("127.0.0.1", "127.0.0.1")
    assert len(set(shared.values())) == 2 and "127.0.0.1" not in shared.values()


# ---- what the machine lacks ------------------------------------------------------------------------


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """A test in which missing() has not been called, and after which it must be called again."""
    missing.cache_clear()
    yield
    missing.cache_clear()


def test_another_system_has_no_such_network(monkeypatch: pytest.MonkeyPatch, asked_anew: None) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert missing() == "cluster.network: kernel needs Linux, found darwin"


def test_the_trial_of_a_machine_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_anew: None
) -> None:
    (tmp_path / "no_network.py").write_text("import sys\nprint('unshare: Operation not permitted')\nsys.exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(enclosed, "TRIAL", "no_network")
    assert missing().endswith("needs network namespaces, ip and nft: unshare: Operation not permitted")
    run = RunDir.create(tmp_path, "test", "stamp")
    with pytest.raises(RunFailed, match="Operation not permitted"):
        live.run(scenario("steps: [kill: 1]"), run, seed=SEED, progress=lambda _: None)


# ---- live ----------------------------------------------------------------------------------------

SEED = 7


def scenario(body: str, cluster: str = "network: kernel") -> plan.Scenario:
    text = f"name: test\ndescription: A test.\ncluster: {{{cluster}}}\n{body}"
    return plan.load("test.yml", text=text)


@pytest.fixture
def kernel() -> None:
    """A test that needs the kernel's network."""
    if problem := missing():
        pytest.skip(problem)


def run_in(directory: Path, body: str, cluster: str = "network: kernel") -> RunDir:
    run = RunDir.create(directory, "test", "stamp")
    live.run(scenario(body, cluster), run, seed=SEED, progress=lambda _: None)
    return run


def test_links_whose_packets_were_dropped_are_dialled_anew(tmp_path: Path, kernel: None) -> None:
    run = run_in(
        tmp_path,
        """
bounds: {recovery: 2m, convergence: 2m}
load: {clients: 2, rate: 50, deadline: 2m}
steps:
  - load: start
  - wait: {for: acknowledged, count: 10, within: 2m}
  - cut: {}
  - sleep: 3s
  - heal: links
  - wait: {for: acknowledged, count: 1, within: 2m}
  - load: stop
""",
    )
    meta, (cut, _) = run.read_meta(), run.read_faults()[:2]
    assert (meta.links, meta.cluster["network"]) == ("kernel", "kernel")
    assert cut.effect and cut.evidence["lost"] == sum(each["lost"] for each in meta.proxy.values()) > 0
    assert meta.proxy["0-1"]["entered"] > 0 == meta.proxy["0-1"]["lost"]
    assert any("nothing acknowledged for" in run.events(node).read_text() for node in run.node_ids())
    verdict = check(run, measure(run))
    assert verdict.outcome == "pass", verdict


def test_the_lab_polls_a_node_whose_clients_lose_all_packets(tmp_path: Path, kernel: None) -> None:
    run = run_in(
        tmp_path,
        """
bounds: {recovery: 2m, convergence: 2m}
subscribers: 0
steps:
  - cut: {from: clients, to: all, both: true}
  - send: {client: 101, via: 1, messages: [sent into the cut], wait: false}
  - restart: {target: 2, how: kill}
  - wait: {for: leader, within: 2m}
  - heal: links
  - wait: {for: idle, within: 2m}
expectations:
  - acknowledged: 1
""",
    )
    cut = run.read_faults()[0]
    assert cut.evidence["lost"] > 0
    verdict = check(run, measure(run))
    assert verdict.outcome == "pass", verdict


def test_supervisors_and_dropped_packets_in_one_run(tmp_path: Path, kernel: None) -> None:
    needs_supervisor()
    run = run_in(
        tmp_path,
        """
bounds: {recovery: 2m, convergence: 2m}
load: {clients: 2, rate: 50, deadline: 2m}
steps:
  - load: start
  - wait: {for: acknowledged, count: 10, within: 2m}
  - cut: {from: 1, to: all, both: true}
  - wait: {for: acknowledged, count: 10, within: 2m}
  - power_loss: 2
  - heal: links
  - start: 2
  - wait: {for: acknowledged, count: 10, within: 2m}
  - load: stop
""",
        cluster="network: kernel, disks: supervised",
    )
    meta, faults = run.read_meta(), {row.fault: row for row in run.read_faults()}
    assert (meta.links, meta.disks) == ("kernel", "supervised")
    assert faults["link"].evidence["lost"] > 0 and faults["power_loss"].evidence["unsynced_bytes"] > 0
    assert meta.supervision is not None and meta.supervision.redirected == 0  # The nodes dial each other.
    verdict = check(run, measure(run))
    assert verdict.outcome == "pass", verdict


def test_a_rule_that_drops_no_packet_leaves_the_run_undecided(tmp_path: Path, kernel: None) -> None:
    run = run_in(
        tmp_path,
        """
bounds: {recovery: 2m, convergence: 2m}
steps:
  - cut: {larger_than: 65534}
  - send: {client: 101, messages: 10, within: 2m}
""",
    )
    assert check(run, measure(run)).outcome == "undecided"


def test_a_run_that_fails_inside_says_why(tmp_path: Path, kernel: None) -> None:
    body = "steps: [sleep: 1s]"
    run = RunDir.create(tmp_path, "test", "stamp")
    run.node_dir(1).mkdir(parents=True)
    run.node_dir(1).with_name("node_2").write_text("no directory")
    with pytest.raises(RunFailed, match=r"node_2.*File exists"):
        live.run(scenario(body), run, seed=SEED, progress=lambda _: None)


UNPRIVILEGED = """
import ctypes, encodings.idna, os, sys  # Before the interpreter's own files may be out of reach.
from lab.live.kernel import links
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as a process that was never root.
assert "CapEff:\\t0000000000000000" in open("/proc/self/status").read()
sys.exit(links.main())
"""


def test_no_privilege_is_needed(kernel: None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=TOO_LONG_S,
        check=False,
    )
    if done.returncode == 1 and done.stdout.startswith(("unshare of user", "/proc/self/")):
        pytest.skip(f"needs user namespaces for all users: {done.stdout.strip()}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- what a run leaves -----------------------------------------------------------------------------

MIDDLE = f"""
cluster: {{network: kernel}}
load: {{clients: 3, rate: 1000}}
steps: [load: start, wait: {{for: acknowledged, count: 10}}, cut: {{}}, pause: 1, {LAST_STEP}]
"""
"""During a cut."""
BELOW = 5
"""The enclosed run, which entered the namespaces and comes first; three nodes, one load worker."""


def network_of(pid: int) -> int:
    """The inode of a process's network namespace; 0 if the process is gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_harness_that_dies_leaves_no_process_and_no_network(
    tmp_path: Path, kernel: None, how: signal.Signals
) -> None:
    with harness_in_the_middle(tmp_path, MIDDLE, BELOW) as (harness, below):
        networks = {network_of(process.pid) for process in below}
        assert len(networks) == 4  # each node's, and that of the lab and its clients
        harness.send_signal(how)
        _, left = psutil.wait_procs(below, timeout=TOO_LONG_S)
        assert left == []
        assert networks.isdisjoint(map(network_of, psutil.pids()))
        assert harness.wait(TOO_LONG_S) != 0
    if how != signal.SIGKILL:
        assert RunDir(tmp_path).read_meta().problem == "interrupted"


def test_the_death_of_the_enclosed_run_fails_the_run_and_ends_its_nodes(tmp_path: Path, kernel: None) -> None:
    with harness_in_the_middle(tmp_path, MIDDLE, BELOW) as (harness, below):
        below[0].kill()
        _, left = psutil.wait_procs(below, timeout=TOO_LONG_S)
        assert left == []
        assert harness.wait(TOO_LONG_S) == 1

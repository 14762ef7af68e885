"""The first start, with venv and pip replaced: no test here installs anything."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from lab import bootstrap
from tests import TOO_LONG_S

PROJECT = Path(__file__).resolve().parents[2]


class FakeTools:
    """Stands in for venv, pip and the interpreter of .venv; keeps what it was asked to do.

    broken: the interpreter that lies in .venv does not start. pip_fails: every install fails so many times first.
    """

    def __init__(self, root: Path, *, broken: bool = False, pip_fails: int = 0) -> None:
        self.root, self.broken, self.pip_fails = root, broken, pip_fails
        self.done: list[str] = []
        self.installed = threading.Event()

    def run(self, command: Sequence[str]) -> str | None:
        if "venv" in command:
            self.done.append("venv")
            self.broken = False
            make_interpreter(self.root)
        elif "pip" in command:
            self.done.append("pip")
            if self.pip_fails:
                self.pip_fails -= 1
                return "no network"
            make_packages(self.root, bootstrap.DEV.modules)
            self.installed.set()
        elif "import sys, pip" in command[-1]:
            return "Exec format error" if self.broken else None
        return None


def make_interpreter(root: Path) -> None:
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)


def make_packages(root: Path, names: Sequence[str]) -> None:
    site = root / ".venv" / "lib" / "python3.11" / "site-packages"
    for name in names:
        (site / name).mkdir(parents=True, exist_ok=True)
        (site / name / "__init__.py").touch()


def project(tmp_path: Path) -> Path:
    (tmp_path / "requirements.txt").write_text("msgspec==1.0\n")
    (tmp_path / "requirements-dev.txt").write_text("msgspec==1.0\npytest==1.0\n")
    return tmp_path


def tools(monkeypatch: pytest.MonkeyPatch, root: Path, *, broken: bool = False, pip_fails: int = 0) -> FakeTools:
    fake = FakeTools(root, broken=broken, pip_fails=pip_fails)
    monkeypatch.setattr(bootstrap, "_run", fake.run)
    return fake


def test_a_fresh_machine_gets_a_venv_with_the_requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    fake = tools(monkeypatch, root)
    assert bootstrap.prepare(root, bootstrap.RUN) == root / ".venv" / "bin" / "python"
    assert fake.done == ["venv", "pip"]


def test_a_whole_venv_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    fake = tools(monkeypatch, root)
    bootstrap.prepare(root, bootstrap.RUN)
    fake.done.clear()
    bootstrap.prepare(root, bootstrap.RUN)
    assert fake.done == []


def test_an_interrupted_install_is_finished_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    make_interpreter(root)
    make_packages(root, ["msgspec"])
    fake = tools(monkeypatch, root)
    bootstrap.prepare(root, bootstrap.RUN)
    assert fake.done == ["pip"]
    assert bootstrap.is_whole(root / ".venv", root, bootstrap.RUN)


def test_a_venv_with_a_broken_interpreter_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    make_interpreter(root)
    fake = tools(monkeypatch, root, broken=True)
    bootstrap.prepare(root, bootstrap.RUN)
    assert fake.done == ["venv", "pip"]


def test_a_venv_that_pip_cannot_repair_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    make_interpreter(root)
    fake = tools(monkeypatch, root, pip_fails=1)
    bootstrap.prepare(root, bootstrap.RUN)
    assert fake.done == ["pip", "venv", "pip"]


def test_a_lost_package_makes_a_venv_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    tools(monkeypatch, root)
    bootstrap.prepare(root, bootstrap.RUN)
    assert bootstrap.is_whole(root / ".venv", root, bootstrap.RUN)
    (root / ".venv/lib/python3.11/site-packages/yaml/__init__.py").unlink()
    (root / ".venv/lib/python3.11/site-packages/yaml").rmdir()
    assert not bootstrap.is_whole(root / ".venv", root, bootstrap.RUN)


def test_changed_requirements_are_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    fake = tools(monkeypatch, root)
    bootstrap.prepare(root, bootstrap.RUN)
    (root / "requirements.txt").write_text("msgspec==2.0\n")
    bootstrap.prepare(root, bootstrap.RUN)
    assert fake.done == ["venv", "pip", "pip"]


def test_the_development_packages_serve_a_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    fake = tools(monkeypatch, root)
    bootstrap.prepare(root, bootstrap.DEV)
    bootstrap.prepare(root, bootstrap.RUN)
    assert fake.done == ["venv", "pip"]


def test_two_at_once_install_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    fake = tools(monkeypatch, root)
    threads = [threading.Thread(target=bootstrap.prepare, args=(root, bootstrap.RUN)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.done == ["venv", "pip"]


def test_a_process_that_waits_uses_the_lock_holders_venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    fake = tools(monkeypatch, root)
    waiting = threading.Event()
    monkeypatch.setattr(bootstrap, "_say", lambda text: waiting.set() if "waiting" in text else None)
    with bootstrap._locked(root / "requirements.txt"):
        second = threading.Thread(target=bootstrap.prepare, args=(root, bootstrap.RUN))
        second.start()
        assert waiting.wait(TOO_LONG_S), "the second process did not find the lock held"
        bootstrap._build(root / ".venv", root, bootstrap.RUN)
    second.join()
    assert fake.done == ["venv", "pip"]


def test_a_failed_install_shows_the_output_of_pip_and_leaves_no_complete_venv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(tmp_path)
    tools(monkeypatch, root, pip_fails=9)
    with pytest.raises(bootstrap.BootstrapError, match="no network"):
        bootstrap.prepare(root, bootstrap.RUN)
    assert not bootstrap.is_whole(root / ".venv", root, bootstrap.RUN)


def test_missing_requirements_are_named(tmp_path: Path) -> None:
    with pytest.raises(bootstrap.BootstrapError, match=r"requirements\.txt"):
        bootstrap.prepare(tmp_path, bootstrap.RUN)


def test_importable_packages_make_nothing_and_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
    bootstrap.ensure_packages(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_start_the_same_command_line_in_the_venv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(tmp_path)
    tools(monkeypatch, root)
    started: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(bootstrap, "importable", lambda _: False)
    monkeypatch.setattr(os, "execv", lambda path, command: started.append((path, command)))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "run_lab.py", "a b.yml", "--json"])
    monkeypatch.setenv(bootstrap.RESTARTED, "set so that it is taken back")
    monkeypatch.delenv(bootstrap.RESTARTED)
    bootstrap.ensure_packages(root)
    python = root / ".venv" / "bin" / "python"
    assert started == [(python, [str(python), "run_lab.py", "a b.yml", "--json"])]


def test_a_process_started_again_does_not_start_itself_a_third_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "importable", lambda _: False)
    monkeypatch.setattr(bootstrap, "missing", lambda _: ["yaml"])
    monkeypatch.setenv(bootstrap.RESTARTED, "1")
    with pytest.raises(SystemExit) as ended:
        bootstrap.ensure_packages(tmp_path)
    assert ended.value.code == 70
    assert "yaml still missing" in capsys.readouterr().err


def test_an_old_python_gets_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as ended:
        bootstrap.ensure_packages(tmp_path)
    assert ended.value.code == 70
    assert "allowed: 3.11 or newer" in capsys.readouterr().err


def test_run_lab_is_read_by_any_python_so_that_an_old_one_ends_with_a_sentence() -> None:
    source = (PROJECT / "run_lab.py").read_text("ascii")
    newer = (ast.JoinedStr, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef, ast.NamedExpr, ast.MatchAs)
    nodes = list(ast.walk(ast.parse(source)))
    assert not [node for node in nodes if isinstance(node, newer) or (isinstance(node, ast.Raise) and node.cause)]
    assert "__future__" not in source
    own = [node.lineno for node in nodes if isinstance(node, ast.ImportFrom)]
    version = next(node.lineno for node in nodes if isinstance(node, ast.Attribute) and node.attr == "version_info")
    assert own and all(line > version for line in own)


@pytest.mark.parametrize("place", ["yaml.py", "yaml/__init__.py"])
def test_a_module_that_hides_a_package_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    command = [sys.executable, str(PROJECT / "run_lab.py"), "list"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 70
    assert done.stderr.startswith(f"run_lab: {tmp_path / place} hides the package that `import yaml` means;")
    assert done.stderr.count("\n") == 1


def test_a_checkout_that_is_not_writable_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path)
    fake = tools(monkeypatch, root)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(bootstrap.BootstrapError, match="can't be written"):
        bootstrap.prepare(root, bootstrap.RUN)
    assert fake.done == []


def test_bootstrap_imports_the_standard_library_only() -> None:
    assert _foreign_imports((PROJECT / "lab" / "bootstrap.py").read_text()) == []


def test_the_standard_library_check_finds_a_foreign_import() -> None:
    assert _foreign_imports("import os\nimport yaml.nodes\nfrom nodeproc import wire\n") == ["yaml", "nodeproc"]


def _foreign_imports(source: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    tops = [name.partition(".")[0] for name in names]
    return [top for top in tops if top not in sys.stdlib_module_names]


def test_bootstrap_is_importable_with_nothing_installed() -> None:
    # -S and -I: no site-packages, no environment, as on a machine where nothing was ever installed.
    code = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import run_lab, lab.bootstrap"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_development_requirements_hold_every_pin_of_a_run() -> None:
    run, dev = (_pins((PROJECT / name).read_text()) for name in ("requirements.txt", "requirements-dev.txt"))
    assert run
    assert run <= dev


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_exact_and_name_no_index(name: str) -> None:
    assert _loose_lines((PROJECT / name).read_text()) == []


@pytest.mark.parametrize("line", ["-f wheels", "-i https://example.org/simple", "msgspec>=0.22", "msgspec"])
def test_a_loose_or_hosted_requirement_is_found(line: str) -> None:
    assert _loose_lines(f"# a comment\nmsgspec==0.22.0  # via x\n{line}\n") == [line]


def _pins(text: str) -> set[str]:
    return {line.partition("#")[0].strip() for line in text.splitlines()} - {""}


def _loose_lines(text: str) -> list[str]:
    return sorted(pin for pin in _pins(text) if pin.startswith("-") or "://" in pin or "==" not in pin)

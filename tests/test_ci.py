"""What CI runs: `make test` whatever happens before it, with Chromium where it can be installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "dirname", "timeout")
BROWSER = ("chromium", "chromedriver")


def run(directory: Path, programs: dict[str, str]) -> tuple[str, str]:
    """Run .ci/run with these programs only, given as shell scripts; return standard output and standard error."""
    for tool in TOOLS:
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"{tool} is not installed")
        (directory / tool).symlink_to(found)
    for name, script in {"make": "echo make $*", **programs}.items():
        (directory / name).write_text(f"#!{directory / 'bash'}\n{script}\n")
        (directory / name).chmod(0o755)
    command = [str(directory / "bash"), str(ROOT / ".ci" / "run")]
    done = subprocess.run(command, env={"PATH": str(directory)}, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_chromium_is_installed_by_root_before_the_tests(tmp_path: Path) -> None:
    installed = "\n".join(f'[[ "$*" != *install* ]] || echo > "{tmp_path / name}"' for name in BROWSER)
    apt = f'echo "apt: $DEBIAN_FRONTEND $*"\n{installed}'
    out, err = run(tmp_path, {"apt-get": apt, "id": "echo 0"})
    assert out == "make test\n" and "skipped" not in err
    assert "apt: noninteractive" in err and err.splitlines()[-1].endswith("chromium chromium-driver")


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({"id": "echo 0"}, "only root can install"),
        ({"id": "echo 1000", "apt-get": "exit 0"}, "only root can install"),
        ({"id": "echo 0", "apt-get": "exit 100"}, "could not install"),
        (dict.fromkeys(BROWSER, "exit 0") | {"apt-get": "echo never; exit 1"}, ""),
        (dict.fromkeys(BROWSER[:1], "exit 0") | {"id": "echo 0", "apt-get": "exit 1"}, "could not install"),
    ],
)
def test_the_tests_run_without_chromium_too(tmp_path: Path, programs: dict[str, str], said: str) -> None:
    out, err = run(tmp_path, programs)
    assert out == "make test\n"
    assert (said in err) if said else (err == "")

"""The supervisor: small programs write below a data directory, and a power loss takes what they did not sync."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lab.live.children import child_environment
from lab.live.supervise import Ended, Refused, Supervisor, orders
from lab.live.supervise import __main__ as trial
from lab.live.supervise.contents import Tail
from lab.live.supervise.disk import Lost
from lab.steps.orders import Orders

PAGE = 4096
PATIENCE_S = 60.0
PRELUDE = """
import errno, mmap, os, socket, sys, threading
def create(name, data=b"", flags=0):
    fd = os.open(name, os.O_CREAT | os.O_RDWR | flags, 0o644)
    os.write(fd, data)
    return fd
def sync(fd):
    os.fsync(fd)
    return fd
def failure(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "no error"
"""


class Node:
    """A data directory under a supervisor, and the programs in it."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.data.mkdir(parents=True)
        self.output = directory / "output"
        try:
            self.supervisor = Supervisor.open(self.data, directory / "log")
        except Refused as refused:
            pytest.skip(str(refused))

    def run(self, program: str) -> str:
        """Run a Python program in the data directory to its end; return what it printed."""
        return self.execute(sys.executable, "-c", PRELUDE + program)

    def execute(self, *command: str) -> str:
        self.output.write_bytes(b"")
        ended = self.supervisor.wait(self.start(*command))
        assert ended.code == 0, self.output.read_text()
        return self.output.read_text().strip()

    def start(self, *command: str) -> int:
        return self.supervisor.start(command, directory=self.data, output=self.output, environment=os.environ)

    def lose_power(self, tail: Tail = "none", seed: int = 0, **keep: int) -> Lost:
        return self.supervisor.cut_power(tail, seed=seed, keep=keep)

    def contents(self) -> dict[str, bytes]:
        """File name -> content."""
        files = (path for path in self.data.rglob("*") if path.is_file())
        return {str(path.relative_to(self.data)): path.read_bytes() for path in files}

    def names(self) -> list[str]:
        return sorted(path.name for path in self.data.iterdir())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    before = psutil.Process().children(recursive=True)  # such as multiprocessing's, from an earlier test
    node = Node(tmp_path)
    yield node
    node.supervisor.close()
    assert (tmp_path / "log").read_text() == ""
    assert psutil.Process().children(recursive=True) == before


# ---- contents ------------------------------------------------------------------------------------


def test_what_was_not_synced_is_lost(node: Node) -> None:
    node.run('fd = sync(create("a", b"x" * 5000)); os.write(fd, b"y" * 5000)')
    assert len(node.contents()["a"]) == 10000
    lost = node.lose_power()
    assert node.contents() == {"a": b"x" * 5000}
    assert (lost.unsynced_bytes, lost.lost_bytes) == (5000, 5000)


def test_what_was_synced_stays(node: Node) -> None:
    node.run('sync(create("a", b"x" * 5000)); os.fdatasync(create("b", b"y"))')
    lost = node.lose_power()
    assert node.contents() == {"a": b"x" * 5000, "b": b"y"}
    assert (lost.unsynced_bytes, lost.lost_bytes, lost.names) == (0, 0, ())


@pytest.mark.parametrize(
    "change",
    [
        'os.pwrite(fd, b"Z" * 10, 100)',
        "os.lseek(fd, 4000, 0); os.write(fd, bytes(200))",
        'os.writev(fd, [b"a", b"bc"])',
        'os.pwritev(fd, [b"a", b"bc"], 7)',
        'os.pwritev(fd, [b"a", b"bc"], 4095, 0x10 * 0)',
        "os.ftruncate(fd, 10)",
        'os.truncate("a", 0)',
        'create("a", b"other", os.O_TRUNC)',
        'open("a", "wb").write(b"other")',
        "os.sendfile(fd, sync(create('b', b'other')), 0, 5)",
        "os.copy_file_range(sync(create('b', b'other')), fd, 5, 0, 3)",
        "os.write(os.dup(fd), b'other')",
        "os.pwrite(os.open('a', os.O_WRONLY), b'other', 0)",
        "os.chdir('/'); os.pwrite(os.open('a', os.O_RDWR, dir_fd=os.open(os.environ['DATA'], 0)), b'Z', 0)",
        "t = threading.Thread(target=os.pwrite, args=(fd, b'Z', 5)); t.start(); t.join()",
        "child = os.fork()\nif child: os.waitpid(child, 0)\nelse: os.pwrite(fd, b'Z', 5)",
        # The child closes its copy, and the parent's write is seen nevertheless.
        "child = os.fork()\nif child: os.waitpid(child, 0); os.pwrite(fd, b'Z', 5)\nelse: os.close(fd); os._exit(0)",
    ],
)
def test_an_overwritten_page_gets_its_durable_bytes_back(
    node: Node, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(node.data))
    before = bytes(range(250)) * 40
    node.run(f'os.lseek(fd := sync(create("a", bytes(range(250)) * 40)), 0, 0)\n{change}')
    assert node.contents()["a"] != before
    node.lose_power()
    assert node.contents()["a"] == before


def test_stores_through_a_mapping_are_lost_or_synced(node: Node) -> None:
    node.run(
        'fd = sync(create("a", b"x" * 10000)); m = mmap.mmap(fd, 10000)\n'
        'm[0:3] = b"abc"; m.flush(0, 4096); m[1:2] = b"?"; m[9000:9003] = b"xyz"'
    )
    node.lose_power()
    assert node.contents()["a"] == b"abc" + b"x" * 9997
    node.run('fd = os.open("a", os.O_RDWR); m = mmap.mmap(fd, 10000); m[0:3] = b"123"; os.fsync(fd); m[2:3] = b"?"')
    node.lose_power()
    assert node.contents()["a"] == b"123" + b"x" * 9997


def test_a_file_opened_with_o_dsync_is_durable_with_each_write(node: Node) -> None:
    node.run('os.write(create("a", b"", os.O_DSYNC), b"x" * 100); sync(create("b"))')
    node.lose_power()
    assert node.contents() == {"a": b"x" * 100, "b": b""}


def test_tail_prefix_keeps_a_part_of_the_end(node: Node) -> None:
    node.run('fd = sync(create("a", b"x" * 100)); os.write(fd, bytes(range(100, 200)))')
    node.lose_power("prefix", seed=3)
    left = node.contents()["a"]
    assert 100 < len(left) < 200
    assert left == b"x" * 100 + bytes(range(100, len(left)))


def test_tail_pages_keeps_some_pages(node: Node) -> None:
    old, new = b"o" * PAGE, b"n" * PAGE
    node.run('fd = sync(create("a", b"o" * 4096 * 20)); os.pwrite(fd, b"n" * 4096 * 40, 0)')
    lost = node.lose_power("pages", seed=1)
    left = node.contents()["a"]
    pages = [left[at : at + PAGE] for at in range(0, len(left), PAGE)]
    assert set(pages[:20]) == {old, new}
    assert set(pages[20:]) == {bytes(PAGE), new}
    assert lost.unsynced_bytes == 40 * PAGE
    assert lost.lost_bytes == (40 - pages.count(new)) * PAGE


def test_exactly_the_bytes_to_keep_survive(node: Node) -> None:
    node.run('fd = sync(create("a", b"x" * 100)); os.write(fd, b"y" * 100); sync(create("b", b"z"))')
    node.lose_power(a=130)
    assert node.contents() == {"a": b"x" * 100 + b"y" * 30, "b": b"z"}


def test_the_state_of_the_disk_outlives_the_program(node: Node) -> None:
    node.run('fd = sync(create("a", b"x")); os.write(fd, b"y")')
    node.run('os.write(os.open("a", os.O_WRONLY | os.O_APPEND), b"z")')
    assert node.contents() == {"a": b"xyz"}
    assert node.supervisor.durable() == {"a": 1}
    node.lose_power()
    assert node.contents() == {"a": b"x"}


def test_two_power_losses(node: Node) -> None:
    node.run('fd = sync(create("a", b"x")); os.write(fd, b"y")')
    node.lose_power()
    node.run('fd = os.open("a", os.O_WRONLY | os.O_APPEND); os.write(fd, b"z"); sync(fd); os.write(fd, b"?")')
    node.lose_power()
    assert node.contents() == {"a": b"xz"}


def test_files_outside_of_the_data_directory_are_left_alone(node: Node, tmp_path: Path) -> None:
    assert node.run(f'print(create("{tmp_path}/outside", b"x") < 100)') == "True"
    node.lose_power()
    assert (tmp_path / "outside").read_bytes() == b"x"


def test_exempt_files_are_left_alone(node: Node, tmp_path: Path) -> None:
    node.supervisor.close()
    node.supervisor = Supervisor.open(node.data, tmp_path / "log", exempt=["events", "logs/"])
    program = 'os.mkdir("logs"); create("logs/a", b"x"); create("events.jsonl", b"x"); os.rename("logs/a", "logs/b")'
    node.run(f'{program}; create("a", b"x")')
    node.lose_power()
    assert node.contents() == {"logs/b": b"x", "events.jsonl": b"x"}


def test_a_static_binary(node: Node, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    source = tmp_path / "program.c"
    source.write_text(
        "#include <fcntl.h>\n#include <unistd.h>\nint main(void) {\n"
        'int fd = open("a", O_CREAT | O_RDWR, 0644); if (write(fd, "xx", 2) != 2 || fsync(fd)) return 1;\n'
        'return write(fd, "yy", 2) != 2 || rename("a", "b"); }\n'
    )
    built = subprocess.run(["gcc", "-static", "-o", tmp_path / "program", source], capture_output=True, check=False)
    if built.returncode:
        pytest.skip("gcc cannot link a static program")
    node.execute(str(tmp_path / "program"))
    assert node.contents() == {"b": b"xxyy"}
    node.lose_power()
    assert node.contents() == {"a": b"xx"}


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        'os.rename("a", "c")',
        'os.rename("a", "b")',
        'os.replace("d", "c")',
        'os.unlink("a")',
        'os.link("a", "c")',
        'os.symlink("a", "c")',
        'os.mkdir("e"); os.mkdir("e/f"); create("e/f/g", b"x"); os.rename("e", "h")',
        'os.unlink("d/file"); os.rmdir("d")',
        'create("c", b"x")',
        'os.unlink("a"); create("a", b"other")',
        'create("c", b"new"); os.rename("c", "a"); os.rename("b", "c")',
    ],
)
def test_changes_of_names_that_were_not_synced_are_undone(node: Node, change: str) -> None:
    node.run('sync(create("a", b"A")); os.mkdir("d"); create("d/file", b"D"); create("b", b"B"); os.sync()')
    before = node.contents()
    assert before == {"a": b"A", "b": b"B", "d/file": b"D"}
    node.run(change)
    assert node.contents() != before or node.names() != ["a", "b", "d"]
    lost = node.lose_power()
    assert node.names() == ["a", "b", "d"]
    assert node.contents() == before
    assert lost.lost_names == lost.unsynced_names > 0


@pytest.mark.parametrize("sync", ['os.fsync(os.open(".", 0))', 'sync(create("x", b""))', "os.sync()"])
def test_any_sync_makes_earlier_names_durable(node: Node, sync: str) -> None:
    node.run(f'sync(create("a", b"A")); os.rename("a", "b"); {sync}; os.rename("b", "c")')
    node.lose_power()
    assert node.contents()["b"] == b"A"
    assert not (node.data / "c").exists()


def test_a_prefix_of_the_changes_of_names_survives(node: Node) -> None:
    node.run('for i in range(20): os.mkdir(f"{i:02}")')
    lost = node.lose_power("prefix", seed=1)
    assert node.names() == [f"{i:02}" for i in range(20 - lost.lost_names)]
    assert 0 < lost.lost_names < 20


def test_new_files_have_the_permissions_that_the_program_gives(node: Node) -> None:
    node.run('os.umask(0o027); os.open("a", os.O_CREAT | os.O_WRONLY, 0o666); os.mkdir("d", 0o777)')
    assert (node.data / "a").stat().st_mode & 0o777 == 0o640
    assert (node.data / "d").stat().st_mode & 0o777 == 0o750


def test_errors_are_those_of_the_system(node: Node) -> None:
    program = """
os.close(create("a"))
print(failure(os.open, "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY), failure(os.open, "none/x", os.O_CREAT | os.O_RDWR),
      failure(os.rename, "none", "b"), failure(os.rmdir, "a"), failure(os.unlink, "none"), failure(os.mkdir, "a"),
      failure(os.link, "none", "b"), failure(os.open, ".", os.O_WRONLY), failure(os.open, "none", os.O_RDWR))
"""
    assert node.run(program) == "EEXIST ENOENT ENOENT ENOTDIR ENOENT EEXIST ENOENT EISDIR ENOENT"


# ---- faults by order -----------------------------------------------------------------------------


def test_a_failed_sync_loses_its_pages_even_if_a_later_one_succeeds(node: Node) -> None:
    node.run('sync(create("a", b"x" * 5000)); sync(create("b"))')
    node.supervisor.order(Orders(fail_sync=True))
    failing = 'fd = os.open("a", os.O_RDWR); os.pwrite(fd, b"y" * 9000, 0); print(failure(os.fsync, fd))'
    assert node.run(failing) == "EIO"
    assert node.supervisor.counts().failed == 1
    node.supervisor.order(Orders())
    node.run('fd = os.open("a", os.O_RDWR); sync(fd); os.pwrite(fd, b"z", 4096); sync(fd)')
    node.lose_power()
    # The second page was written again, and is durable as a whole.
    assert node.contents()["a"] == b"x" * 4096 + b"z" + b"y" * 4095 + bytes(9000 - 8192)


def test_failing_writes(node: Node) -> None:
    node.supervisor.order(Orders(fail_append=True))
    assert node.run('print(failure(create, "a", b"x"), failure(os.write, 1, b"to a pipe\\n"))').endswith("EIO no error")
    assert node.contents() == {"a": b""}


def test_a_full_disk_takes_what_fits(node: Node) -> None:
    node.supervisor.order(Orders(room=10))
    program = """
fd = create("a")
print(os.write(fd, b"12345678"), os.write(fd, b"90abc"), failure(os.write, fd, b"d"), os.pwrite(fd, b"xx", 0),
      failure(os.posix_fallocate, fd, 0, 100), os.pwrite(fd, b"yyyy", 8), failure(os.writev, fd, [b"e"]))
"""
    assert node.run(program) == "8 2 ENOSPC 2 ENOSPC 2 ENOSPC"
    assert node.contents() == {"a": b"xx345678yy"}
    assert node.supervisor.counts().refused == 5


def test_a_slow_disk_delays_syncs(node: Node) -> None:
    node.supervisor.order(Orders(slow_s=0.05))
    program = 'import time; fd = create("a", b"x"); t = time.monotonic(); sync(fd); print(time.monotonic() - t >= 0.05)'
    assert node.run(program) == "True"
    assert node.supervisor.counts().slowed == 1


def test_a_disk_that_hangs_answers_once_the_order_is_withdrawn(node: Node) -> None:
    node.supervisor.order(Orders(hang=True))
    pid = node.start(sys.executable, "-c", PRELUDE + 'fd = create("a", b"x" * 100); sync(fd)')
    while node.supervisor.counts().synced == 0:
        pass
    assert node.supervisor.durable() == {"a": 0}
    node.supervisor.order(Orders())
    assert node.supervisor.wait(pid).code == 0
    assert node.supervisor.durable() == {"a": 100}


def test_power_is_lost_while_the_disk_hangs(node: Node) -> None:
    node.supervisor.order(Orders(hang=True))
    pid = node.start(sys.executable, "-c", PRELUDE + 'fd = create("a", b"x" * 100); sync(fd)')
    while node.supervisor.counts().synced == 0:
        pass
    node.lose_power()
    assert node.supervisor.wait(pid).code == -signal.SIGKILL
    assert node.contents() == {}


def test_the_program_dies_in_the_middle_of_an_operation(node: Node) -> None:
    node.supervisor.order(Orders(die_at=3))
    program = 'fd = create("a", b"x" * 100); sync(fd); os.write(fd, b"y" * 100); print("too far")'
    pid = node.start(sys.executable, "-c", PRELUDE + program)
    assert node.supervisor.wait(pid).code == -signal.SIGKILL
    assert node.contents() == {"a": b"x" * 100 + b"y" * 50}


def test_what_is_old_is_durable(node: Node, tmp_path: Path) -> None:
    node.supervisor.close()
    node.supervisor = Supervisor.open(node.data, tmp_path / "log", writeback_s=0.01)
    node.run('create("a", b"x")')
    while node.supervisor.durable() != {"a": 1}:
        pass
    node.lose_power()
    assert node.contents() == {"a": b"x"}


# ---- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", ["pass", "s.settimeout(20)"], ids=["blocking", "not blocking"])
def test_connections_are_redirected(node: Node, prepare: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(PATIENCE_S)
        node.supervisor.redirect({("127.99.99.99", 7): ("127.0.0.1", proxy.getsockname()[1])})
        dial = f's = socket.socket(); {prepare}; s.connect(("127.99.99.99", 7)); s.sendall(b"hello")'
        pid = node.start(sys.executable, "-c", PRELUDE + dial)
        connection, _ = proxy.accept()
        with connection:
            assert connection.recv(5) == b"hello"
        assert node.supervisor.wait(pid).code == 0
    assert node.supervisor.figures().redirected == 1
    node.supervisor.redirect({})
    assert node.run('print(failure(socket.create_connection, ("127.99.99.99", 7)))') == "ECONNREFUSED"


def test_a_redirected_connection_is_refused_as_the_proxy_refuses_it(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        target = closed.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as other:
        node.supervisor.redirect({other.getsockname(): target})
        assert node.run(f"print(failure(socket.create_connection, {other.getsockname()}))") == "ECONNREFUSED"


# ---- life and death ------------------------------------------------------------------------------


def test_a_program_that_is_not_there(node: Node) -> None:
    assert node.supervisor.wait(node.start("/no/such/program")).code == 127
    assert "can't start /no/such/program: No such file or directory" in node.output.read_text()


def test_exit_codes_and_signals(node: Node) -> None:
    assert node.supervisor.wait(node.start("sh", "-c", "exit 7")).code == 7
    pid = node.start("sleep", "1000")
    os.killpg(pid, signal.SIGTERM)
    ended = node.supervisor.wait(pid)
    assert isinstance(ended, Ended)
    assert ended.code == -signal.SIGTERM


def test_a_power_loss_kills_descendants_that_have_left_the_process_group(node: Node) -> None:
    pid = node.start("sh", "-c", "setsid sleep 1000 & echo started; wait")
    while "started" not in node.output.read_text():
        pass
    node.lose_power()
    assert node.supervisor.wait(pid).code == -signal.SIGKILL
    supervisor = psutil.Process(node.supervisor.pid)
    assert all(each.status() == psutil.STATUS_ZOMBIE for each in supervisor.children(recursive=True))


def test_the_end_of_a_program_is_not_taken_for_that_of_the_next_one(node: Node) -> None:
    """One poll() shows that a listener has ended, and orders that give its number to the next one."""
    old = node.start("sleep", "1000")
    supervisor = psutil.Process(node.supervisor.pid)
    supervisor.suspend()
    os.kill(old, signal.SIGKILL)
    while psutil.Process(old).status() != psutil.STATUS_ZOMBIE:
        os.sched_yield()
    program = (sys.executable, "-c", PRELUDE + 'sync(create("a", b"x"))')
    start = orders.Start(program, str(node.data), str(node.output), dict(os.environ))
    lines = [orders.encode(order) + b"\n" for order in (orders.CutPower("none", 0, {}), start)]
    node.supervisor._channel.sendall(b"".join(lines))
    supervisor.resume()
    loss, started = (orders.decode_answer(node.supervisor._answers.readline()) for _ in lines)
    assert isinstance(loss, orders.Loss) and isinstance(started, orders.Started)
    assert node.supervisor.wait(started.pid).code == 0, node.output.read_text()
    assert node.supervisor.wait(old).code == -signal.SIGKILL
    node.lose_power()
    assert node.contents() == {"a": b"x"}


def test_a_lock_on_a_file_ends_with_all_that_held_it(node: Node) -> None:
    hold = PRELUDE + "import fcntl, signal\nfcntl.flock(create('lock'), fcntl.LOCK_EX)\n"
    hold += "os.fork() or signal.pause()\nprint('locked', flush=True)\nsignal.pause()"
    for _ in range(20):
        node.output.write_bytes(b"")
        pid = node.start(sys.executable, "-c", hold)
        while not node.output.read_bytes():
            os.sched_yield()
        os.killpg(pid, signal.SIGKILL)
        node.supervisor.wait(pid)
        take = "import fcntl\nfcntl.flock(os.open('lock', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        node.run(take)


def test_nothing_outlives_the_lab(node: Node, tmp_path: Path) -> None:
    """A process that stands for the lab starts a supervisor and a program, and is killed."""
    (tmp_path / "other").mkdir()
    lab = f"""
import sys
from pathlib import Path
from lab.live.supervise import Supervisor
supervisor = Supervisor.open(Path("{tmp_path}/other"), Path("{tmp_path}/other log"))
command = ["sh", "-c", "setsid sleep 1000 & sleep 1000"]
pid = supervisor.start(command, directory=Path("/"), output=Path("{tmp_path}/output"))
print(supervisor.pid, pid, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", lab], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
    )
    assert process.stdin is not None and process.stdout is not None
    supervisor, program = (psutil.Process(int(pid)) for pid in process.stdout.readline().split())
    left = [supervisor, program, *program.children()]
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    gone, alive = psutil.wait_procs(left, timeout=PATIENCE_S)
    assert (len(gone), alive) == (len(left), [])
    assert not (tmp_path / "other.kept").exists()


def test_nothing_is_left_of_a_trial_when_the_lab_is_killed(tmp_path: Path) -> None:
    Node(tmp_path / "with").supervisor.close()
    place = tmp_path / "trial"
    place.mkdir()
    ask = "from lab.live.supervise import missing; print(missing())"
    lab = subprocess.Popen([sys.executable, "-c", ask], env={**child_environment(), "TMPDIR": str(place)})
    while not any(place.glob("*/data")):
        assert lab.poll() is None
    lab.kill()
    lab.wait()
    while any(place.iterdir()):  # The process that tries it goes on to its end.
        os.sched_yield()


def test_a_trial_says_why_there_can_be_no_supervisor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Refused("pidfd_getfd: Operation not permitted")

    monkeypatch.setattr(Supervisor, "open", refuse)
    assert (trial.main(), capsys.readouterr().out) == (1, "pidfd_getfd: Operation not permitted\n")


def test_the_end_of_a_supervisor_is_an_error_of_the_run(tmp_path: Path) -> None:
    node = Node(tmp_path)
    pid = node.start("sleep", "1000")
    program = psutil.Process(pid)
    os.kill(node.supervisor.pid, signal.SIGKILL)
    with pytest.raises(Exception, match="the supervisor has ended"):
        node.supervisor.counts()
    program.wait(PATIENCE_S)
    node.supervisor.close()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv, which gives up capabilities")
def test_no_capabilities_are_needed(tmp_path: Path) -> None:
    """A process that stands for the lab has no capability, and no program can give it one."""
    lab = f"""
import os, sys
from pathlib import Path
from lab.live.supervise import Refused, Supervisor
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")))
data = Path("{tmp_path}/data")
data.mkdir()
try:
    supervisor = Supervisor.open(data, Path("{tmp_path}/log"))
except Refused as refused:
    sys.exit(str(refused))
write = "import os; fd = os.open('a', os.O_CREAT | os.O_RDWR); os.write(fd, b'x'); os.fsync(fd); os.write(fd, b'y')"
rename = "; os.rename('a', 'b')"
pid = supervisor.start([sys.executable, "-c", write + rename], directory=data, output=Path("{tmp_path}/output"))
print(supervisor.wait(pid).code, os.listdir(data), supervisor.cut_power().lost_bytes, os.listdir(data))
supervisor.close()
"""
    Node(tmp_path / "with").supervisor.close()
    give_up = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*give_up, sys.executable, "-c", lab], env=child_environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["0000000000000000", "0 ['b'] 1 ['a']"], done.stderr


def test_calls_that_cannot_be_followed_are_refused(node: Node) -> None:
    io_uring_setup = 425  # on every architecture
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall({io_uring_setup}, 1, 0), errno.errorcode[ctypes.get_errno()])
"""
    assert node.run(program) == "-1 ENOSYS"

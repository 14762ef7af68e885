"""System calls that change names."""

from __future__ import annotations

from collections.abc import Callable

from lab.live.supervise.kernel import Call, read_path
from lab.live.supervise.openfiles import INT
from lab.live.supervise.processes import umask_of
from lab.live.supervise.state import State

_AT_REMOVEDIR, _AT_SYMLINK_FOLLOW, _AT_EMPTY_PATH = 0x200, 0x400, 0x1000


class Naming:
    """See the module."""

    def __init__(self, state: State) -> None:
        self._state = state

    def rename(self, call: Call) -> None:
        self._rename(call, self._state.path(call), self._state.path(call, 1), 0)

    def renameat(self, call: Call) -> None:
        """renameat and renameat2."""
        folder, old, new_folder, new, flags, _ = call.arguments
        paths = (
            self._state.paths.argument(call.thread, folder, old),
            self._state.paths.argument(call.thread, new_folder, new),
        )
        self._rename(call, *paths, flags & INT if call.name == "renameat2" else 0)

    def _rename(self, call: Call, old: str, new: str, flags: int) -> None:
        self._change_names(call, new, lambda: self._state.names.rename(old, new, flags))

    def unlink(self, call: Call) -> None:
        path = self._state.path(call)
        self._change_names(call, path, lambda: self._state.names.remove(path))

    def rmdir(self, call: Call) -> None:
        path = self._state.path(call)
        self._change_names(call, path, lambda: self._state.names.remove_folder(path))

    def unlinkat(self, call: Call) -> None:
        folder, address, flags, *_ = call.arguments
        path = self._state.paths.argument(call.thread, folder, address)
        remove = self._state.names.remove_folder if flags & _AT_REMOVEDIR else self._state.names.remove
        self._change_names(call, path, lambda: remove(path))

    def mkdir(self, call: Call) -> None:
        self._mkdir(call, self._state.path(call), call.arguments[1])

    def mkdirat(self, call: Call) -> None:
        folder, address, mode, *_ = call.arguments
        self._mkdir(call, self._state.paths.argument(call.thread, folder, address), mode)

    def _mkdir(self, call: Call, path: str, mode: int) -> None:
        def change() -> None:
            with umask_of(call.thread):
                self._state.names.make_folder(path, mode & 0o7777)

        self._change_names(call, path, change)

    def link(self, call: Call) -> None:
        source, path = self._state.path(call), self._state.path(call, 1)
        self._change_names(call, path, lambda: self._state.names.link(source, path, follow=False))

    def linkat(self, call: Call) -> None:
        folder, address, new_folder, new_address, flags, _ = call.arguments
        source = self._state.paths.argument(call.thread, folder, address)
        path = self._state.paths.argument(call.thread, new_folder, new_address)
        follow = bool(flags & (_AT_SYMLINK_FOLLOW | _AT_EMPTY_PATH))
        self._change_names(call, path, lambda: self._state.names.link(source, path, follow=follow))

    def symlink(self, call: Call) -> None:
        target, path = read_path(call.thread, call.arguments[0]), self._state.path(call, 1)
        self._change_names(call, path, lambda: self._state.names.link_symbolically(target, path))

    def symlinkat(self, call: Call) -> None:
        target_address, folder, address, *_ = call.arguments
        target = read_path(call.thread, target_address)
        path = self._state.paths.argument(call.thread, folder, address)
        self._change_names(call, path, lambda: self._state.names.link_symbolically(target, path))

    def _change_names(self, call: Call, path: str, change: Callable[[], None]) -> None:
        """Make a change of names for the program, if it is one below the data directory."""
        if not self._state.paths.has_name(path):
            call.pass_on()
            return
        self._state.tally.operations += 1
        if self._state.dies():
            self._state.die()
            return
        change()
        call.finish(0)

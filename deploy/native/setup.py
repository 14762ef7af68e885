"""Builds the wheel chatlab-native: the build that `make native` makes, as the package chatlab_native."""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import native


class Build(build_ext):
    def run(self) -> None:
        directory, _ = native.build()
        package = Path(self.build_lib, "chatlab_native")
        shutil.copytree(directory, package, dirs_exist_ok=True)
        (package / "__init__.py").touch()


setup(packages=[], ext_modules=[Extension("chatlab_native", [])], cmdclass={"build_ext": Build})

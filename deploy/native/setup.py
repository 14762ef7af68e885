"""Builds the wheel chatlab-native: the build that `make native` makes, as the package chatlab_native."""

import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lab import native


class Build(build_py):
    def run(self) -> None:
        directory, _ = native.build()
        shutil.copytree(directory, Path(self.build_lib, "chatlab_native"), dirs_exist_ok=True)
        Path(self.build_lib, "chatlab_native", "__init__.py").touch()


class Binary(Distribution):
    def has_ext_modules(self) -> bool:
        return True  # The wheel is for one interpreter and platform.


setup(packages=[], cmdclass={"build_py": Build}, distclass=Binary)

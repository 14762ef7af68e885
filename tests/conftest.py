"""For all tests: no example of hypothesis fails because the machine was busy; without a word, processes are plain."""

import os

from hypothesis import settings

from nodeproc import native

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
os.environ.setdefault(native.SWITCH, "0")

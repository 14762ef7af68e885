"""Settings of hypothesis: the same examples in every run, and no verdict from how long one took."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

"""Its presence puts this folder on the path: the tests share ``brute`` and ``layers``."""

from hypothesis import settings

settings.register_profile("fwbench", deadline=None, derandomize=True, database=None)  # a busy machine fails no test
settings.load_profile("fwbench")

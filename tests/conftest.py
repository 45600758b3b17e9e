"""Its presence puts this folder on the path: the tests share ``brute`` and ``layers``."""

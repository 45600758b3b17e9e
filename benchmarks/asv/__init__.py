"""asv's suite, which asv imports by itself: nothing but benchmarks in here, and relative imports."""

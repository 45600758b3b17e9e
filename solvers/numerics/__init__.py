"""What all rooms compute with: compiled kernels and their cache (``jit``), threads, LAPACK, extremes by bits."""

"""reports/gpu: the CUDA path, measured."""

"""fwbench.problems: the problem library. See ARCHITECTURE.md."""

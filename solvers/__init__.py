"""fwbench.solvers: one file, or one folder, a family; adding a solver is adding one file."""

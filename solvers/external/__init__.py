"""Solvers of others: QP back ends for the relaxation, samplers to refine, Gurobi and SCIP as exact ones, and a layer as
they take it."""

from fwbench.solvers.external import dwave_, gurobi_, qp, scip_

__all__ = ["dwave_", "gurobi_", "qp", "scip_"]

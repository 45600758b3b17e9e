"""Solvers of others: QP back ends for the relaxation, Gurobi and SCIP as exact ones, and a layer as they take it."""

from fwbench.solvers.external import gurobi_, qp, scip_

__all__ = ["gurobi_", "qp", "scip_"]

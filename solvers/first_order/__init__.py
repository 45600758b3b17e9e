"""First-order rivals of Frank-Wolfe on the same relaxation, with the same certificate, and ADMM out of a mask.

Those of role ``relax`` make steps of one Gram product, batched over rows (``loop``), and project on the polytope in
their own geometry (``simplex``); they are in torch, for any device.
"""

from fwbench.solvers.first_order import mirror, pdhg, pgd, resplit

__all__ = ["mirror", "pdhg", "pgd", "resplit"]

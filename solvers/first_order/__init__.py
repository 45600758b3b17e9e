"""Stages of role ``relax``: first-order rivals of Frank-Wolfe, on the same relaxation and with the same certificate.

Each makes steps of one Gram product, batched over rows (``loop``), and projects on the polytope in its own geometry
(``simplex``); they are in torch, for any device.
"""

from fwbench.solvers.first_order import mirror, pdhg, pgd, resplit

__all__ = ["mirror", "pdhg", "pgd", "resplit"]

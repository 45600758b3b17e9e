"""Semidefinite relaxations: of one row, a ladder from Shor's to pentagonal inequalities; and diagonals that convexify.

No stage is here; ``bounds`` climbs the ladder, ``frank_wolfe`` and ``branch_and_bound`` take the diagonals.
"""

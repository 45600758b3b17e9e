"""fwbench.solvers: a room for each role of a stage, in the order in which a spec is read, and two that they build on.

``start``, ``frank_wolfe`` and ``sampling`` (relax), ``rounding``, ``local_search`` (refine), ``weight_update``,
``bounds``, ``branch_and_bound`` (exact), ``learned`` (relax, bound), whose weights are trained, ``external``, which
holds solvers of others (relax, refine, exact), and ``first_order``, rivals of Frank-Wolfe (relax); below them
``semidefinite`` and ``numerics``. A room's ``__init__`` imports its stages, which registers them: adding a solver is
adding one file and naming it there.
"""

"""Resident maximum of a process that runs one solver on mini's whole v_proj layer (192 x 576)."""

from __future__ import annotations

from fwbench.pipeline import Run, resolve, run, warm_up

from .mini import V_PROJ, mini, one_thread


class Solvers:
    params = ("wanda", "wanda+fw(steps=50)", "wanda+fw(steps=50,convexify=shared,plain_steps=50)", "wanda+swap")
    param_names = ("solver",)

    def setup_cache(self) -> None:
        """Compile in another process: LLVM's memory is not the solver's."""
        for solver in self.params:
            warm_up(Run(mini(V_PROJ), resolve(solver)))

    def setup(self, solver: str) -> None:
        one_thread()
        self.problem, self.pipeline = mini(V_PROJ), resolve(solver)

    def peakmem_run(self, solver: str) -> None:
        run(self.problem, self.pipeline, threads=1)

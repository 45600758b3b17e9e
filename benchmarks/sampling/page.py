"""The page of stages that draw at random, from ``sampling.csv``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.sampling.study import DWAVE, RELAXED, SAMPLING_CSV, SPECS, Line
from benchmarks.shared import command
from benchmarks.shared.csv_lines import required
from benchmarks.shared.markdown import table, write_page
from fwbench.metrics import shifted_geometric_mean as mean

HEAD = """# Stages that draw at random

{problems} problems of `mini` with 64 to 192 inputs whose rows are independent, {rows} rows, two problems with a
target among them. Errors are multiples of Wanda's mask's, geometric means; CPU seconds are sums over all problems, of
the whole pipeline, one thread. One seed. The numbers are in [sampling.csv](sampling.csv). Written by
`python -m benchmarks.sampling.page`.

"""


def page(lines: Sequence[Line]) -> str:
    problems = {line.problem: line for line in lines}

    def own(spec: str) -> list[Line]:
        return [line for line in lines if line.spec == spec]

    def searches(spec: str) -> list[str]:
        samples, repaired = (sum(getattr(line, name) for line in own(spec)) for name in ("samples", "repaired"))
        share = f"{100 * repaired / samples:.0f} %" if samples else "–"
        return [f"`{spec}`", f"{mean(line.ratio for line in own(spec)):.4f}", share, seconds(spec)]

    def relaxations(spec: str) -> list[str]:
        errors = (mean(getattr(line, name) for line in own(spec)) for name in ("relaxed", "ratio"))
        return [f"`{spec}`", *(f"{error:.4f}" for error in errors), seconds(spec)]

    def seconds(spec: str) -> str:
        return f"{sum(line.seconds for line in own(spec)):.2f}"

    plain = [spec for spec in SPECS if spec not in DWAVE + RELAXED]
    return "".join(
        (
            HEAD.format(problems=len(problems), rows=sum(line.rows for line in problems.values())),
            "## Searches\n\n*Repaired*: of the samples, those that did not have the counts.\n\n",
            table(("spec", "error", "repaired", "CPU s"), map(searches, [*plain, *DWAVE])),
            "\n## Relaxations\n\n*Rounded*: the mask of the largest entries, without swaps.\n\n",
            table(("spec", "relaxed", "rounded", "CPU s"), map(relaxations, RELAXED)),
        )
    )


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    write_page(out, page(required(out / SAMPLING_CSV, Line, "benchmarks.sampling.study")))


if __name__ == "__main__":
    main()

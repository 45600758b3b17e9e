"""The page of speeds, from ``speed.csv``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.shared import command
from benchmarks.shared.csv_lines import required
from benchmarks.shared.markdown import method_cell, table, write_page
from benchmarks.shared.samples import PATTERNS
from benchmarks.speed.study import FAST, FASTER, RESWAP, ROWS, SIZES, SPEED_CSV, SPLITTING, UNIT, Line
from fwbench.problems.collections import SHAPES

PAIRS = (  # the older and the newer
    (RESWAP, "before", RESWAP, "now"),
    (FAST, "now", SPLITTING, "now"),
    (FAST, "now", FASTER, "now"),
)
UNITS = ("admm", UNIT, UNIT)  # by whose seconds they are measured


@dataclass(frozen=True)
class Found:
    """The lines of the study, and what the tables say of them."""

    lines: Sequence[Line]

    def block(self, pattern: str, spec: str, code: str, rows: int = ROWS) -> dict[str, Line]:
        """The lines of a method on the layers that have one; of so many rows, 0 for all of them."""
        key = pattern, spec, code, rows
        own = (line for line in self.lines if (line.pattern, line.spec, line.code, line.rows) == key)
        return {line.layer: line for line in own if line.layer}

    def whole(self, pattern: str, spec: str, code: str, rows: int = ROWS) -> float | None:
        """Its seconds for all rows of all seven layers, by those of the rows that were timed."""
        own = self.block(pattern, spec, code, rows)
        if set(own) != set(SHAPES):
            return None
        return sum(line.cpu_seconds * SHAPES[name][0] / (rows or SHAPES[name][0]) for name, line in own.items())

    def entire(self) -> list[list[str]]:
        out = []
        for pattern in PATTERNS.split(","):
            one, other = (self.whole(pattern, spec, "now", 0) for spec in (UNIT, FASTER))
            if one is not None and other is not None:
                out.append([pattern, f"{one:.1f}", f"{other:.1f}", f"{other / one:.1f}"])
        return out

    def compared(self, pattern: str) -> list[list[str]]:
        out = []
        for (old, was, new, code), unit in zip(PAIRS, UNITS, strict=True):
            before, after, one = (
                self.whole(pattern, old, was),
                self.whole(pattern, new, code),
                self.whole(pattern, unit, "now"),
            )
            if before is None or after is None or one is None:
                continue
            first, last = self.block(pattern, old, was), self.block(pattern, new, code)
            ratios = {name: last[name].error / first[name].error for name in SHAPES}
            worst = max(ratios, key=lambda name: ratios[name])
            mean = math.exp(sum(math.log(ratio) for ratio in ratios.values()) / len(ratios))
            seconds = [f"{value:.1f}" for value in (one, before, after)]
            times = [f"{value / one:.1f}" for value in (before, after)]
            shown = f"{ratios[worst]:.4f} ({worst})"
            out.append(
                [named(old, was), named(new, code), pattern, method_cell(unit), *seconds, *times, f"{mean:.4f}", shown]
            )
        return out

    def layers(self) -> list[list[str]]:
        out = []
        for pattern in PATTERNS.split(","):
            for name in SHAPES:
                for old, code, new, now in PAIRS:
                    first, last = self.block(pattern, old, code).get(name), self.block(pattern, new, now).get(name)
                    if first and last:
                        cells = [f"{1000 * line.cpu_seconds / line.rows:.2f}" for line in (first, last)]
                        out.append([name, pattern, named(new, now), *cells, f"{last.error / first.error:.4f}"])
        return out

    def milliseconds(self, n: int, spec: str, code: str) -> float | None:
        own = sorted(
            (line.rows, line.cpu_seconds)
            for line in self.lines
            if (line.layer, line.n, line.spec, line.code) == ("", n, spec, code)
        )
        if len(own) < 2:
            return None
        return 1000 * (own[-1][1] - own[0][1]) / (own[-1][0] - own[0][0])

    def growth(self) -> list[list[str]]:
        out = []
        for spec, code in (
            ("admm", "now"),
            ("wanda+swap", "now"),
            *dict.fromkeys(pair[i : i + 2] for pair in PAIRS for i in (0, 2)),
        ):
            found = {n: value for n in SIZES if (value := self.milliseconds(n, spec, code)) is not None and value > 0}
            if len(found) < 2:
                continue
            sizes = sorted(found)
            powers = [math.log(found[sizes[-1]] / found[n]) / math.log(sizes[-1] / n) for n in (sizes[0], sizes[-2])]
            cells = [f"{found[n]:.2f}" if n in found else "–" for n in SIZES]
            out.append([named(spec, code), *cells, *(f"{power:.2f}" for power in powers)])
        return out


def page(lines: Sequence[Line]) -> str:
    found = Found(lines)
    head = ("older", "newer", "pattern", "unit", "unit s", "older s", "newer s", "older / unit", "newer / unit")
    return (
        HEAD
        + table(
            (*head, "error, newer / older", "worst layer"),
            [row for p in PATTERNS.split(",") for row in found.compared(p)],
            4,
        )
        + "\n## Whole layers\n\n"
        + table(("pattern", f"{method_cell(UNIT)} s", f"{method_cell(FASTER)} s", "ratio"), found.entire())
        + "\n## Layer by layer\n\n"
        + table(
            ("layer", "pattern", "newer", "older ms a row", "newer ms a row", "error, newer / older"), found.layers(), 3
        )
        + "\n## Growth with the length of a row\n\n"
        + table(("pipeline", *(f"n = {n}" for n in SIZES), "power of n", "of the last two"), found.growth())
    )


def named(spec: str, code: str) -> str:
    return method_cell(spec) + (" before" if code == "before" else "")


HEAD = """# How fast the methods are that lead the boards

The first 128 rows of the seven matrices of block 7 of SmolLM2-135M, 16,384 tokens of calibration, one thread; CPU
seconds of the whole pipeline, judging included, on a machine that others loaded heavily. *Before* is the code of commit
458d6e4, run in the same minutes beside today's, of each cell first the one, then the other. Seconds of a block are
those of its 128 rows times its rows over 128, so that what rows share counts more than in whole layers, which have a
table of their own: `faster` shares inverses. `reswap`'s unit is ADMM's time, that of masks Wanda + swap's. Growth is on
synthetic rows whose inputs have the spectrum of block 7's down_proj, at 0.5: milliseconds a row are the difference
between 48 and 16 rows over 32; the powers are between the first and the last size measured, and between the last two.
Written by `python -m benchmarks.speed.page` from [speed.csv](speed.csv).

"""


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    lines = required(out / SPEED_CSV, Line, "benchmarks.speed.study")
    write_page(out, page(lines))


if __name__ == "__main__":
    main()

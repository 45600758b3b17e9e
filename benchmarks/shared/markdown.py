"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fwbench import pipeline
from fwbench.presets import title
from fwbench.spec import SpecError


def table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """The first ``left`` columns to the left, the others to the right; ends with a newline."""
    ruler = "|" + "---|" * left + "---:|" * (len(head) - left)
    return "".join([line(head), f"{ruler}\n", *map(line, lines)])


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def least_bold(values: Sequence[float], digits: int) -> list[str]:
    """The values with so many digits, the least of them bold; a dash for an infinite one, which was not measured."""
    shown = [f"{value:.{digits}f}" if value < float("inf") else "–" for value in values]
    return [f"**{text}**" if value == min(values) else text for text, value in zip(shown, values, strict=True)]


def method(spec: str) -> str:
    """A method by its one name everywhere, as it is typed: that of a preset, or one that goes on, else the spec."""
    known, comma, options = spec.partition(", ")  # such as a number of tokens
    try:
        text = pipeline.resolve(known).text
    except SpecError:  # of an older version, or no spec
        return f"`{spec}`"
    return f"`{known if title(text) == text else title(text)}`{comma}{options}"

"""Tables and pages in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fwbench import pipeline
from fwbench.presets import title
from fwbench.spec import SpecError

INDEX = Path(__file__).parents[2] / "reports" / "README.md"
HOW = "## How measured"


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


def named(spec: str) -> str:
    """A method's one name everywhere: that of a preset, or one that goes on from it, else the spec."""
    try:
        text = pipeline.resolve(spec).text
    except SpecError:  # of an older version, or no spec
        return spec
    return spec if title(text) == text else title(text)


def method_cell(spec: str) -> str:
    """The same for a cell, as code; options after a comma, such as a number of tokens, stay text."""
    known, comma, options = spec.partition(", ")
    return f"`{named(known)}`{comma}{options}"


def write_page(folder: Path, text: str) -> None:
    """Write ``folder/index.md`` in the form of every report: question, answer, figures and tables, how measured."""
    (folder / "index.md").write_text(formed(text, *asked(folder.name)), encoding="utf-8")


def formed(text: str, question: str = "", answer: str = "") -> str:
    """A page whose text before its first figure, table or section comes last; the answer takes its place."""
    title, rest = text.split("\n", 1)
    start = re.search(r"^(## |!\[|\|)", rest, flags=re.MULTILINE)
    cut = start.start() if start else 0
    lead = f"**{question}** {answer}\n\n" if question else ""
    return f"{title}\n\n{lead}{rest[cut:].rstrip()}\n\n{HOW}\n\n{rest[:cut].strip()}\n"


def asked(name: str) -> tuple[str, str]:
    """The question of a report and its answer, as the index of reports has them; empty for another folder."""
    row = re.search(rf"^\| \[{re.escape(name)}\]\([^)]*\): (.*?) \| (.*?) \|", INDEX.read_text("utf-8"), re.M)
    return (row[1][0].upper() + row[1][1:], row[2]) if row else ("", "")

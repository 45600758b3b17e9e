"""The table of solvers for a paper: booktabs, one macro a figure, so that a text can cite what the table says."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from fwbench.report import summary, text, view
from fwbench.report.rows import Row, bounds_only

_SPECIAL = {letter: f"\\{letter}" for letter in "{}$&#%_"} | {
    letter: f"\\text{name}{{}}"
    for letter, name in {
        "\\": "backslash",
        "~": "asciitilde",
        "^": "asciicircum",
        "<": "less",
        ">": "greater",
        "|": "bar",
        '"': "quotedbl",
        "'": "quotesingle",
        "`": "asciigrave",
        "×": "times",
        "−": "minus",
        "…": "ellipsis",
    }.items()
}
_SPECIAL |= {"–": "--", "—": "---", "†": r"\dag{}", "∞": r"\ensuremath{\infty}"}
_SHORT = {"Ratio to Wanda": "Ratio", "Rounding error": "Rounding", "Optimal": "Opt.", "Failures": "Failed"}
_NAMES = "Zero One Two Three Four Five Six Seven Eight Nine"
_DIGITS = dict(zip("0123456789", _NAMES.split(), strict=True))


def escape(name: str) -> str:
    """Text that LaTeX prints as it is; letters beyond Latin-1 lose their accents, or become a question mark."""
    return "".join(_SPECIAL.get(letter) or _letter(letter) for letter in text.clean(name))


def _letter(letter: str) -> str:
    if letter.isascii() or (letter.isalpha() and ord(letter) < 256):
        return letter
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return escape(plain) if plain else "?"


def macro_name(*words: str) -> str:
    """A name of letters alone: digits are spelled, all else only separates words.

    >>> macro_name("mini", "2:4", "wanda+swap", "Gap")
    'fwbMiniTwoFourWandaSwapGap'
    """
    parts = re.findall(r"[A-Za-z]+|\d", text.clip(" ".join(words), 400))
    return "fwb" + "".join(_DIGITS.get(part) or part[0].upper() + part[1:] for part in parts)


def document(rows: Sequence[Row]) -> str:
    """All tables of solvers and their macros, to be ``\\input`` into a document that uses ``booktabs``."""
    taken: set[str] = set()
    parts = ["% fwbench: needs \\usepackage{booktabs}, \\usepackage[T1]{fontenc} and \\usepackage{textcomp}"]
    parts += [table(group, taken) for group in summary.groups([row for row in rows if not bounds_only(row)])]
    return "\n\n".join(parts) + "\n"


def table(group: summary.Group, taken: set[str] | None = None) -> str:
    """The macros of one group's table of solvers, and the table that uses them.

    Args:
        group: from :func:`fwbench.report.summary.groups`.
        taken: names of macros used so far; those of this table are added.
    """
    taken = set() if taken is None else taken
    cells = view.solver_table(group)
    macros, lines = [], []
    kind = "Weights" if group.updates_weights else ""
    for line in cells.lines:
        used = [r"\raggedright " + re.sub(r"(?<=[+,(=./])", r"\\allowbreak{}", escape(line[0]))]
        for column, cell in zip(cells.columns[1:], line[1:], strict=True):
            name = _fresh(macro_name(group.collection, group.pattern, kind, line[0], column), taken)
            macros.append(f"\\newcommand{{\\{name}}}{{{escape(cell)}}}")
            used.append(f"\\{name}{{}}")
        lines.append(" & ".join(used) + r" \\")
    titles, columns = (
        " & ".join(_SHORT.get(column, column) for column in cells.columns) + r" \\",
        "r" * (len(cells.columns) - 1),
    )
    caption = escape(
        view.group_title(group) + f", {text.plural(len(group.problems), 'problem')}. {cells.note}".rstrip()
    )
    layout = r"\centering\footnotesize\setlength{\tabcolsep}{3pt}"
    tabular = r"\begin{tabular}{p{0.22\linewidth}" + columns + "}"
    head = [r"\begin{table}", layout, f"\\caption{{{caption}}}", tabular]
    body = [r"\toprule", titles, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*macros, "", *head, *body])


def _fresh(name: str, taken: set[str]) -> str:
    """The name, with letters behind it if another solver's figure has it already."""
    fresh, tries = name, 0
    while fresh in taken:
        tries += 1
        fresh = f"{name}Again{_letters(tries)}"
    taken.add(fresh)
    return fresh


def _letters(value: int) -> str:
    return "".join(_DIGITS[digit] for digit in str(value))


def macros(rows: Iterable[Row]) -> dict[str, str]:
    """The macros of :func:`document` as a dict, name to LaTeX text."""
    return dict(re.findall(r"^\\newcommand\{\\(\w+)\}\{(.*)\}$", document(list(rows)), flags=re.MULTILINE))

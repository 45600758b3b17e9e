"""Numbers and names as a person reads them, in HTML, Markdown and figures alike."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

NOTHING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without an exponent where it reads well without one; a dash for what is not known."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    text = f"{value:.{min(places, digits)}f}" if value else "0"
    return text.replace("-", "−")


def perplexity(value: float) -> str:
    """Two decimals, and of what means nothing any more only the size."""
    return f"{value:.2f}" if value < 1e6 else number(value)


def percent(value: float | None, places: int | None = None) -> str:
    """A fraction as a percentage: one decimal, two below one per cent."""
    if value is None or not math.isfinite(value):
        return number(value)
    places = (2 if 0 < abs(value) < 0.01 else 1) if places is None else places
    text = "0" if value == 0 else f"{100 * value:.{places}f}"
    return f"{text.replace('-', '−')} %"


def seconds(value: float | None) -> str:
    """Seconds, in milliseconds below a hundredth."""
    if value is not None and 0 < value < 0.01:
        return f"{number(1000 * value, 2)} ms"
    return number(value) if value is None or not math.isfinite(value) else f"{number(value)} s"


def with_error(figure: Mapping[str, float | None] | None) -> str:
    """A ``value`` and its ``stderr`` with four decimals, ``0.3333 ± 0.0875``; empty for what was not measured."""
    if figure is None or figure["value"] is None:
        return ""
    error = "" if figure["stderr"] is None else f" ± {figure['stderr']:.4f}"
    return f"{figure['value']:.4f}{error}".replace("-", "−")


def clip(name: str, length: int, middle: bool = False) -> str:
    """One line of printable characters, shortened to a length with an ellipsis at its end or in its middle."""
    name = clean(name)
    if len(name) <= length:
        return name
    tail = (length - 1) // 2 if middle else 0
    return name[: length - 1 - tail] + "…" + (name[-tail:] if tail else "")


def clean(name: str) -> str:
    """Without control, formatting and surrogate characters (which reverse or hide text); white space is one blank."""
    kept = (c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else " " for c in str(name))
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def markdown(value: object) -> str:
    """Text that Markdown renders as it is, inside a table or out of it."""
    text = clean(str(value)).replace("\\", "\\\\")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    text = re.sub(r"([`*\[\]~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # inside a word it is only a letter
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)  # would begin a list
    return re.sub(r"^([#+=-])", r"\\\1", text)

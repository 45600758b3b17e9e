"""docs/mathematics.md: what the code cites of it is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
HEADINGS = set(re.findall(r"^## (.+)$", PAGE, re.M))
CITATION = re.compile(r'docs/mathematics\.md,\s+"([^"]+)"')
SOURCES = [path for folder in ("fwbench", "problems", "solvers", "tests") for path in (ROOT / folder).rglob("*.py")]


def cited(path: Path) -> list[str]:
    return [" ".join(heading.split()) for heading in CITATION.findall(path.read_text(encoding="utf-8"))]


def test_what_is_cited_is_a_heading():
    found = {path.relative_to(ROOT): cited(path) for path in SOURCES}
    assert sum(map(len, found.values())) >= 13
    assert {path: lost for path, names in found.items() if (lost := set(names) - HEADINGS)} == {}


@pytest.mark.parametrize("path", sorted(re.findall(r"`((?:fwbench|solvers)/\w+(?:/\w+)*\.py)`", PAGE)))
def test_the_modules_that_it_names_are_there(path):
    assert (ROOT / path).is_file()


def test_every_reference_is_cited_and_listed():
    text, _, listed = PAGE.partition("## References")
    names = set(re.findall(r"^- \[(\w+)\]", listed, re.M))
    used = {
        name
        for group in re.findall(r"\[([A-Z]\w*\d\d(?:[,;] [^\]]+)?)\]", text)
        for name in re.findall(r"[A-Z]+\d\d", group)
    }
    assert used == names

"""Every file of ``benchmarks/`` starts; they are found by glob, so that none can be forgotten."""

import importlib
import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.shared.command import REPORTS

ROOT = REPORTS.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
}
COMMANDS = [name for name, path in FILES.items() if "__main__" in path.read_text(encoding="utf-8")]
ASV = ROOT / "benchmarks" / "asv"


def ours():
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "benchmarks"}


@pytest.fixture
def fresh():
    """As in a new process, no file of ``benchmarks/`` is loaded; other packages are, as they take seconds."""
    held = ours()
    for name in held:
        del sys.modules[name]
    with np.errstate():  # a study may make numpy raise, which holds for its process
        yield
    for name in ours():
        del sys.modules[name]
    sys.modules.update(held)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_study_starts_and_tells_what_it_does(name, fresh, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m {name} ")
    _, line, *_ = text.split("\n\n")
    assert line.endswith((".", ":"))
    assert "\n" not in line


@pytest.mark.parametrize("name", sorted(FILES.keys() - set(COMMANDS)))
def test_what_is_no_command_is_imported(name, fresh):
    importlib.import_module(name)


def test_the_readme_has_them_all():
    lines = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:]] for line in lines if re.match(r"\| [`|]", line)]
    named, room = set(), ""
    for folder, _, file, *_ in rows:
        room = folder or room
        named.add(f"benchmarks.{room}.{file}")
    assert named == set(COMMANDS)


@pytest.mark.parametrize("words", [["-S"], []], ids=["llmcompressor_child", "swap"])
def test_a_process_of_its_own(words, request):
    """As one types it; what runs in llm-compressor's environment starts without a package that is installed."""
    module = {"llmcompressor_child": "benchmarks.prune.llmcompressor_child", "swap": "benchmarks.peers.swap"}
    command = [sys.executable, *words, "-m", module[request.node.callspec.id], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m {module[request.node.callspec.id]} ")


def test_asv_discovers_the_suite():
    done = subprocess.run(
        [sys.executable, "-m", "asv", "check", "--python=same"], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No problems found" in done.stdout


def test_asv_imports_a_folder_that_needs_no_other():
    text = re.sub(r"^\s*//.*$", "", (ROOT / "asv.conf.json").read_text(encoding="utf-8"), flags=re.M)
    assert ROOT / json.loads(text)["benchmark_dir"] == ASV
    assert not [path for path in ASV.glob("*.py") if re.search(r"(from|import) benchmarks", path.read_text())]

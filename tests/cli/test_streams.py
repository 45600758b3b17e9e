"""Standard streams that are closed, full, unread, no terminal, or cannot encode: no traceback and no lost work."""

import contextlib
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

from fwbench.problem import Problem
from fwbench.problems import files
from fwbench.store import Store

COMMAND = (sys.executable, "-c", "from fwbench.cli import main; main()")
NAME = "Größe ‖ ≤ \U0001f600"
SPEAKING = """
from dataclasses import dataclass
from fwbench.stage import Role, Stage, register
@register
@dataclass(frozen=True)
class Failing(Stage):
    '''Raise.'''
    name = 'failing'
    role = Role.START
    def run(self, problem, state, context):
        print('said by a worker', flush=True)
        raise RuntimeError('told on standard error: ‖ ≤')
"""
# what a shell does to the streams, and the exit code of a command that would have printed on both
STREAMS = {
    "as they are": ("", 0),
    "output closed": (">&-", 0),
    "errors closed": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "output full": (">/dev/full", 2),
    "errors full": ("2>/dev/full", 0),
}
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "strict": {"PYTHONIOENCODING": "ascii:strict", "PYTHONUNBUFFERED": "1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "dumb": {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "1"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a problem whose name is no ASCII, a solver that fails, and a store."""
    folder = tmp_path_factory.mktemp("streams")
    problem = Problem(NAME, np.arange(1.0, 9).reshape(1, 8), np.eye(8), "0.5")
    (folder / "own").mkdir()
    files.write_problem(problem, folder / "own" / "a.safetensors")
    (folder / "failing.py").write_text(SPEAKING, encoding="utf-8")
    return folder


def call(place, words, redirected="", environment=None, **streams):
    """Run a command as a shell does: (exit code, standard output, standard error), both bytes."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    shell = ("sh", "-c", f'exec "$@" {redirected}', "sh", *COMMAND, *map(str, words))
    done = subprocess.run(shell, cwd=place, env=os.environ | (environment or {}), timeout=240, **given)
    assert b"Traceback" not in (done.stderr or b"") + (done.stdout or b"")
    assert b"Exception" not in (done.stderr or b"") + (done.stdout or b"")
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def unread():
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


LISTINGS = (("--version",), ("--help",), ("problems", "own"), ("registry",))


@pytest.mark.parametrize("streams", STREAMS)
def test_what_is_listed(place, streams):
    redirected, want = STREAMS[streams]
    for words in LISTINGS:
        code, out, err = call(place, words, redirected)
        assert code == want, (words, out, err)
        assert (len(out) > 0) == (">" not in redirected or redirected[0] == "2"), words
        if streams == "output full":
            assert err.decode() == "fwbench: [Errno 28] No space left on device: 'standard output'\n"
        else:
            assert err == b""


@pytest.mark.parametrize("streams", STREAMS)
def test_what_is_refused(place, streams):
    """A sentence on standard error, or nothing; the exit code says it anyway."""
    redirected, _ = STREAMS[streams]
    for words in (("problems", "minni"), ("frobnicate",), ("results", f"{NAME}.sqlite"), ("results", b"\xff.sqlite")):
        words = [os.fsdecode(word) for word in words]
        code, _, err = call(place, words, redirected)
        assert code == 2
        assert err.startswith(b"fwbench: ") == ("2>" not in redirected)
        assert err.count(b"\n") == ("2>" not in redirected)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_cannot_be_encoded(place, encoding):
    for words in LISTINGS:
        code, out, err = call(place, words, environment=ENCODINGS[encoding])
        assert (code, err) == (0, b""), words
        assert out
    out = call(place, ("problems", "own"), environment=ENCODINGS[encoding])[1]
    if encoding in ("ascii", "strict", "C"):
        assert rb"\u2016" in out
        assert out.isascii()
    elif encoding == "cp1252":
        assert "Größe".encode("cp1252") in out
        assert rb"\u2016" in out
    err = call(place, ("results", f"{NAME}.sqlite"), environment=ENCODINGS[encoding])[2]
    assert b"no such store" in err


def test_a_reader_that_has_gone(place):
    for words in LISTINGS:
        with unread() as writer:
            assert call(place, words, stdout=writer)[::2] == (141, b""), words
        with unread() as writer:  # and as in: fwbench ... 2>&1 | true
            assert call(place, words, stdout=writer, stderr=writer)[0] == 141, words
    with unread() as writer:
        assert call(place, ("problems", "minni"), stderr=writer)[:2] == (2, b"")


def test_a_pipe_that_does_not_block(place):
    """It takes 64 KiB and then says: later. More than that is printed, and nothing is lost."""
    folder = place / "many"
    folder.mkdir()
    for number in range(400):
        problem = Problem(f"{number:03}" + "x" * 250, np.ones((1, 8)), np.eye(8), "0.5")
        files.write_problem(problem, folder / f"{number}.safetensors")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen((*COMMAND, "problems", "many"), cwd=place, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        with open(reader, "rb") as file:
            out = file.read()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")
    assert len(out) > 1 << 16
    assert all(f"{number:03}xxx".encode() in out for number in range(400))


def rows(path):
    with Store(path, readonly=True) as store:
        return sorted((row.problem, row.solver, row.status) for row in store.results())


@pytest.mark.parametrize("streams", ["all closed", "output full", "unread"])
def test_no_work_is_lost(place, streams):
    """A run that prints on both streams, with workers that print too, keeps every row."""
    store = f"{streams}.sqlite"
    words = ("run", "own", "-s", "failing", "-s", "magnitude", "--file", "failing.py", "--store", store)
    if streams == "unread":
        with unread() as writer:
            code = call(place, words, stdout=writer, stderr=writer)[0]
        assert code == 141
    else:
        redirected, want = STREAMS[streams]
        code, out, err = call(place, words, redirected, ENCODINGS["C"])
        assert code == want, (out, err)
    assert rows(place / store) == [(NAME, "failing", "failed"), (NAME, "magnitude", "feasible")]


@pytest.mark.parametrize("gone", [False, True])
def test_a_terminal(place, gone):
    """A bar on standard error, of any encoding; and a terminal that is closed meanwhile."""
    main, other = pty.openpty()
    store = f"terminal {gone}.sqlite"
    words = (*COMMAND, "run", "own", "-s", "magnitude", "--store", store)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "TERM": "xterm"}
    with subprocess.Popen(
        words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=other, start_new_session=True
    ) as process:
        os.close(other)
        if gone:
            os.close(main)
        else:
            said = b""
            with contextlib.suppress(OSError):  # the end of a terminal
                while chunk := os.read(main, 1 << 16):
                    said += chunk
            os.close(main)
            assert b"starting" in said
            assert b"Traceback" not in said
        out = process.stdout.read()
    assert process.returncode == 0
    assert b"1 run, 0 reused" in out
    assert rows(place / store) == [(NAME, "magnitude", "feasible")]


def test_notes_of_a_text_are_one_line_on_standard_error(place):
    (place / "texts").mkdir()
    for name in ("a.txt", "README.md"):
        (place / "texts" / name).write_text("some words")
    code, out, err = call(place, ("extract", "no-model-here", "-o", "out", "--text", "texts"))
    assert (code, out) == (2, b"")
    assert err.decode().splitlines()[0] == "fwbench: note: texts: reads a.txt; leaves out README.md"
    assert err.count(b"\n") == 2

"""The one channel for what a person should know of work that goes on."""

import logging
import subprocess
import sys

from fwbench.notes import heard, note


def test_each_sentence_once_and_at_once():
    said = []
    with heard(said.append):
        note("100 % of it")
        assert said == ["100 % of it"]
        note("100 % of it")
        note("more")
    note("nobody listens any more")
    assert said == ["100 % of it", "more"]


def test_listeners_inside_one_another():
    outer, inner = [], []
    with heard(outer.append):
        with heard(inner.append):
            note("both")
        note("one")
    assert (outer, inner) == (["both", "one"], ["both"])
    assert not logging.getLogger("fwbench").handlers


def test_without_a_listener_it_is_on_standard_error():
    code = "from fwbench.notes import note; note('beware')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "beware\n")

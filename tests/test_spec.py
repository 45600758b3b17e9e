"""Specs: known answers, every refusal, and ``parse(str(s)) == s`` for whatever can be built."""

import math
import subprocess
import sys
from contextlib import suppress
from keyword import iskeyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwbench.spec import Spec, SpecError, StageSpec, numbers, parse

FW = StageSpec("fw", (("step", "linesearch"), ("steps", 1000)))


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("wanda", (StageSpec("wanda"),)),
        (" wanda + swap ", (StageSpec("wanda"), StageSpec("swap"))),
        ("wanda()+swap", (StageSpec("wanda"), StageSpec("swap"))),
        ("fw(steps=1000,step=linesearch)", (FW,)),
        ("fw(step='linesearch', steps=1_000)", (FW,)),
        ("a+b+c", (StageSpec("a"), StageSpec("b"), StageSpec("c"))),
        ("a(x=-1,y=1e-4,z=True,w=None)", (StageSpec("a", (("w", None), ("x", -1), ("y", 1e-4), ("z", True))),)),
        ("a(x='a=b+c(d)')", (StageSpec("a", (("x", "a=b+c(d)"),)),)),
        ("a(x=inf)", (StageSpec("a", (("x", math.inf),)),)),
        ("a(x='inf',y='None',z='True')", (StageSpec("a", (("x", "inf"), ("y", "None"), ("z", "True"))),)),
        ("tabu(\nseconds=5)", (StageSpec("tabu", (("seconds", 5),)),)),
    ],
)
def test_known_answers(text, stages):
    assert parse(text) == Spec(stages)
    assert parse(str(parse(text))) == Spec(stages)


def test_canonical_text_sorts_parameters():
    assert str(parse("fw( steps = 1000, step='linesearch' ) + swap()")) == "fw(step=linesearch,steps=1000)+swap"
    assert str(parse("a(x='inf',y=inf,z='',v='two words',w=-inf)".replace("w=-inf", "w=-1e999"))) == (
        "a(v='two words',w=-1e999,x='inf',y=inf,z='')"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot read"),
        ("   ", "cannot read"),
        ("+", "cannot read"),
        ("wanda+", "cannot read"),
        ("wanda swap", "cannot read"),
        ("fw(steps=)", "cannot read"),
        ("fw(steps=1", "cannot read"),
        ("fw(steps=1,steps=2)", "cannot read|given twice"),
        ("a\0b", "cannot read"),
        ("(" * 300 + "a" + ")" * 300, "cannot read"),
        ("wanda-swap", "'wanda - swap' is not a stage"),
        ("wanda*2", "is not a stage"),
        ("wanda+(swap+round)", r"'swap \+ round' is not a stage"),
        ("1", "'1' is not a stage"),
        ("'wanda'", "is not a stage"),
        ("+wanda", "is not a stage"),
        ("os.system(x=1)", "is not a stage"),
        ("fw()()", "is not a stage"),
        ("a[0]", "is not a stage"),
        ("fw(1000)", "given by name"),
        ("fw(*x)", "given by name"),
        ("fw(**x)", r"'\*\*' is not allowed"),
        ("fw(x=g())", "'g\\(\\)' is not a plain value"),
        ("fw(x=a.b)", "not a plain value"),
        ("fw(x=-a)", "not a plain value"),
        ("fw(x=[1])", "a list is not allowed"),
        ("fw(x=(1,2))", "a tuple is not allowed"),
        ("fw(x={})", "a dict is not allowed"),
        ("fw(x=1j)", "a complex is not allowed"),
        ("fw(x=b'a')", "a bytes is not allowed"),
        ("fw(x=...)", "a (ellipsis|NoneType|Ellipsis) is not allowed"),
    ],
)
def test_refusals_are_one_line(text, reason):
    with pytest.raises(SpecError, match=reason) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_long_pipeline_is_read():
    assert len(parse("+".join(["swap"] * 500)).stages) == 500


def test_an_endless_pipeline_is_refused_not_a_crash():
    with suppress(SpecError):
        assert len(parse("+".join(["swap"] * 100_000)).stages) == 100_000


names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda x: not iskeyword(x))
values = st.one_of(
    st.text(max_size=12),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    names,
    st.sampled_from(["inf", "None", "True", "nan", "", "a'b", 'a"b', "lambda", "\\", "ﬁ", "ª"]),
)


stage_specs = st.builds(
    lambda name, params: StageSpec(name, tuple(sorted(params.items()))),
    names,
    st.dictionaries(names, values, max_size=4),
)


@given(st.lists(stage_specs, min_size=1, max_size=4).map(lambda stages: Spec(tuple(stages))))
def test_parse_inverts_str(spec):
    back = parse(str(spec))
    assert back == spec
    types = [[type(value) for _, value in stage.params] for stage in spec.stages]
    assert types == [[type(value) for _, value in stage.params] for stage in back.stages]  # 1, 1.0 and True differ


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_refused(text):
    with suppress(SpecError):
        assert parse(str(parse(text))) == parse(text)


def test_solvers_are_found_without_what_only_a_gpu_or_an_extra_needs():
    code = "import sys; sys.modules |= dict.fromkeys(('triton', 'pyscipopt')); from fwbench import pipeline; "
    code += "print(len(pipeline.load_solvers()), pipeline.resolve('fast').text)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout.split()[0]) >= 20


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", [3]),
        ("7,", [7]),
        ("0-1", [0, 1]),
        ("3,7,100-102", [3, 7, 100, 101, 102]),
        (" 4 , 1 - 2,2", [1, 2, 4]),
        ("9-9,0", [0, 9]),
    ],
)
def test_numbers(text, found):
    assert numbers(text) == found


@pytest.mark.parametrize(
    "text", ["", ",", "1,,2", "3-1", "1-", "-4", "x", "1.5", "all", "1-2-3", "0-99999999999", "1;2"]
)
def test_what_is_no_list_of_numbers(text):
    with pytest.raises(SpecError) as error:
        numbers(text)
    assert str(error.value) == f"{text!r} is no list of numbers from 0 such as 3,7,100-120"

"""Options that several commands have, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from click.decorators import FC

from fwbench.spec import SEEDS, SpecError
from fwbench.spec import numbers as read_numbers


def size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """``4G``, ``512M`` or bytes."""
    if text is None:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    digits, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        return int(float(digits) * unit)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a size such as 4G or 512M") from None


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[int] | None:
    """``3,7,100-120``."""
    try:
        return None if text is None else read_numbers(text)
    except SpecError as error:
        raise click.BadParameter(str(error)) from None


def _usable(_: click.Context, __: click.Parameter, device: str) -> str:
    from fwbench.machine import device_error

    if reason := device_error(device):
        raise click.BadParameter(reason)
    return device


SEED = click.IntRange(SEEDS.start, SEEDS.stop - 1)
SECONDS = click.FloatRange(min=0, min_open=True)
PATH = click.Path(path_type=Path)
EXISTING = click.Path(path_type=Path, exists=True)

store = click.option("--store", "path", default="fwbench.sqlite", show_default=True, type=PATH)
jobs = click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Workers at a time.")
device = click.option(
    "--device", default="cpu", show_default=True, callback=_usable, help="Where torch computes, such as cuda."
)
pattern = click.option("--pattern", help="Pattern in place of the problem's own.")
seed = click.option("--seed", default=0, show_default=True, type=SEED)
folder = click.option("--folder", type=PATH, help="Registry to use. [default: the suite's]")
trust = click.option(
    "--trust-remote-code", is_flag=True, help="Run the Python code that comes with the model, if it has some."
)
stream = click.option(
    "--stream/--whole",
    default=None,
    help="Read the model block by block, or load it whole. [default: --stream where it would take 60 % of free memory]",
)
save_dtype = click.option(
    "--save-dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Of the output; auto for the input's own.",
)
evaluate = click.option(
    "--evaluate",
    default="lee-heldout",
    show_default=True,
    callback=lambda _, __, text: "" if text == "none" else text,
    help="Text of the perplexities, PROTOCOL=TEXT such as wikitext2=test.parquet, or 'none'.",
)
places = click.option(
    "--problem",
    "places",
    multiple=True,
    metavar="PATH",
    help="Where problems are now: a file, a folder or a collection; may be repeated. [default: where they were read]",
)


def dtype(default: str) -> Callable[[FC], FC]:
    """Precision of the solvers; certificates and errors are float64 always."""
    return click.option("--dtype", default=default, show_default=True, type=click.Choice(["float32", "float64"]))

"""The dense model beside a pruned one: what a folder says of the model that it came from, and how that is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fwbench import machine, protocols
from fwbench.notes import note
from fwbench.perplexity import TOKENS, Perplexity, Progress, perplexity
from fwbench.problems import resources
from fwbench.problems.models import Model, fingerprint, load_model
from fwbench.problems.structure import ModelError
from fwbench.problems.text import SEQUENCE, load_text
from fwbench.protocols import Measured, Passages
from fwbench.pruning.errors import PruneError
from fwbench.pruning.output import SUMMARY
from fwbench.pruning.plan import HELD_OUT
from fwbench.pruning.walk import by_block
from fwbench.report.text import plural

FIGURES = {"value", "word_perplexity", "byte_perplexity"}  # of a measurement; its other fields say of what


def summary_of(model: Path | str) -> dict[str, Any] | None:
    """What ``fwbench prune`` wrote of a folder, or None of a model that it did not write. Raises PruneError."""
    path = Path(model) / SUMMARY
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found) if {"model", "model_sha256", "perplexity"} <= found.keys() else None
    except (OSError, ValueError, AttributeError) as error:
        raise PruneError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def dense_model(
    folder: Path | str,
    summary: Mapping[str, Any] | None,
    name: str = "",
    trust_remote_code: bool = False,
    stream: bool | None = None,
) -> Model | None:
    """What :func:`find_dense` finds; a note where a folder's is not to be had."""
    model = find_dense(folder, summary, name, trust_remote_code, stream)
    if model is None and summary is not None:
        note(
            f"{folder}: {summary['model']}, from which it was pruned, is not to be had here, so its line is missing; "
            "give --dense"
        )
    return model


def find_dense(
    folder: Path | str,
    summary: Mapping[str, Any] | None,
    name: str = "",
    trust_remote_code: bool = False,
    stream: bool | None = None,
) -> Model | None:
    """The model that a folder was pruned from, loaded; None where it is not to be had.

    Args:
        summary: of the folder, from :func:`summary_of`; None where it is no folder of ``fwbench prune``.
        name: as a person gave it, which is taken, with a note if it is another model; empty to look for it: beside the
            folder, here, and on the hub.

    Raises:
        ModelError, ResourceError: the one that was named cannot be loaded.
    """
    if summary is None:
        return load_model(name, trust_remote_code, stream) if name else None
    path, source = Path(folder), str(summary["model"])
    if name:
        places = [name]
    elif source in {resource.spec for resource in resources.KNOWN.values()}:
        places = [key for key, resource in resources.KNOWN.items() if resource.spec == source]
    else:
        places = [str(place) for place in (path.absolute().parent / source, Path(source)) if place.exists()]
        places += [source.partition("@")[0]] if "/" in source else []
    for place in places:
        try:
            model = load_model(place, trust_remote_code, stream)
        except (ModelError, resources.ResourceError):
            if name:
                raise
            continue
        same = fingerprint(model) == summary["model_sha256"]
        if name and not same:
            note(f"{name}: not the model that {folder} was pruned from, which is {source}")
        if name or same:
            return model
        del model
        machine.release_memory()
    return None


def perplexities(
    name: str,
    measure: Callable[[Model], Perplexity],
    dense: str = "",
    trust_remote_code: bool = False,
    stream: bool | None = None,
) -> tuple[Perplexity, Perplexity | None]:
    """Of a model, and of the dense one beside it if it was pruned, or if one is named.

    Args:
        name: of the model, as :func:`fwbench.problems.models.load_model` takes it.
        measure: of a loaded model.
        dense: see :func:`find_dense`.

    Raises:
        PruneError, ModelError, TextError: one line, what is wrong.
    """
    summary, other = summary_of(name), None
    if dense:  # first, so that what is wrong with the name is said before the work
        other = _of(dense_model(name, summary, dense, trust_remote_code, stream), measure)
    found = measure(load_model(name, trust_remote_code, stream))
    machine.release_memory()
    if summary is not None and not dense:
        other = _recorded(summary, found) or _of(dense_model(name, summary, "", trust_remote_code, stream), measure)
    return found, other


def _of(model: Model | None, measure: Callable[[Model], Perplexity]) -> Perplexity | None:
    found = measure(model) if model else None
    del model
    machine.release_memory()
    return found


def _recorded(summary: Mapping[str, Any], found: Perplexity) -> Perplexity | None:
    """What was measured of the dense model when it was pruned, if that was of the same text, windows and tokens."""
    known, own = summary["perplexity"]["dense"], json.loads(json.dumps(asdict(found)))
    if known is None or known.keys() != own.keys() or any(known[key] != own[key] for key in own.keys() - FIGURES):
        return None
    return replace(found, **{key: known[key] for key in known.keys() & FIGURES})


def measure(
    text: str | None = None,
    protocol: str | None = None,
    length: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Callable[[Model], Perplexity]:
    """How to measure a model, with the text read; what is None is the protocol's, or the default."""
    source = protocols.load(protocol, text or "") if protocol else load_text(text or HELD_OUT)

    def of(model: Model) -> Perplexity:
        through = by_block(model, device, progress) if model.stream else None
        if through is None:
            model.network.to(device)
        if isinstance(source, Passages):
            return protocols.measure(model, source, length, progress, through)
        return perplexity(model, source, length or SEQUENCE, stride, tokens or TOKENS, progress, through)

    return of


def as_json(found: Perplexity) -> dict[str, Any]:
    """A measurement's fields, with ``perplexity`` for its value."""
    details = asdict(found)
    return {"perplexity": details.pop("value"), **details}


def said(name: str, found: Perplexity, dense: Perplexity | None) -> Iterator[str]:
    """A measurement and the dense model's, line by line: a table where a protocol has several figures."""
    if not isinstance(found, Measured):
        yield f"{name}: perplexity {found}"
        if dense:
            yield f"dense: perplexity {dense}"
        return
    most = "" if found.words is None else "at most "
    begins = f", begun with {' '.join(found.begins)}" if found.begins else ""
    yield (
        f"{found.text}: {found.rows:,} rows, sha256 {found.text_sha256[:16]}; {found.tokens:,} tokens{begins}, sha256 "
        f"{found.tokens_sha256[:16]}; {plural(found.windows, 'window')} of {most}{found.length} tokens, "
        f"{found.scored:,} scored"
    )
    figures = {"token": "value", "word": "word_perplexity", "byte": "byte_perplexity"}
    shown = {f"perplexity a {unit}": key for unit, key in figures.items() if getattr(found, key) is not None}
    rows = {name: found} | ({"dense": dense} if dense else {})
    lines = [[who, *(shortest(getattr(row, key)) for key in shown.values())] for who, row in rows.items()]
    yield from aligned([["", *shown], *lines])


def shortest(value: float) -> str:
    """A perplexity with four decimals, and of what means nothing any more only the size."""
    return f"{value:.4f}" if value < 1e6 else f"{value:.2e}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:<{widths[0]}}", *cells]).rstrip()

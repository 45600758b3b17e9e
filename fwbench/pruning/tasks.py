"""Tasks of lm-eval on a pruned model and the dense one beside it: figures with standard errors, kept with the prune.

lm-eval is the extra ``eval``. Models are those that :func:`fwbench.problems.models.load_model` gives, in float32.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwbench import machine
from fwbench.problems.checkpoint import reason_of
from fwbench.problems.files import write_atomic
from fwbench.problems.models import Model, load_model
from fwbench.pruning import beside, page
from fwbench.pruning.errors import PruneError
from fwbench.pruning.plan import Progress

FILE, FORMAT = "tasks.json", "fwbench-tasks-1"
EXTRA = "pip install 'fwbench[eval]'"
QUIET = ("lm_eval", "datasets", "httpx", "huggingface_hub")
OFFLINE = ("ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectTimeout")


class TaskError(ValueError):
    """Tasks that cannot be measured; the message is one line."""


@dataclass(frozen=True)
class Asked:
    """What a person asks lm-eval for."""

    tasks: Sequence[str]
    limit: int | None = None  # samples of each task
    fewshot: int | None = None  # None for the task's own
    batch_size: str = "1"  # or auto
    device: str = "cpu"
    include_path: str | None = None  # folder of tasks of one's own


def evaluate(
    name: str, asked: Asked, dense: str = "", trust_remote_code: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Measure tasks on a model, and on the dense one if the model was pruned, or if one is named.

    Args:
        name: of the model, as :func:`fwbench.problems.models.load_model` takes it. Into the folder of one that
            ``fwbench prune`` wrote come ``tasks.json`` and the figures in its report.
        dense: see :func:`fwbench.pruning.beside.dense_model`.
        progress: called with (models done, models in all, what, None).

    Returns:
        by task, what :func:`_joined` makes of it.

    Raises:
        TaskError: lm-eval is not installed, has no such task, cannot get its data, or fails.
        PruneError, ModelError: one line, what is wrong.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise TaskError(f"evaluate measures by lm-eval, which is not installed; {EXTRA}")
    summary = beside.summary_of(name)
    models = {  # the dense one first: what is wrong with its name is said before the work
        "dense": lambda: beside.dense_model(name, summary, dense, trust_remote_code),
        "model": lambda: load_model(name, trust_remote_code),
    }
    results = {}
    for number, (kind, load) in enumerate(models.items()):
        if progress:
            progress(number, len(models), f"{name}: {', '.join(asked.tasks)} ({kind})", None)
        if model := load():
            results[kind] = _measure(model, asked)
        del model
        machine.release_memory()
    found = [results[kind] for kind in ("model", "dense") if kind in results]
    other = (dense or (summary or {}).get("model")) if len(found) > 1 else None
    tasks = {task: _joined(task, found, asked, other) for task in found[0]["results"]}
    if summary is not None:
        _keep(Path(name), summary, tasks)
    return tasks


def report(folder: Path, out: Path) -> Path:
    """Write the page of a model's folder, with its tasks, to another one; the path of its ``index.html``.

    Raises:
        PruneError, ProblemError: no such folder, or a file cannot be written.
    """
    if (summary := beside.summary_of(folder)) is None:
        raise PruneError(f"{folder}: not a folder that fwbench prune or recover wrote")
    for file, text in page.render(summary, kept(folder)).items():
        write_atomic(out / file.replace("report", "index"), text.encode(errors="replace"))
    return out / "index.html"


def kept(folder: Path) -> dict[str, Any]:
    """The tasks that were measured of a pruned folder so far. Raises PruneError."""
    path = folder / FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["tasks"]) if path.is_file() else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(f"{path}: cannot be read ({reason_of(error)}); remove it to begin anew") from None


def said(tasks: Mapping[str, Any], who: str = "pruned") -> Iterator[str]:
    """A table, a line for each task's metric."""
    columns = [who if column == "pruned" else column for column in page.TASKS]
    rows = [columns, *page.task_lines(tasks)]
    filled = [number for number, cells in enumerate(zip(*rows[1:], strict=True)) if any(cells)]
    yield from beside.aligned([[row[number] for number in filled] for row in rows])


def _keep(folder: Path, summary: dict[str, Any], tasks: Mapping[str, Any]) -> None:
    every = kept(folder) | dict(tasks)
    content = {"format": FORMAT, "model_sha256": summary["model_sha256"], "tasks": every}
    write_atomic(folder / FILE, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    for file, text in page.render(summary, every).items():
        write_atomic(folder / file, text.encode(errors="replace"))


def _measure(model: Model, asked: Asked) -> dict[str, Any]:
    """What lm-eval's ``simple_evaluate`` gives."""
    with _quiet():
        try:
            import lm_eval
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise TaskError(f"lm-eval cannot be imported ({reason_of(error)}); {EXTRA}") from None
        if getattr(model.tokenizer, "bos_token_id", None) is getattr(model.tokenizer, "eos_token_id", None) is None:
            raise TaskError(f"{model.label}: its tokenizer has no BOS and no EOS, of which lm-eval needs one")
        manager = TaskManager(include_path=asked.include_path)
        if missing := [task for task in asked.tasks if not manager.match_tasks([task])]:
            raise TaskError(
                f"{missing[0]}: lm-eval has no such task; lm_eval ls tasks has them, --include-path your own"
            )
        batch_size = int(asked.batch_size) if asked.batch_size.isdigit() else asked.batch_size
        try:
            model.network.to(asked.device)
            language_model = HFLM(pretrained=model.network, tokenizer=model.tokenizer, batch_size=batch_size)
            found = lm_eval.simple_evaluate(
                language_model,
                tasks=list(asked.tasks),
                num_fewshot=asked.fewshot,
                limit=asked.limit,
                task_manager=manager,
            )
        except Exception as error:  # of its data, of its metrics: in many ways
            if type(error).__name__ in OFFLINE:
                raise TaskError(
                    f"{', '.join(asked.tasks)}: the data cannot be had ({reason_of(error)}); run the same command "
                    "where there is a network, once: datasets keeps it in its cache"
                ) from None
            raise TaskError(f"{model.label}: lm-eval fails ({type(error).__name__}: {reason_of(error)})") from error
    return dict(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what lm-eval, datasets and the git that they ask say: progress and advice."""
    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, QUIET):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        terminal = os.dup(2)  # that of child processes
        stack.callback(os.close, terminal)
        stack.callback(os.dup2, terminal, 2)
        os.dup2(nowhere.fileno(), 2)
        yield


def _joined(task: str, found: Sequence[Mapping[str, Any]], asked: Asked, dense: str | None) -> dict[str, Any]:
    """A task's figures: of the model, of the dense one, and the difference with its own standard error."""
    samples = found[0].get("n-samples", {}).get(task, {})
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "version": found[0]["versions"].get(task),
        "samples": samples.get("effective"),
        "of": samples.get("original"),
        "fewshot": found[0]["n-shot"].get(task),
        "limit": asked.limit,
        "batch_size": asked.batch_size,
        "device": asked.device,
        "dense": dense,
        "metrics": {
            metric.removesuffix(",none"): {
                "pruned": figure,
                "dense": _figures(found[1], task).get(metric) if len(found) > 1 else None,
                "difference": _difference(found, task, metric) if len(found) > 1 else None,
            }
            for metric, figure in _figures(found[0], task).items()
        },
    }


def _figures(found: Mapping[str, Any], task: str) -> dict[str, dict[str, float | None]]:
    """Values and standard errors by ``metric,filter``."""
    figures = {}
    for key, value in found["results"][task].items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = found["results"][task].get(f"{metric}_stderr,{kind}")
            known = isinstance(error, int | float) and math.isfinite(error)
            figures[key] = {"value": float(value), "stderr": float(error) if known else None}
    return figures


def _difference(found: Sequence[Mapping[str, Any]], task: str, metric: str) -> dict[str, float] | None:
    """The model's mean minus the dense one's over the same samples, where the metric is a mean over samples."""
    name, _, kind = metric.partition(",")
    own, other = (
        {sample["doc_id"]: sample.get(name) for sample in each["samples"].get(task, []) if sample["filter"] == kind}
        for each in found
    )
    pairs = [(own[number], other[number]) for number in own if number in other]
    if len(pairs) < 2 or not all(isinstance(value, int | float) for pair in pairs for value in pair):
        return None
    apart = [first - second for first, second in pairs]
    value = _figures(found[0], task)[metric]["value"]
    if value is None or not math.isclose(statistics.fmean(first for first, _ in pairs), value, abs_tol=1e-9):
        return None
    return {"value": statistics.fmean(apart), "stderr": statistics.stdev(apart) / math.sqrt(len(apart))}

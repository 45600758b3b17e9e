"""Commands about whole models: prune, perplexity."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from fwbench import notes
from fwbench.cli import options
from fwbench.cli.options import PATH, SECONDS
from fwbench.cli.progress import progress


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, type=PATH, help="Folder for the pruned model.")
@click.option("--pattern", required=True, help="0.6 (of each row), 2:4 or unstructured:0.6.")
@click.option("-s", "--solver", "spec", default="", help="Solver spec. [default: the preset 'fast', or wanda+swap]")
@click.option("--text", default="lee", show_default=True, help="Calibration: a file, folder, pypi: resource or name.")
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(min=1), help="Of calibration.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(min=2), help="Tokens of a sequence.")
@click.option(
    "--shrink",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Draw the inputs' correlations towards zero by this part: less error on other texts.",
)
@click.option(
    "--sequential/--one-shot",
    default=True,
    show_default=True,
    help="Calibrate each block with those before it pruned, or all on the dense model.",
)
@click.option(
    "--correct",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Part of what arrives wrong from pruned blocks that each layer makes good; in sequence only.",
)
@click.option(
    "--ridge",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of what is made good, in mean diagonals of the Gram matrix.",
)
@options.device
@options.dtype("float32")
@click.option(
    "--save-dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Of the output; auto for the input's own.",
)
@click.option(
    "--skip", default="", help="Regular expression: layers whose name, or path in the model, it finds stay dense."
)
@click.option("--time-limit", type=SECONDS, help="Seconds for each layer.")
@options.seed
@click.option("--evaluate", default="lee-heldout", show_default=True, help="Text of the perplexities, or 'none'.")
@options.trust
@options.stream
def prune(
    model: str,
    output: Path,
    pattern: str,
    spec: str,
    text: str,
    tokens: int,
    length: int,
    shrink: float,
    sequential: bool,
    correct: float,
    ridge: float,
    device: str,
    dtype: str,
    save_dtype: str,
    skip: str,
    time_limit: float | None,
    seed: int,
    evaluate: str,
    trust_remote_code: bool,
    stream: bool | None,
) -> None:
    """Prune a causal language model into a folder that transformers loads as it is.

    The folder appears when it is complete; a run that was killed goes on where it was. Zero-shot tasks are for lm-eval:
    lm_eval --model hf --model_args pretrained=FOLDER --tasks hellaswag,arc_easy
    """
    from fwbench.pruning import Options
    from fwbench.pruning import prune as run
    from fwbench.report.text import perplexity as said
    from fwbench.report.text import plural

    options = Options(
        pattern=pattern,
        spec=spec,
        text=text,
        tokens=tokens,
        length=length,
        shrink=shrink,
        sequential=sequential,
        correct=correct,
        ridge=ridge,
        device=device,
        dtype=dtype,
        save_dtype=save_dtype,
        skip=skip,
        time_limit=time_limit or float("inf"),
        seed=seed,
        evaluate="" if evaluate == "none" else evaluate,
        trust_remote_code=trust_remote_code,
        stream=stream,
    )
    with progress() as report:
        summary = run(model, output, options, report)
    totals, found = summary["totals"], summary["perplexity"]
    click.echo(f"{output}: {totals['pruned']:,} of {totals['weights']:,} weights in {totals['layers']} layers are zero")
    if totals["ratio_to_wanda"] is not None:
        click.echo(f"layer error {totals['ratio_to_wanda']:.4f} of Wanda's")
    if dense := found["dense"]:
        windows = f"{plural(dense['windows'], 'window')} of {dense['length']} tokens"
        before, after = said(dense["value"]), said(found["pruned"]["value"])
        click.echo(f"perplexity {before} dense, {after} pruned ({dense['text']}, {windows})")


@click.command()
@click.argument("model")
@click.option("--text", default="lee-heldout", show_default=True, help="A file, folder, pypi: resource or name.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(min=2), help="Tokens of a window.")
@click.option("--stride", type=click.IntRange(min=1), help="Tokens between two windows. [default: the length]")
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(min=2), help="Evaluated at most.")
@click.option("--json", "as_json", is_flag=True, help="All that is known of the measurement, as one JSON object.")
@options.trust
@options.stream
def perplexity(
    model: str,
    text: str,
    length: int,
    stride: int | None,
    tokens: int,
    as_json: bool,
    trust_remote_code: bool,
    stream: bool | None,
) -> None:
    """Measure a model's perplexity on a text: whole windows only, each token scored once, always the same number."""
    from fwbench.perplexity import perplexity as measure
    from fwbench.problems.models import load_model
    from fwbench.problems.text import load_text
    from fwbench.pruning.walk import by_block

    source = load_text(text)
    said: list[str] = []
    with progress() as report, notes.heard(said.append), contextlib.redirect_stdout(sys.stderr):  # a model's prints
        loaded = load_model(model, trust_remote_code, stream)
        through = by_block(loaded, progress=report) if loaded.stream else None
        found = measure(loaded, source, length, stride, tokens, report, through)
    if as_json:
        details = asdict(found)
        known = {"model": model, "perplexity": details.pop("value"), **details, "notes": said}
        click.echo(json.dumps(known, indent=1))
    else:
        click.echo(f"{model}: perplexity {found}")

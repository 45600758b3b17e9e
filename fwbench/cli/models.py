"""Commands about whole models: prune, recover, perplexity, evaluate."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from fwbench import notes
from fwbench.cli import options
from fwbench.cli.options import PATH, SECONDS
from fwbench.cli.progress import progress


@click.command()
@click.argument("model")
@click.option("-o", "--output", required=True, type=PATH, help="Folder for the pruned model.")
@click.option("--pattern", required=True, help="0.6 (of each row), 2:4, transposable:2:4 or unstructured:0.6.")
@click.option("-s", "--solver", "spec", default="", help="Solver spec. [default: the preset fast]")
@click.option(
    "--allocation",
    default="uniform",
    show_default=True,
    help="Of the zeros to layers: uniform, owl, alpha, neuroal or exact, such as 'owl(M=5,spread=0.08)'.",
)
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
    "--true-sequential/--block-sequential",
    default=None,
    help="In sequence: calibrate each layer with those before it in its block pruned too, or a block's layers at once. "
    "[default: true where the solver updates weights]",
)
@click.option(
    "--correct",
    default=0.3,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Part of what arrives wrong from pruned blocks that each layer makes good; in sequence only.",
)
@click.option(
    "--residual",
    type=click.FloatRange(0, 1),
    help="The same of what is wrong in the residual stream, by layers that write to it. [default: 0.3 where the "
    "solver updates weights, else 0]",
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
@options.save_dtype
@click.option(
    "--skip", default="", help="Regular expression: layers whose name, or path in the model, it finds stay dense."
)
@click.option("--time-limit", type=SECONDS, help="Seconds for each layer.")
@options.seed
@options.evaluate
@options.trust
@options.stream
def prune(
    model: str,
    output: Path,
    pattern: str,
    spec: str,
    allocation: str,
    text: str,
    tokens: int,
    length: int,
    shrink: float,
    sequential: bool,
    true_sequential: bool | None,
    correct: float,
    residual: float | None,
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

    The folder appears when it is complete; a run that was killed goes on where it was. Zero-shot tasks: fwbench
    evaluate FOLDER --tasks hellaswag,arc_easy
    """
    from fwbench.pruning import Options
    from fwbench.pruning import prune as run
    from fwbench.report.text import perplexity as said
    from fwbench.report.text import plural

    options = Options(
        pattern=pattern,
        spec=spec,
        allocation=allocation,
        text=text,
        tokens=tokens,
        length=length,
        shrink=shrink,
        sequential=sequential,
        true_sequential=true_sequential,
        correct=correct,
        residual=residual,
        ridge=ridge,
        device=device,
        dtype=dtype,
        save_dtype=save_dtype,
        skip=skip,
        time_limit=time_limit or float("inf"),
        seed=seed,
        evaluate=evaluate,
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
@click.argument("pruned")
@click.option("--against", default="", help="The dense model. [default: that from which the folder was pruned]")
@click.option("-o", "--output", required=True, type=PATH, help="Folder for the recovered model.")
@click.option("--text", default="lee", show_default=True, help="To train on: a file, folder, pypi: resource or name.")
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(min=1), help="Of that text.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(min=2), help="Tokens of a sequence.")
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(min=1), help="Over the fitted sequences.")
@click.option(
    "--rate",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of Adam's steps, in units of a layer's root mean square weight; it falls to 0.",
)
@click.option(
    "--unit",
    default="block",
    show_default=True,
    type=click.Choice(["block", "parts"]),
    help="What is trained at once: a block, or its attention and MLP one after the other, each on its own output.",
)
@options.device
@options.save_dtype
@click.option(
    "--skip", default="", help="Regular expression: layers whose name, or path in the model, it finds stay as they are."
)
@options.seed
@options.evaluate
@options.trust
@options.stream
def recover(pruned: str, output: Path, **given: Any) -> None:
    """Train the weights that pruning kept, block by block, to give what the dense model's blocks give.

    Pruned weights stay zero. PRUNED is a folder of fwbench prune, or any model with zeros beside --against; every
    eighth sequence is held out and chooses each block's best epoch. The folder appears when it is complete; a run that
    was killed goes on where it was.
    """
    from fwbench.pruning import Recovery
    from fwbench.pruning import recover as run
    from fwbench.report.text import percent, plural
    from fwbench.report.text import perplexity as said

    recovery = Recovery(**given)
    with progress() as report:
        summary = run(pruned, output, recovery, report)
    totals, found = summary["totals"], summary["perplexity"]
    click.echo(f"{output}: {totals['weights'] - totals['pruned']:,} kept weights in {totals['layers']} layers trained")
    before, after = (percent(value) for value in totals["held_out"])
    click.echo(f"blocks' mean error on held-out sequences {before} pruned, {after} recovered")
    if dense := found["dense"]:
        values = ", ".join(f"{said(each['value'])} {kind}" for kind, each in found.items())
        windows = f"{plural(dense['windows'], 'window')} of {dense['length']} tokens"
        click.echo(f"perplexity {values} ({dense['text']}, {windows})")


@click.command()
@click.argument("model")
@click.option(
    "--text", help="A file, folder, pypi: resource or name. [default: lee-heldout, or the protocol's, from the hub]"
)
@click.option("--protocol", help="Text, windows and count as the field has them: wikitext2, c4 or lm-eval-wikitext.")
@click.option("--length", type=click.IntRange(min=2), help="Tokens of a window. [default: 512, or the protocol's]")
@click.option("--stride", type=click.IntRange(min=1), help="Tokens between two windows. [default: the length]")
@click.option("--tokens", type=click.IntRange(min=2), help="Evaluated at most. [default: 16384]")
@click.option("--dense", default="", help="Model to show beside it. [default: that from which the folder was pruned]")
@options.device
@click.option("--json", "as_json", is_flag=True, help="All that is known of the measurement, as one JSON object.")
@options.trust
@options.stream
def perplexity(
    model: str,
    text: str | None,
    protocol: str | None,
    length: int | None,
    stride: int | None,
    tokens: int | None,
    dense: str,
    device: str,
    as_json: bool,
    trust_remote_code: bool,
    stream: bool | None,
) -> None:
    """Measure a model's perplexity on a text: whole windows only, each token scored once, always the same number.

    A protocol makes it a figure that others have, such as --protocol wikitext2. Of a folder that fwbench pruned, the
    dense model's is shown beside it.
    """
    from fwbench.pruning import beside

    if protocol and (stride or tokens):
        raise click.UsageError("a protocol says which tokens are evaluated; --stride and --tokens are for other texts")
    said: list[str] = []
    with progress() as report, notes.heard(said.append), contextlib.redirect_stdout(sys.stderr):  # a model's prints
        measure = beside.measure(text, protocol, length, stride, tokens, device, report)
        found, other = beside.perplexities(model, measure, dense, trust_remote_code, stream)
    if as_json:
        known = {"model": model, **beside.as_json(found), "dense": other and beside.as_json(other), "notes": said}
        click.echo(json.dumps(known, indent=1))
    else:
        for line in beside.said(model, found, other):
            click.echo(line)


@click.command()
@click.argument("model")
@click.option("--tasks", required=True, help="Of lm-eval, such as hellaswag,arc_easy.")
@click.option("--limit", type=click.IntRange(min=1), help="Samples of each task. [default: all]")
@click.option("--fewshot", type=click.IntRange(min=0), help="Examples before each sample. [default: the task's own]")
@click.option("--batch-size", default="1", show_default=True, help="Sequences at a time, or auto.")
@options.device
@click.option("--include-path", type=click.Path(exists=True), help="Folder of tasks of your own, as lm-eval has them.")
@click.option("--dense", default="", help="Model to show beside it. [default: that from which the folder was pruned]")
@click.option("--json", "as_json", is_flag=True, help="All that is known of the tasks, as one JSON object.")
@options.trust
def evaluate(
    model: str,
    tasks: str,
    limit: int | None,
    fewshot: int | None,
    batch_size: str,
    device: str,
    include_path: str | None,
    dense: str,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Measure tasks of lm-eval, with standard errors: pip install 'fwbench[eval]'.

    Of a folder that fwbench pruned, the dense model is measured beside it, and what is found is kept in the folder:
    tasks.json and the report.
    """
    from fwbench.pruning import tasks as measuring

    names = [name for name in tasks.split(",") if name]
    asked = measuring.Asked(names, limit, fewshot, batch_size, device, include_path)
    with progress() as report:
        found = measuring.evaluate(model, asked, dense, trust_remote_code, report)
    if as_json:
        click.echo(json.dumps({"model": model, "tasks": found}, indent=1))
    else:
        for line in measuring.said(found, Path(model).name):
            click.echo(line)

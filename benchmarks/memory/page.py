"""The page of peak memory, from ``memory.csv``, with what an 8B model would take by its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.memory.study import (
    HEADS,
    HIDDEN,
    INNER,
    KEYS,
    LENGTH,
    MEMORY_CSV,
    PATTERN,
    SOLVER,
    TOKENS,
    VOCABULARY,
    Measured,
)
from benchmarks.shared import command
from benchmarks.shared.csv_lines import required
from benchmarks.shared.markdown import table, write_page

CALIBRATION = 16384  # tokens, the command's default
SAMPLES = 64  # passes of the two samples


@dataclass(frozen=True)
class Shape:
    """What cost and memory depend on in a Llama."""

    hidden: int
    inner: int
    keys: int  # outputs of k, and of v
    blocks: int
    vocabulary: int

    @property
    def block(self) -> int:
        """Weights of the linear layers of a block."""
        return 2 * self.hidden**2 + 2 * self.hidden * self.keys + 3 * self.hidden * self.inner

    @property
    def grams(self) -> int:
        """Entries of the Gram matrices of a block's four inputs."""
        return 3 * self.hidden**2 + self.inner**2

    @property
    def products(self) -> int:
        """Multiplications of all rows of a block with their Gram matrices: what judging a mask costs."""
        narrow = (2 * self.hidden + 2 * self.keys + 2 * self.inner) * self.hidden**2
        return narrow + self.hidden * self.inner**2


SMALL = Shape(HIDDEN, INNER, HIDDEN // HEADS * KEYS, 1, VOCABULARY)
LARGE = Shape(4096, 14336, 1024, 32, 128256)  # Llama-3.1-8B


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def estimate(line: Measured) -> list[list[str]]:
    """What the large model would take, from the streamed run of the small one."""
    passes = (line.blocks * SMALL.block + SMALL.grams, LARGE.blocks * (2 * LARGE.block + LARGE.grams))
    forward = line.forward * CALIBRATION / TOKENS * passes[1] / passes[0]
    solve = line.solve * LARGE.blocks * LARGE.products / SMALL.products
    factor = line.peak / (line.block + line.grams)
    peak = factor * (4 * LARGE.block + 8 * LARGE.grams)
    ends = 4 * 2 * LARGE.vocabulary * LARGE.hidden + 4 * CALIBRATION * LARGE.hidden
    masks = 3 * LARGE.block * LARGE.blocks // 8
    return [
        ["a block and its Gram matrices", gigabytes(4 * LARGE.block + 8 * LARGE.grams)],
        [f"peak of a block's pruning, {factor:.2f} times that as measured", gigabytes(peak)],
        ["embedding, head and windows, while windows are scored", gigabytes(ends)],
        ["masks of all blocks as bits, thrice while they are saved", gigabytes(masks)],
        [f"forward passes and Gram matrices, {CALIBRATION:,} tokens", f"{forward / 3600:.1f} h"],
        [f"`{SOLVER}`, with its judging in float64", f"{solve / 3600:.1f} h"],
    ]


def page(lines: Sequence[Measured]) -> str:
    """The report in Markdown."""
    lines = sorted(lines, key=lambda line: (line.blocks, not line.stream))
    rows = [
        [
            str(line.blocks),
            "by block" if line.stream else "whole",
            gigabytes(line.model),
            gigabytes(line.peak),
            f"{line.peak / line.block:.1f}",
            f"{line.peak / (line.block + line.grams):.2f}",
            f"{line.total:.0f} s",
        ]
        for line in lines
    ]
    first, last = lines[0], lines[-1]
    same = {len({line.sha256 for line in lines if line.blocks == blocks}) for blocks in {line.blocks for line in lines}}
    assert same == {1}, "the two ways give different models"
    head = ("blocks", "loaded", "model as float32", "peak", "in blocks", "in blocks with Grams", "seconds")
    return f"""# Memory of a whole model's pruning

Random Llamas with the shapes of TinyLlama-1.1B ({HIDDEN} inputs, {INNER} inner ones, {HEADS} heads, {KEYS} of keys) and
a vocabulary of {VOCABULARY}, bfloat16, a file for each block. `fwbench prune --solver {SOLVER} --pattern {PATTERN}` on
{TOKENS:,} tokens in sequences of {LENGTH}, with perplexity and sample before and after; one thread. The first block is
pruned, the others are like it and only run. *Peak* is the largest resident memory above that of a process which had
just pruned a tiny model (libraries and kernels are not in it). The machine was shared with other work, so seconds are
upper bounds. The numbers are in [memory.csv](memory.csv), by `python -m benchmarks.memory.study`; the page is written
by `python -m benchmarks.memory.page`.

## What a run adds to memory

{table(head, rows, left=2)}
A block has {gigabytes(first.block)} of parameters as float32, its Gram matrices {gigabytes(first.grams)} as float64, of
which that of `down_proj` is {gigabytes(8 * INNER**2)}. Read by block, the peak does not grow with the number of blocks;
loaded whole, it grows with the model. Both ways write the same `model.safetensors`, byte for byte. Beside a block and
its Gram matrices the peak holds the widest of these once more, while it is handed on, and the float64 copies in which
masks are judged.

## An 8B model, estimated and not measured

Shapes of Llama-3.1-8B ({LARGE.hidden} inputs, {LARGE.inner} inner ones, {LARGE.blocks} blocks, a vocabulary of
{LARGE.vocabulary:,}), from the run of {last.blocks} blocks read by block: bytes by shapes and the measured factor,
hours by multiplications at the measured rate of one thread of this shared machine. The evaluations come on top: the two
samples read the whole model {SAMPLES} times.

{table(("what", "estimate"), estimate([line for line in lines if line.stream][-1]))}
By this estimate 8B stay below 32 GB of memory. On a GPU a block, its Gram matrices and the solver's copies lie in the
GPU's memory; none was to be had for this page, so that 12 GB are enough there is not shown.
"""


def main() -> None:
    out = command.study(__spec__, __doc__).parse_args().out
    lines = required(out / MEMORY_CSV, Measured, "benchmarks.memory.study")
    write_page(out, page(lines))


if __name__ == "__main__":
    main()

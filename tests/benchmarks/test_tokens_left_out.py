"""The study of tokens that are left out: its inputs, a line of it written out, and its section from lines by hand."""

from dataclasses import replace

import numpy as np
import pytest
import tiny

from benchmarks.prune import trimmed, trimmed_page
from benchmarks.prune.calibration import weights_by
from benchmarks.shared.csv_lines import append
from fwbench.problem import Problem
from fwbench.problems.extract import batch, grams, named_layers
from fwbench.problems.text import load_text, sequences

TEXT = "the mask keeps what the next layer reads and drops what it does not " * 40


def test_inputs_are_those_of_which_the_gram_matrices_are(tmp_path):
    model, text = tiny.model("llama"), tmp_path / "text.txt"
    text.write_text(TEXT)
    layers = named_layers(model, [1])
    found = trimmed.inputs(model, layers, str(text), 1100)
    sums = grams(model.network, layers, batch(sequences(model.tokenizer, load_text(text), 1100)))
    assert found.keys() == layers.keys()
    for name, X in found.items():
        assert len(X) == 1100
        np.testing.assert_allclose(X.T.astype(float) @ X / 1100, sums[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("out", ["0", "0.1", "first"])
def test_a_line_by_hand(out):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((3, 12)).astype(np.float32)
    X, Y, Z = (rng.standard_normal((1024, 12)).astype(np.float32) for _ in range(3))
    for text in (X, Y, Z):
        text[::512] *= 5
    judges = [gram for text in (X, Y, Z) for gram in trimmed.judges(text)]
    line = trimmed.Bench.of(W, X, judges).line((7, "o_proj", "0.5", "wanda", 3, 1024, out))
    texts = [text[kept] for text in (X, Y, Z) for kept in (slice(None), np.arange(1024) % 512 != 0)]
    energies = [np.square(text.astype(float) @ W.T).sum() for text in texts]
    assert line.first_energy == pytest.approx(1 - energies[1] / energies[0], rel=1e-5)
    if out == "0.1":  # scaled tokens have the largest errors
        assert (line.first_out, line.solved) == (1.0, 2)
        return
    seen = texts[out == "first"].astype(float)
    lost = W - weights_by(Problem("by hand", W, seen.T @ seen / len(seen), "0.5"), "wanda")
    errors = np.array([np.square(text.astype(float) @ lost.T).sum() for text in texts]) / energies
    names = ("calibration", "calibration_rest", "lee_heldout", "lee_heldout_rest", "wikipedia", "wikipedia_rest")
    assert [getattr(line, name) for name in names] == pytest.approx(errors, rel=1e-4)
    assert line.first_out == (out == "first")


def lines(pattern, layer, ratios):
    """Of one layer, with the errors by what is left out."""
    plain = trimmed.Line(7, layer, pattern, "admm", 64, 4096, "0", 1, 0, 0.002, 0.1, 0, 0.2, 0, 0.4, 0)
    found = [replace(plain, out=out, lee_heldout=0.2 * r, wikipedia=0.4 * r * r) for out, r in ratios.items()]
    return [plain, *(replace(line, first_out=0.25) if line.out == "0.1" else line for line in found)]


def test_ratios_are_averaged_geometrically_and_what_is_unfinished_is_left_out(tmp_path):
    assert trimmed_page.section(tmp_path) == ""
    path = tmp_path / trimmed.TRIMMED_CSV
    ratios = {"0.01": 1.0, "0.05": 1.1, "0.1": 1.6, "first": 0.9}
    append(path, lines("0.6", "q_proj", ratios))
    append(path, lines("0.6", "o_proj", {**ratios, "0.1": 0.9}))
    append(path, lines("0.5", "o_proj", ratios))
    text = trimmed_page.section(tmp_path)
    row = "| 0.6 | 4,096 | `admm` | 2.000 | 1.000 / 1.000 | 1.100 / 1.210 | 1.200 / 1.440 | 0.900 / 0.810 |"
    assert [line for line in text.splitlines() if line.startswith("| 0.")] == [row]
    assert "of 6 errors on held-out text 0 are lower" in text
    text = " ".join(text.split())
    changes = ("+0.00 % / +0.00 % without 1 %", "+10.00 % / +21.00 % without 5 %", "+20.00 % / +44.00 % without 10 %")
    assert ", ".join((*changes, "-10.00 % / -19.00 % without the first tokens")) in text
    assert "Of the first tokens of sequences 25 % are among the 10 % that go" in text

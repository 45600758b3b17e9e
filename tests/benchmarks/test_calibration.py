"""The section on calibration samples: means, deviations and orders of lines written by hand."""

from benchmarks.prune import calibration, calibration_layers, calibration_page
from benchmarks.shared.csv_lines import append


def perplexities(folder, method, values):
    lines = [calibration.Line("0.6", method, sample, value, 2 * value) for sample, value in enumerate(values)]
    append(folder / calibration.CALIBRATION_CSV, lines)


def errors(folder, method, layer, values):
    lines = [
        calibration_layers.Line("3", layer, "0.6", method, sample, value / 2, value, value)
        for sample, value in enumerate(values)
    ]
    append(folder / calibration_layers.LAYERS_CSV, lines)


def test_nothing_measured_is_no_section(tmp_path):
    assert calibration_page.section(tmp_path) == ""


def test_mean_deviation_and_wins(tmp_path):
    perplexities(tmp_path, "wanda", [10, 20, 30, 40, 50])  # mean 30, deviation of the sample sqrt(250)
    perplexities(tmp_path, "admm", [5, 21, 5, 5, 5])  # ahead in four
    perplexities(tmp_path, "sparsegpt", [1, 1])  # not all samples yet
    text = calibration_page.section(tmp_path)
    assert "| 0.6 | `wanda` | 30.0 ± 15.8 | – | 60.0 ± 31.6 | – |" in text
    assert "| 0.6 | `admm` | 8.2 ± 7.2 | 4 of 5 | 16.4 ± 14.3 | 4 of 5 |" in text
    assert "sparsegpt" not in text
    assert "layer by layer" not in text


def test_layers_are_averaged_geometrically_and_the_order_is_counted(tmp_path):
    errors(tmp_path, "wanda", "q_proj", [0.4] * 5)
    errors(tmp_path, "wanda", "o_proj", [0.1] * 5)  # geometric mean 0.2
    errors(tmp_path, "wanda+swap", "q_proj", [0.1] * 4 + [0.9])
    errors(tmp_path, "wanda+swap", "o_proj", [0.1] * 4 + [0.9])
    errors(tmp_path, "ria", "q_proj", [0.01] * 5)  # o_proj is missing
    text = calibration_page.section(tmp_path)
    cells = ["0.1000 ± 0.0000", "1 of 5", "0.2000 ± 0.0000", "1 of 5", "0.2000 ± 0.0000", "1 of 5"]
    assert f"| 0.6 | `wanda` | {' | '.join(cells)} |" in text  # below swap, whose mean the last sample spoils
    assert "text by text: 1, 1, 1 at 0.6." in text  # swap's mean is above wanda's, as in the last sample alone
    assert "ria" not in text

"""Every causal architecture of transformers in a tiny form: what fwbench gives is right, what it refuses is said."""

import architectures
import pytest
from architectures import DOCUMENT, NAMES, measure

FAMILIES = {  # those that most models are of; each must be exact
    "gpt2", "opt", "gpt_neox", "gptj", "phi", "phi3", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo",
    "falcon", "stablelm",
}  # fmt: skip
MIXTURES = {"mixtral", "qwen3_moe", "olmoe"}  # each must be refused, and exact with its experts left dense
# beside them kinds of blocks, of what they hand on, of what runs in them, and of refusals
SAMPLE = FAMILIES | MIXTURES | {
    "git", "xlm", "openai-gpt", "bamba", "bart", "mamba", "cpmant", "modernbert-decoder", "gemma3n_text",
}  # fmt: skip


def committed() -> dict[str, str]:
    """Lines of the committed table by architecture."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}


@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_architecture(name):
    assert str(measure(name)) == committed()[name]


def test_the_families_are_exact_and_experts_left_dense():
    lines = committed()
    for name in FAMILIES:
        assert lines[name].count("exact") == 3, name
        assert "refused" not in lines[name], name
    for name in MIXTURES:
        left = r"exact, 16 layers (12 weights left out), --skip 'mlp\.experts'"
        assert lines[name].split(" | ")[1:4] == ["exact", left, left]


def test_the_table_is_whole():
    assert set(NAMES) >= SAMPLE
    assert list(committed()) == NAMES
    assert architectures.t.__version__ in DOCUMENT.read_text(encoding="utf-8")

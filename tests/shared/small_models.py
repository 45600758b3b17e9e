"""What the tests of the production path share: tiny models of every family in folders, a text, options, hashes."""

import hashlib
import random
from unittest import mock

import pytest
import tiny
import tiny_architectures

from fwbench.pruning import Options

__all__ = ["tiny_architectures"]
t = tiny.t
FAMILIES = {
    **tiny.CONFIGS,
    "mistral": lambda: t.MistralConfig(**tiny.GROUPED, sliding_window=8),
    "qwen2-mixed": lambda: t.Qwen2Config(  # every block has its own mask
        **tiny.GROUPED, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "mixture": lambda: t.MixtralConfig(**tiny.GROUPED, num_local_experts=2),
}
TOKENS, LENGTH = 250, 48  # the last sequence is shorter


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prune")
    rng = random.Random(0)
    (folder / "text.txt").write_text(" ".join(rng.choice("abc") for _ in range(600)))
    return folder


def saved(place, family):
    """Folder of a model, made once."""
    folder = place / family
    if not folder.exists():
        folder.mkdir()
        with mock.patch.dict(tiny.CONFIGS, FAMILIES):
            tiny.save(folder, family)
    return folder


def options(place, **more):
    given = {"pattern": "0.5", "spec": "wanda", "text": str(place / "text.txt"), "tokens": TOKENS, "length": LENGTH}
    given |= {"correct": 0.0, "residual": 0.0}  # tests of what arrives ask for it
    return Options(**(given | {"evaluate": ""} | more))


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

"""What 2:4 buys at inference: torch's semi-structured tensors beside dense ones, float16, on a CUDA device.

    fwbench prune smollm2 -o FOLDER/pruned --pattern 2:4 --one-shot --device cuda
    python -m benchmarks.gpu.sparse FOLDER/pruned        sparse.csv

Lines: single layers of SmolLM2-135M and of a 7-billion-parameter Llama's sizes (random weights of the pattern), and the
pruned model whole, its logits compared with those of its dense tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.sparse import to_sparse_semi_structured

from benchmarks.gpu.measure import on_host, write
from benchmarks.shared import command

SHAPES = ((576, 576), (1536, 576), (576, 1536), (4096, 4096), (11008, 4096), (4096, 11008))
TOKENS = (8, 256, 4096, 16384)
CALLS, REPEATS = 20, 10


def microseconds(work: Callable[[], Any], calls: int) -> float:
    """Of one of the ``calls`` of ``work``, as Python launches them."""
    return 1e6 * on_host(work, REPEATS) / calls


def layer(rows: int, n: int, tokens: int) -> dict[str, Any]:
    """Microseconds of ``x Wᵀ``, dense and semi-structured."""
    W = torch.randn(rows, n, dtype=torch.float16, device="cuda").reshape(rows, n // 4, 4)
    W = W.scatter(2, W.abs().topk(2, dim=2, largest=False).indices, 0).reshape(rows, n)
    x = torch.randn(tokens, n, dtype=torch.float16, device="cuda")
    sparse = to_sparse_semi_structured(W)
    dense_us, sparse_us = (
        microseconds(lambda weight=weight: [torch.nn.functional.linear(x, weight) for _ in range(CALLS)], CALLS)
        for weight in (W, sparse)
    )
    exact, found = (x.double() @ W.double().T), torch.nn.functional.linear(x, sparse).double()
    return {
        "what": "layer", "rows": rows, "n": n, "tokens": tokens, "dense_us": dense_us, "sparse_us": sparse_us,
        "ratio": dense_us / sparse_us, "relative_error": float((found - exact).norm() / exact.norm()),
        "dense_bytes": W.numel() * 2, "sparse_bytes": sum(t.numel() * t.element_size() for t in _parts(sparse)),
    }  # fmt: skip


def _parts(sparse: Any) -> list[torch.Tensor]:
    return [getattr(sparse, name) for name in ("packed", "meta") if getattr(sparse, name) is not None]


def model(folder: Path, tokens: int) -> dict[str, Any]:
    """A forward pass of a pruned model, dense and semi-structured."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).to("cuda").eval()
    ids = torch.randint(0, network.config.vocab_size, (max(1, tokens // 512), min(tokens, 512)), device="cuda")

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return network.model(ids, use_cache=False).last_hidden_state

    before, dense_us = forward(), microseconds(forward, 1)
    layers = [part for part in network.model.modules() if isinstance(part, torch.nn.Linear)]
    with torch.no_grad():
        for part in layers:
            part.weight = torch.nn.Parameter(to_sparse_semi_structured(part.weight.data), requires_grad=False)
    after, sparse_us = forward(), microseconds(forward, 1)
    return {
        "what": "SmolLM2-135M", "rows": "", "n": "", "tokens": tokens, "dense_us": dense_us, "sparse_us": sparse_us,
        "ratio": dense_us / sparse_us, "relative_error": float((after - before).norm() / before.norm()),
        "dense_bytes": "", "sparse_bytes": "",
    }  # fmt: skip


def main() -> None:
    parser = command.study(__spec__, __doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="of the pruned model; without it, single layers alone")
    given = parser.parse_args()
    lines = [layer(*shape, tokens) for shape in SHAPES for tokens in TOKENS]
    if given.folder:
        lines += [model(given.folder, tokens) for tokens in (512, 16384)]
    write(given.out / "sparse.csv", lines)
    print((given.out / "sparse.csv").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

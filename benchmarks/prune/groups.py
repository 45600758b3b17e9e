"""Groups of layers and names of texts, which the studies of this folder share."""

from __future__ import annotations

CALIBRATION = "lee"
NAMES = {"lee": "`lee` (calibration)", "lee-heldout": "`lee.cor`", "wikipedia": "Wikipedia"}  # as the page shows texts
KINDS = {
    "q, k, v": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate, up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
DEPTHS = {f"blocks {start} to {start + 9}": range(start, start + 10) for start in (0, 10, 20)}


def group_of(layer: str) -> tuple[str, str]:
    """Kind and depth of a layer, by its name ``smollm2.BLOCK.LAYER``."""
    _, block, name = layer.split(".")
    [kind] = [kind for kind, names in KINDS.items() if name in names]
    [depth] = [depth for depth, blocks in DEPTHS.items() if int(block) in blocks]
    return kind, depth

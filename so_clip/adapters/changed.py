"""How many entries of each trained tensor changed, and the tensor's place in the model."""

from collections.abc import Iterable
from typing import NamedTuple

from so_clip.clip.adaptable import Encoder
from so_clip.clip.towers import tower_of

_HEAD = "head."  # names of the classifier's own tensors start with it


class ChangedTensor(NamedTuple):
    """A row of changed.csv.

    Attributes:
        tensor: its name.
        parameters: its entries.
        changed: entries that differ from their start.
        tower: vision | text; "" for a tensor of the classifier's head.
        block: number of its residual block, from input to output; None outside the blocks.
        role: in the role map. For a tensor that the method has added: its name inside the block.
    """

    tensor: str
    parameters: int
    changed: int
    tower: str = ""
    block: int | None = None
    role: str = ""


def in_place(backbone: Encoder, counts: Iterable[tuple[str, int, int]]) -> list[ChangedTensor]:
    """Return rows of changed.csv.

    Args:
        backbone: with the method's tensors.
        counts: name, entries and changed entries of each tensor.
    """
    parts = {part.name: part for part in backbone.known_parts}
    blocks = {
        f"{name}.": block
        for tower in backbone.towers
        for block, (name, _) in enumerate(backbone.named_blocks(tower))
    }
    rows = []
    for name, parameters, changed in counts:
        tower, block, role = "", None, ""
        if name in parts:
            part = parts[name]
            tower, block, role = part.tower, part.block, part.role
        elif not name.startswith(_HEAD):
            tower = tower_of(name)
            start = next((start for start in blocks if name.startswith(start)), "")
            block, role = blocks.get(start), name.removeprefix(start).removesuffix(".weight")
        rows.append(ChangedTensor(name, parameters, changed, tower, block, role))
    return rows

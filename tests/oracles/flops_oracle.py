"""FLOPs of a training step of all attention and MLP matrices, by hand, for one chunk of prompts.

A linear layer of D x 4D, say, takes 2 · 4D² for a row forward, as many for its input's gradient,
and as many for its weight's, where that is dense. N rows, D width, L length, B images, K classes.
"""

from dataclasses import dataclass


@dataclass
class Tower:
    """Sizes of one; `attended` are the pairs of positions that its attention compares."""

    layers: int
    width: int
    rows: int
    attended: int


def reference_step(vision: Tower, text: Tower, others: int) -> int:
    """Every layer does everything."""
    total = others
    for tower in (vision, text):
        square = tower.width**2
        linear = 2 * 12 * square * tower.rows
        first_input = 2 * 3 * square * tower.rows  # embeddings need no gradient
        total += tower.layers * 3 * linear - first_input
        total += tower.layers * (4 + 10) * tower.attended * tower.width
    return total


def engine_step(
    vision: Tower, text: Tower, ends: tuple[int, int], last_attended: int, sampled: int, others: int
) -> int:
    """Sampled gradients; in the last block only the rows that are read go on after attention.

    Args:
        vision, text: text rows are distinct prefixes, and pairs those of padded prompts.
        ends: images and classes, whose rows are read.
        last_attended: pairs in the last block of the vision tower, of one query an image.
        sampled: of sampled products.
        others: of what is not a block.
    """
    total = others + sampled
    for tower, read in zip((vision, text), ends, strict=True):
        square = tower.width**2
        linear = (tower.layers - 1) * 12 * square * tower.rows
        linear += 3 * square * tower.rows + 9 * square * read
        total += 2 * (2 * linear - 3 * square * tower.rows)
    # Attention over prompts is computed twice forward.
    total += text.layers * (4 + 4 + 10) * text.attended * text.width
    pairs = (vision.layers - 1) * vision.attended + last_attended
    return total + (4 + 10) * pairs * vision.width


def last_block_forward(tower: Tower, read: int, attended: int) -> int:
    """The last block of a tower of which `read` rows are read: what computing it again takes."""
    linear = 3 * tower.width**2 * tower.rows + 9 * tower.width**2 * read
    return 2 * linear + 4 * attended * tower.width

"""The memory modes that both towers use, for the record of a run."""

from typing import Any

from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.image_tower import is_read_at_class_token
from so_clip.clip.engine.packed_text import ClassPrompts, PackedPrompts
from so_clip.clip.engine.tower_blocks import reads_class_row, refusal
from so_clip.clip.towers import has_text, text_blocks


def memory_record(model: Any, prompts: ClassPrompts, memory: Memory) -> dict[str, str | None]:
    """Return the memory mode of each tower, and the reasons where it differs from `memory`.

    Args:
        model: an open_clip model.
        prompts: of its classes.
        memory: as asked for; fast | balanced | small.

    Returns:
        `vision_memory`, `text_memory` (None without a text tower), and a reason or None for each;
        and `vision_last_block`: the rows that the last block of the image tower computes.
    """
    read_at_class_token = is_read_at_class_token(model)
    vision = None if read_at_class_token else refusal(model.visual, memory)
    packed = all(isinstance(chunk, PackedPrompts) for chunk in prompts.chunks)  # also without any
    text = None if packed else refusal(text_blocks(model), memory)
    one_row = read_at_class_token or reads_class_row(model.visual)
    return {
        "vision_memory": memory if vision is None else "fast",
        "vision_memory_reason": vision,
        "vision_last_block": "class row" if one_row else "all rows: the output depends on them",
        "text_memory": (memory if text is None else "fast") if has_text(model) else None,
        "text_memory_reason": text,
    }

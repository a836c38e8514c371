"""The weights of the embedded CLIP in the package, or of another one from pretrain_tiny.py."""

from pathlib import Path

import torch
from torch import Tensor

from so_clip.clip.loading.architecture import tiny_card
from so_clip.clip.loading.checkpoint import read_weights
from so_clip.clip.loading.weights_file import TINY_WEIGHTS
from so_clip.errors import InputError
from so_clip.system.paths import ASSETS_DIR

_ROWS, _TOKEN_IDS = "token_embedding.rows", "token_ids"


def embedded_weights(folder: Path = ASSETS_DIR) -> dict[str, Tensor]:
    """Return the embedded CLIP's state dict in float32, with its full token embedding.

    The file stores the embedding of only those tokens that the training captions use. The other
    rows were never trained: they are drawn from the seed in tiny.json, so every token has the same
    embedding on every machine.

    Args:
        folder: a folder from scripts/pretrain_tiny.py --out, with tiny.json and tiny.safetensors.

    Raises:
        InputError: one of the two files is missing, damaged, or not of the pre-training's form.
    """
    card = tiny_card(folder)
    stored = read_weights(folder / TINY_WEIGHTS).state_dict
    vocabulary = card["architecture"]["text_cfg"]["vocab_size"]
    rows, token_ids = stored.pop(_ROWS, None), stored.pop(_TOKEN_IDS, None)
    if rows is None or token_ids is None or not _rows_fit(rows, token_ids, vocabulary):
        raise InputError(
            f"{folder / TINY_WEIGHTS}: must hold {_ROWS} and {_TOKEN_IDS}, one row for each id, "
            f"ids below {vocabulary}. Write the folder again with scripts/pretrain_tiny.py --out."
        )
    state = {name: value.float() for name, value in stored.items()}
    generator = torch.Generator().manual_seed(card["embedding_seed"])
    embedding = torch.randn(vocabulary, rows.shape[1], generator=generator)
    embedding *= card["embedding_std"]
    embedding[token_ids.long()] = rows.float()
    state["token_embedding.weight"] = embedding
    return state


def _rows_fit(rows: Tensor, token_ids: Tensor, vocabulary: int) -> bool:
    if rows.ndim != 2 or token_ids.ndim != 1 or token_ids.is_floating_point():
        return False
    inside = (token_ids >= 0) & (token_ids < vocabulary)
    return len(rows) == len(token_ids) > 0 and bool(inside.all())

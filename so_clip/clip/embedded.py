"""The weights of the embedded CLIP, which ship with the package."""

import torch
from torch import Tensor

from so_clip.clip.architecture import tiny_card
from so_clip.paths import ASSETS_DIR


def embedded_weights() -> dict[str, Tensor]:
    """Return the embedded CLIP's state dict in float32, its token embedding filled up.

    Only the rows of tokens that its training captions used are stored. The others, never trained,
    are drawn again from the seed in tiny.json, so that every token has the same embedding on every
    machine.
    """
    from safetensors.torch import load_file

    card = tiny_card()
    stored = load_file(ASSETS_DIR / "tiny.safetensors", device="cpu")
    rows, token_ids = stored.pop("token_embedding.rows"), stored.pop("token_ids")
    state = {name: value.float() for name, value in stored.items()}
    generator = torch.Generator().manual_seed(card["embedding_seed"])
    vocabulary = card["architecture"]["text_cfg"].get("vocab_size", 49408)
    embedding = torch.randn(vocabulary, rows.shape[1], generator=generator)
    embedding *= card["embedding_std"]
    embedding[token_ids.long()] = rows.float()
    state["token_embedding.weight"] = embedding
    return state

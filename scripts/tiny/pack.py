"""The tiny CLIP: its architecture, and its weights in one small file.

The file stores the token embedding only for tokens of the pre-training captions. The other rows are
drawn from a fixed seed when the model is built, so unknown words still differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from so_clip.system.atomic import write_text

WIDTH, HEAD_WIDTH = 128, 32


def architecture(width: int) -> dict[str, Any]:
    """Return the sizes for an image tower of `width`; text tower and embedding are 3/4 of it.

    Raises:
        ValueError: `width` is not a multiple of HEAD_WIDTH.
    """
    if width < 1 or width % HEAD_WIDTH:
        raise ValueError(f"width {width}: must be a multiple of {HEAD_WIDTH}.")
    text_width = width * 3 // 4
    return {
        "embed_dim": text_width,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": width,
            "head_width": HEAD_WIDTH,
            "layers": 6,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": text_width,
            "heads": _heads(text_width),
            "layers": 4,
        },
        "quick_gelu": False,
    }


def _heads(width: int) -> int:
    """Return the smallest number of equal heads of at most HEAD_WIDTH."""
    fewest = -(-width // HEAD_WIDTH)
    return next(heads for heads in range(fewest, width + 1) if width % heads == 0)


ARCHITECTURE = architecture(WIDTH)
EMBEDDING_SEED, EMBEDDING_STD = 20240, 0.02
MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
ROWS, EMBEDDING = "token_embedding.rows", "token_embedding.weight"


def drawn_embedding(vocabulary: int, width: int, seed: int, std: float) -> torch.Tensor:
    """Return the token embedding before any training, from its own generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocabulary, width, generator=generator) * std


def build_model(seed: int, width: int = WIDTH) -> CLIP:
    """Build an untrained tiny CLIP; open_clip's own draws do not touch the global state."""
    sizes = architecture(width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**sizes)
    text = sizes["text_cfg"]
    with torch.no_grad():
        model.token_embedding.weight.copy_(
            drawn_embedding(text["vocab_size"], text["width"], EMBEDDING_SEED, EMBEDDING_STD)
        )
    return model


def save(model: CLIP, token_ids: list[int], folder: Path, recipe: dict[str, Any]) -> int:
    """Write tiny.safetensors (float16) and tiny.json; return the number of weights stored."""
    tensors = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    ids = torch.tensor(sorted(token_ids), dtype=torch.int32)
    tensors[ROWS] = tensors.pop(EMBEDDING)[ids.long()]
    count = sum(tensor.numel() for tensor in tensors.values())
    tensors["token_ids"] = ids
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "tiny.safetensors", metadata={"format": "pt"})
    (folder / "tiny.safetensors").chmod(0o644)  # safetensors gives access to the owner only
    card = {
        "architecture": architecture(model.visual.conv1.out_channels),
        "token_ids": "stored as tensor 'token_ids' in the safetensors",
        "embedding_seed": EMBEDDING_SEED,
        "embedding_std": EMBEDDING_STD,
        "embedding_draw": "torch.randn(vocab_size, width, generator=torch.Generator()"
        ".manual_seed(embedding_seed)) * embedding_std, then rows token_ids replaced",
        "mean": MEAN,
        "std": STD,
        "weights": count,
        "recipe": recipe,
    }
    # The card comes last: a folder with a card is complete.
    write_text(folder / "tiny.json", json.dumps(card, indent=2) + "\n")
    return count


def load(folder: Path) -> CLIP:
    """Read back what `save` wrote, as float32."""
    card = json.loads((folder / "tiny.json").read_text(encoding="utf-8"))
    model = build_model(seed=0, width=card["architecture"]["vision_cfg"]["width"])
    tensors = load_file(folder / "tiny.safetensors")
    ids, rows = tensors.pop("token_ids").long(), tensors.pop(ROWS)
    tensors[EMBEDDING] = model.token_embedding.weight.detach().clone()
    tensors[EMBEDDING][ids] = rows.float()
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval()

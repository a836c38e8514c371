"""Small models in folders that open_clip reads as `local-dir:PATH`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.small_models import CONFIG, small_clip

PIXELS = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}
WORDS = ["<pad>", "<unk>", "</s>", *["a", "photo", "of", ".", "cat", "dog", "dirt", "road"]]


def write_place(
    folder: Path, file: str = "open_clip_model.safetensors", seed: int = 3, **config: Any
) -> Path:
    """Write a small CLIP as open_clip pushes it to the hub; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": CONFIG | config, "preprocess_cfg": PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    state = small_clip(seed=seed).state_dict()
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of Hugging Face in which each word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | words))
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))

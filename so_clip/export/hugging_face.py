"""A CLIP as a folder for transformers' CLIPModel and CLIPProcessor.

The folder holds plain JSON and safetensors, so writing it does not need transformers.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from open_clip.tokenizer import SimpleTokenizer

from so_clip.clip.backbone import Backbone
from so_clip.clip.pixels import preprocessing_of
from so_clip.errors import InputError
from so_clip.export.sizes import WAY_OUT, tower_sizes

_START, _END = "<|startoftext|>", "<|endoftext|>"
_START_ID, _END_ID = 49406, 49407
FILTERS = {"bilinear": 2, "bicubic": 3}  # in Pillow


def model_config(architecture: Mapping[str, Any], logit_scale: float) -> dict[str, Any]:
    """Return the configuration of a CLIPModel.

    Args:
        architecture: open_clip's configuration, with `quick_gelu` as the model was built.
        logit_scale: the factor from cosines to logits.
    """
    vision, text = (tower_sizes(architecture, tower) for tower in ("vision_cfg", "text_cfg"))
    common = {
        "projection_dim": architecture["embed_dim"],
        "hidden_act": "quick_gelu" if architecture.get("quick_gelu") else "gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture["embed_dim"],
        "logit_scale_init_value": math.log(logit_scale),
        "text_config": common
        | _tower(text, text["heads"])
        | {
            "model_type": "clip_text_model",
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": _START_ID,
            "eos_token_id": _END_ID,
        },
        "vision_config": common
        | _tower(vision, vision["width"] // vision["head_width"])
        | {
            "model_type": "clip_vision_model",
            "num_channels": 3,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
    }


def _tower(sizes: Mapping[str, Any], heads: int) -> dict[str, Any]:
    return {
        "hidden_size": sizes["width"],
        "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": heads,
    }


def processor_files(backbone: Backbone) -> dict[str, str]:
    """Return the text of each file that CLIPProcessor reads, by the file's name.

    Args:
        backbone: gives the preprocessing and the context length.

    Raises:
        InputError: its tokenizer is not CLIP's, or CLIPImageProcessor cannot resize as it does.
    """
    tokenizer = backbone.tokenizer
    if not isinstance(tokenizer, SimpleTokenizer):
        raise InputError(f"{backbone.description} has another tokenizer than CLIP's. {WAY_OUT}")
    preprocess, side = preprocessing_of(backbone), backbone.image_size
    square = {"height": side, "width": side}
    if preprocess.resize_mode == "longest":
        raise InputError(
            f"{backbone.description} fills the rest of the square (resize_mode=longest), and "
            f"CLIPProcessor cannot. {WAY_OUT}"
        )
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if preprocess.resize_mode == "shortest" else square,
        "resample": FILTERS[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    texts = {
        "tokenizer_class": "CLIPTokenizer",
        "processor_class": "CLIPProcessor",
        "model_max_length": backbone.context_length,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        # Any token can pad: the text encoder is causal and is read at the first end token.
        "pad_token": _END,
    }
    ranks: dict[tuple[str, str], int] = tokenizer.bpe_ranks
    # open_clip has other names for the first and the last token.
    special = {_START_ID: _START, _END_ID: _END}
    vocabulary = {special.get(id_, token): id_ for token, id_ in tokenizer.encoder.items()}
    merges = [" ".join(pair) for pair in sorted(ranks, key=lambda pair: ranks[pair])]
    return {
        "preprocessor_config.json": as_json(pixels),
        "tokenizer_config.json": as_json(texts),
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
    }


def as_json(value: Any) -> str:
    """Return the text of a JSON file, as transformers writes it."""
    return json.dumps(value, indent=2) + "\n"

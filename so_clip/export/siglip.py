"""A SigLIP as a folder for transformers' SiglipModel."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from so_clip.clip.backbone import Backbone
from so_clip.clip.pixels import preprocessing_of
from so_clip.errors import InputError
from so_clip.export.hugging_face import FILTERS, as_json
from so_clip.export.sizes import WAY_OUT, tower_sizes


def model_config(backbone: Backbone) -> dict[str, Any]:
    """Return the configuration of a SiglipModel.

    Args:
        backbone: a SigLIP; see `sizes.is_siglip`.

    Raises:
        InputError: SiglipModel has no option for one of its sizes.
    """
    trunk, text_tower = backbone.model.visual.trunk, backbone.model.text
    block, pool = trunk.blocks[0], trunk.attn_pool
    sizes = tower_sizes(backbone.architecture, "text_cfg")
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": trunk.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": block.attn.num_heads,
        "num_channels": 3,
        "image_size": backbone.image_size,
        "patch_size": trunk.patch_embed.patch_size[0],
        "hidden_act": _activation(block.mlp.act),
        "layer_norm_eps": trunk.norm.eps,
        "attention_dropout": 0.0,
    }
    text = {
        "model_type": "siglip_text_model",
        "hidden_size": sizes["width"],
        "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "vocab_size": sizes["vocab_size"],
        "max_position_embeddings": sizes["context_length"],
        "projection_size": backbone.architecture["embed_dim"],
        "hidden_act": _activation(text_tower.transformer.resblocks[0].mlp.gelu),
        "layer_norm_eps": text_tower.ln_final.eps,
        "attention_dropout": 0.0,
        # Prompts are padded to the whole context, and their last token is read.
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    pool_sizes = (pool.num_heads, pool.mlp.fc1.out_features, _activation(pool.mlp.act))
    own_sizes = tuple(
        vision[key] for key in ("num_attention_heads", "intermediate_size", "hidden_act")
    )
    if pool_sizes != own_sizes or pool.norm.eps != trunk.norm.eps:
        raise InputError(
            f"--to transformers: {backbone.description} pools with other sizes than its blocks "
            f"have, and SiglipModel has one option for both. {WAY_OUT}"
        )
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "text_config": text,
        "vision_config": vision,
    }


def _activation(module: Any) -> str:
    is_tanh = "tanh" in (getattr(module, "approximate", ""), type(module).__name__[4:].lower())
    return "gelu_pytorch_tanh" if is_tanh else "gelu"


def pixels_file(backbone: Backbone) -> dict[str, str]:
    """Return the text of the file that SiglipImageProcessor reads, by the file's name.

    Raises:
        InputError: SiglipImageProcessor cannot resize as the backbone does.
    """
    preprocess, side = preprocessing_of(backbone), backbone.image_size
    if preprocess.resize_mode != "squash":
        raise InputError(
            f"--to transformers: {backbone.description} has resize_mode="
            f"{preprocess.resize_mode}, and SiglipImageProcessor only squashes. {WAY_OUT}"
        )
    pixels = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": FILTERS[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    return {"preprocessor_config.json": as_json(pixels)}


def tokenizer_files(backbone: Backbone) -> dict[str, bytes]:
    """Return the files of the tokenizer of transformers inside open_clip's; {} if it has another.

    open_clip cleans a text before this tokenizer reads it, so texts with capitals or punctuation
    may have other tokens in transformers.
    """
    tokenizer: Any = getattr(backbone.tokenizer, "tokenizer", None)
    if not hasattr(tokenizer, "save_pretrained"):
        return {}
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.name: path.read_bytes() for path in files}

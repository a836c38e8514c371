"""Load a backbone: the model of an architecture, its weights, tokenizer and pixels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from so_clip.clip.backbone import Backbone, square_size
from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.loading.architecture_names import TINY, is_image_only, is_place
from so_clip.clip.loading.checkpoint import load_weights, read_weights
from so_clip.clip.loading.embedded import embedded_weights
from so_clip.clip.loading.hub import fetch_pretrained, pretrained_config
from so_clip.clip.loading.sources import place_pixels, place_weights
from so_clip.clip.logit_scale import AUTO, CLIP_SCALE, bias_of, scale_of
from so_clip.clip.pixels import chosen_preprocessing
from so_clip.clip.tokenizers import build_tokenizer, check_text_encoder
from so_clip.errors import InputError
from so_clip.system.paths import ASSETS_DIR

EMBEDDED = "embedded"


def load_backbone(
    architecture: str,
    pretrained: str | None = None,
    checkpoint: Path | str | None = None,
    *,
    logit_scale: float | Literal["auto"] = AUTO,
    seed: int = 0,
    explicit: bool = True,
    memory: Memory = "fast",
    weightless: bool = False,
    preprocessing: Mapping[str, Any] | None = None,
) -> Backbone:
    """Load a backbone in float32 on the CPU, in evaluation mode, with every tensor frozen.

    QuickGELU, OpenAI's activation, is on if the architecture's name ends in "-quickgelu", if the
    published weights were trained with it, or if the file is one of OpenAI's own. Hugging Face's
    config.json beside the file decides if there is one.

    Args:
        architecture: "tiny", an open_clip model name, `hf-hub:ORG/NAME`, `local-dir:PATH`, or
            `timm:NAME[@PIXELS]`, an image model without a text tower.
        pretrained: open_clip's or timm's tag of published weights, "embedded" for tiny's weights,
            or None for random weights. A repository and a folder have weights of their own, and no
            tags.
        checkpoint: a local file with the weights; replaces the weights of `pretrained`. For "tiny"
            also a folder from scripts/pretrain_tiny.py, of any width.
        logit_scale: the factor from cosines to logits; "auto" is that of the weights, and CLIP's
            100 for random weights, for files without one and for image models.
        seed: of random weights; the global random state does not change.
        explicit: make attention's projections nn.Linear modules, see
            `so_clip.clip.engine.attention`, and compute QuickGELU in less memory. Parameters
            named attn.in_proj_weight and attn.in_proj_bias become attn.in_proj.weight and
            attn.in_proj.bias; outputs and state dicts stay the same. False runs both towers as
            open_clip builds them.
        memory: see Backbone.
        weightless: keep random weights, and read or download none, for a model of the same sizes
            and operations. This works on fake tensors.
        preprocessing: values of open_clip's `preprocess_cfg` (resize_mode, interpolation, mean,
            std, fill_color) and `crop_share` in place of the weights' own; see
            `so_clip.clip.pixels`.

    Returns:
        The backbone.

    Raises:
        InputError: the architecture or the weights are unknown, cannot be read or downloaded, or do
            not fit each other.

    Example:
        >>> backbone = load_backbone("ViT-B-16", pretrained="openai")
        >>> class_KD = backbone.encode_text(backbone.tokenize(["a photo of a cat."]))
        >>> image_BD = backbone.encode_image(images_BCHW)  # uint8 pixels, 224 x 224
        >>> logits_BK = backbone.logit_scale * image_BD @ class_KD.T + backbone.logit_bias
    """
    path = None if checkpoint is None else Path(checkpoint).expanduser()
    tiny_folder = ASSETS_DIR if path is None or not path.is_dir() else path
    config = architecture_config(architecture, tiny_folder)
    published = _published(architecture, pretrained)
    weights = _Weights(None, "no weights")
    if not weightless:
        weights = _weights(architecture, pretrained, path, tiny_folder, seed)
    quick_gelu = _needs_quick_gelu(architecture, config, pretrained, published, path, weights)
    has_text = not is_image_only(architecture)
    if has_text:
        check_text_encoder(architecture, config)
    model = build_model(config, quick_gelu, seed)
    scale, bias = CLIP_SCALE, 0.0
    if weights.state is not None:
        load_weights(model, weights.state, source=weights.origin)
        bias = bias_of(model)
        if logit_scale == AUTO and has_text:
            scale = scale_of(model.state_dict()["logit_scale"])
    if explicit:
        explicit_attention(model)
        lean_quick_gelu(model)
    preprocess = chosen_preprocessing(
        architecture, published, path is not None, preprocessing or {}, tiny_folder=tiny_folder
    )
    gelu = ", QuickGELU" if quick_gelu else ""
    backbone = Backbone(
        model,
        build_tokenizer(architecture, config) if has_text else None,
        preprocess.mean,
        preprocess.std,
        scale if logit_scale == AUTO else logit_scale,
        description=f"{architecture} ({weights.origin}{gelu})",
        architecture=config | {"quick_gelu": quick_gelu},
        memory=memory,
        pixels=preprocess.pixels(square_size(model)),
        logit_bias=bias,
    )
    backbone.eval().requires_grad_(False)
    if not weightless and is_place(architecture):
        _check_answers(backbone)
    if not weightless and not has_text:
        _check_features(backbone)
    return backbone


def _check_answers(backbone: Backbone) -> None:
    """Raise InputError unless a model of someone's configuration embeds an image and a text."""
    side = backbone.image_size
    try:
        with torch.no_grad():
            image_BD = backbone.encode_image(torch.zeros(1, 3, side, side, dtype=torch.uint8))
            class_KD = backbone.encode_text(backbone.tokenize([""]))
    except InputError:
        raise
    except Exception as error:  # values that no model has raise almost any exception
        raise InputError(
            f"{backbone.description} cannot embed an image and a text: {type(error).__name__}: "
            f"{error}. Its model_cfg has values that do not fit each other."
        ) from error
    if image_BD.shape != class_KD.shape or not (image_BD + class_KD).isfinite().all():
        raise InputError(
            f"{backbone.description} embeds an image as {_described(image_BD)} and a text as "
            f"{_described(class_KD)}. Both must have the same size, and be finite."
        )


def _check_features(backbone: Backbone) -> None:
    """Raise InputError unless a model of timm turns an image into one row of features."""
    side = backbone.image_size
    try:
        with torch.no_grad():
            image_BD = backbone.encode_image(torch.zeros(1, 3, side, side, dtype=torch.uint8))
        found = str(list(image_BD.shape))
    except Exception as error:  # timm has models of many kinds
        found = f"{type(error).__name__}: {error}"
    if found != str([1, backbone.dimensions]):
        raise InputError(
            f"{backbone.description} does not turn an image of {side} pixels into "
            f"{backbone.dimensions} features: {found}. Choose another size with timm:NAME@PIXELS, "
            "or another model such as backbone=dino_s16."
        )


def _described(embedding_1D: Tensor) -> str:
    finite = int(embedding_1D.isfinite().sum())
    return f"{embedding_1D.shape[-1]} numbers ({finite} finite)"


class _Weights(NamedTuple):
    """Weights to load.

    Attributes:
        state: the state dict; None: random weights.
        origin: for records.
        quick_gelu: whether they need QuickGELU; None: their file does not say it.
    """

    state: dict[str, Tensor] | None
    origin: str
    quick_gelu: bool | None = None


def _weights(
    architecture: str, pretrained: str | None, checkpoint: Path | None, tiny_folder: Path, seed: int
) -> _Weights:
    """Return the weights that the options of `load_backbone` name."""
    if architecture == TINY and checkpoint == tiny_folder:
        return _Weights(embedded_weights(tiny_folder), str(tiny_folder))
    if checkpoint is not None:
        path, origin = checkpoint, str(checkpoint)
    elif pretrained == EMBEDDED:
        return _Weights(embedded_weights(), "embedded weights")
    elif pretrained is not None:
        path, origin = fetch_pretrained(architecture, pretrained), f"{pretrained} weights"
    elif is_place(architecture):
        path, origin = place_weights(architecture), "its own weights"
    else:
        return _Weights(None, f"random weights, seed {seed}")
    found = read_weights(path)
    return _Weights(found.state_dict, origin, found.quick_gelu)


def _published(architecture: str, pretrained: str | None) -> dict[str, Any]:
    if architecture == TINY:
        if pretrained not in (EMBEDDED, None):
            raise InputError(
                f"backbone.pretrained={pretrained}: the tiny backbone has {EMBEDDED} weights only, "
                "or random ones with null."
            )
        return {}
    if is_place(architecture):
        if pretrained is not None:
            raise InputError(
                f"backbone.pretrained={pretrained}: {architecture} has weights of its own. Set "
                "backbone.pretrained=null, or choose other weights with backbone.checkpoint=FILE."
            )
        return place_pixels(architecture)
    return {} if pretrained is None else pretrained_config(architecture, pretrained)


def _needs_quick_gelu(
    architecture: str,
    config: Mapping[str, Any],
    pretrained: str | None,
    published: Mapping[str, Any],
    checkpoint: Path | None,
    weights: _Weights,
) -> bool:
    """Return whether a model computes QuickGELU.

    Raises:
        InputError: two options contradict. A wrong activation would lower accuracy silently.
    """
    if weights.quick_gelu is not None:
        return weights.quick_gelu
    is_named, is_published = bool(config.get("quick_gelu")), bool(published.get("quick_gelu"))
    if checkpoint is None:
        return is_named or (pretrained is not None and is_published)
    if weights.state is None or not published or is_published == is_named:
        return is_named
    base = architecture.removesuffix("-quickgelu")
    raise InputError(
        f"the checkpoint's activation is unclear: backbone.architecture={architecture} is "
        f"{'with' if is_named else 'without'} QuickGELU, pretrained={pretrained} the opposite. "
        f"Set backbone.pretrained=null and backbone.architecture={base}-quickgelu (weights derived "
        f"from OpenAI's) or {base} (LAION's and most others)."
    )

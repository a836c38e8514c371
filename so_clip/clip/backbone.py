"""The backbone: an open_clip model with its tokenizer, for uint8 images and token ids.

Tensor names end in their shape: B images of a batch, K classes, D embedding, C H W pixels, L
tokens.
"""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.half_weights import halve_frozen, unit_half
from so_clip.clip.engine.image_tower import encode_image, in_pieces, most_values
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.loading.architecture import (
    architecture_config,
    build_model,
)
from so_clip.clip.loading.architecture_names import TINY, is_place
from so_clip.clip.loading.checkpoint import load_weights, read_weights
from so_clip.clip.loading.embedded import embedded_weights
from so_clip.clip.loading.hub import fetch_pretrained, pretrained_config
from so_clip.clip.loading.sources import place_pixels, place_weights
from so_clip.clip.logit_scale import AUTO, CLIP_SCALE, bias_of, scale_of
from so_clip.clip.pixels import chosen_preprocessing
from so_clip.clip.roles import Part, role_map
from so_clip.clip.tokenizers import build_tokenizer, check_text_encoder
from so_clip.clip.towers import Tower, image_sides, named_blocks, text_tower
from so_clip.clip.whole_prompts import Tokenizer, decoded, tokenize_whole
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError
from so_clip.system.paths import ASSETS_DIR

EMBEDDED = "embedded"


class Backbone(nn.Module):
    """An open_clip model behind the few calls that adaptation needs.

    Args:
        model: an open_clip CLIP, CustomTextCLIP or CoCa.
        tokenizer: maps texts to token ids [texts, context length]; takes context_length=.
        mean, std: of the pixels, per channel, for pixels in [0, 1].
        logit_scale: the factor from cosines to logits; fixed, never trained.
        logit_bias: added to all logits, as SigLIP was trained; 0 for CLIP. Fixed, never trained.
        description: architecture and origin of the weights, for records.
        architecture: settings that the weights do not show, such as heads and activation.
        memory: fast | balanced | small, what is kept for the backward pass; see
            `so_clip.clip.engine.blocks`.
        pixels: from a test image to what `encode_image` takes. Default: CLIP's test transform.

    Attributes:
        half_weights: whether `use_half_weights` was called.

    Raises:
        InputError: the model takes images that are not square.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        logit_scale: float = 100.0,
        description: str = "",
        architecture: Mapping[str, Any] | None = None,
        memory: Memory = "fast",
        pixels: TestPixels | None = None,
        logit_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.logit_scale = float(logit_scale)
        self.logit_bias = logit_bias
        self.description = description
        self.architecture = dict(architecture or {})
        self.memory = memory
        self.half_weights = False
        self.pixels = pixels or TestPixels(square_size(model))
        self._most_values: int | None = None  # of a layer, for one image
        self._parts: tuple[tuple[str, ...], list[Part]] | None = None
        # Models of Hugging Face read longer prompts than their tokenizers make.
        self.context_length: int = tokenizer([""]).shape[1]
        self._tokenizer = tokenizer
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        """The side of the square images, pixels."""
        return self.pixels.image_size

    def copy(self) -> "Backbone":
        """Return a copy with weights of its own. The tokenizer is shared."""
        return deepcopy(self, {id(self._tokenizer): self._tokenizer})

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return the prompts' token ids, tokens_KL int64, padded to the context length.

        Raises:
            InputError: a prompt is longer than the context.
        """
        return tokenize_whole(self._tokenizer, prompts)

    @property
    def tokenizer(self) -> Tokenizer:
        """open_clip's tokenizer of the architecture."""
        return self._tokenizer

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, or their ids if the tokenizer cannot decode."""
        return decoded(self._tokenizer, tokens)

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Return unit-length image_BD for uint8 pixels of `image_size` x `image_size`.

        The normalisation to unit length is in float32, even under autocast; with half weights it
        is in float16.
        """
        if images_BCHW.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 pixels, not {images_BCHW.dtype}")
        if self._most_values is None and len(images_BCHW):
            self._most_values = most_values(
                self.model, lambda: self._encode_pixels(images_BCHW[:1])
            )
        pieces = in_pieces(self.model, images_BCHW, self._most_values)
        return torch.cat([self._encode_pixels(piece_BCHW) for piece_BCHW in pieces])

    def _encode_pixels(self, images_BCHW: Tensor) -> Tensor:
        pixels_BCHW = images_BCHW.to(self.mean.dtype).div_(255)
        pixels_BCHW = pixels_BCHW.sub_(self.mean).div_(self.std)
        return self._unit(encode_image(self.model, pixels_BCHW, self.memory))

    def encode_text(self, prompts: Tensor | ClassPrompts) -> Tensor:
        """Return unit-length class_KD for token ids from `tokenize`, or for packed prompts."""
        if isinstance(prompts, ClassPrompts):
            return self._unit(prompts(self.model, self.memory))
        return self._unit(self.model.encode_text(prompts))

    def use_half_weights(self) -> None:
        """Turn frozen weights into float16, and compute embeddings in it from now on.

        Call it after an adapter has opened its parameters. See
        `so_clip.clip.engine.half_weights`, also for the errors.
        """
        halve_frozen(self.model)
        self.half_weights = True

    def _unit(self, features: Tensor) -> Tensor:
        if self.half_weights:
            return unit_half(features)
        # Half precision has three digits, and logits are products of these features times 100.
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        return F.normalize(features, dim=-1)

    def role_map(self) -> list[Part]:
        """Return the parts of the model: see so_clip.clip.roles. Call it before an adapter."""
        names = tuple(name for name, _ in self.model.named_parameters())
        if self._parts is None or self._parts[0] != names:
            self._parts = names, role_map(self.model)
        return self._parts[1]

    @property
    def known_parts(self) -> list[Part]:
        """The last role map: that of the model before an adapter. [] if it was never asked for."""
        return [] if self._parts is None else self._parts[1]

    def blocks(self, tower: Tower) -> list[nn.Module]:
        """Return a tower's residual blocks, from input to output.

        Raises:
            InputError: the tower is of no known family, and has none.
        """
        blocks = [block for _, block in named_blocks(self.model, tower)]
        if not blocks:
            raise InputError(
                f"the {tower} tower of {self.description} has no residual blocks to choose from. "
                "Use adapter.position=all, or train only the other tower with adapter.encoder=."
            )
        return blocks

    def block_count(self, tower: Tower) -> int:
        """Return the number of `blocks` in a tower; InputError as for `blocks`."""
        return len(self.blocks(tower))

    @property
    def dimensions(self) -> int:
        """D, the size of the embeddings of both towers."""
        text = text_tower(self.model)
        projection = getattr(text, "text_projection", None)
        if isinstance(projection, nn.Linear):
            return projection.out_features
        if projection is not None:
            return int(projection.shape[1])
        last = getattr(text, "ln_final", None)
        return int(text.output_dim if last is None else last.weight.shape[0])

    @property
    def weights_sha256(self) -> str:
        """SHA-256 over names, shapes and values of the current weights.

        It does not depend on the device or the source file. It takes 1 to 2 seconds per GB. To
        record the origin of the weights, read it before training.
        """
        return sha256_of_weights(self.model.state_dict())


def sha256_of_weights(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        flat_bytes: Any = flat.view(torch.uint8).numpy()
        digest.update(flat_bytes)
    return digest.hexdigest()


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
        architecture: "tiny", an open_clip model name, `hf-hub:ORG/NAME` or `local-dir:PATH`.
        pretrained: open_clip's tag of published weights, "embedded" for tiny's weights, or None
            for random weights. A repository and a folder have weights of their own, and no tags.
        checkpoint: a local file with the weights; replaces the weights of `pretrained`. For "tiny"
            also a folder from scripts/pretrain_tiny.py, of any width.
        logit_scale: the factor from cosines to logits; "auto" is that of the weights, and CLIP's
            100 for random weights and for files without one.
        seed: of random weights; the global random state does not change.
        explicit: make attention's projections nn.Linear modules, see
            `so_clip.clip.engine.attention`, and compute QuickGELU in less memory. Parameters
            named attn.in_proj_weight and attn.in_proj_bias become attn.in_proj.weight and
            attn.in_proj.bias; outputs and state dicts stay the same. False runs both towers as
            open_clip builds them.
        memory: see Backbone.
        weightless: keep random weights, and read or download none, for a model of the same sizes
            and operations. Works on fake tensors.
        preprocessing: values of open_clip's `preprocess_cfg` (resize_mode, interpolation, mean,
            std, fill_color) in place of the weights' own; see `so_clip.clip.pixels`.

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
    quick_gelu = bool(config.get("quick_gelu"))
    if path is None and published and pretrained is not None:
        path = None if weightless else fetch_pretrained(architecture, pretrained)
        quick_gelu |= bool(published.get("quick_gelu"))
    elif path is None and is_place(architecture) and not weightless:
        path, pretrained = place_weights(architecture), "its own"
    state, origin = None, f"random weights, seed {seed}"
    if weightless:
        origin = "no weights"
    elif path is not None and architecture == TINY and path == tiny_folder:
        state, origin = embedded_weights(path), str(path)
    elif path is not None:
        weights = read_weights(path)
        state, origin = weights.state_dict, str(path) if checkpoint else f"{pretrained} weights"
        if checkpoint is not None:
            _check_gelu(architecture, quick_gelu, weights.quick_gelu, pretrained, published)
        if weights.quick_gelu is not None:
            quick_gelu = weights.quick_gelu
    elif pretrained == EMBEDDED:
        state, origin = embedded_weights(), "embedded weights"
    check_text_encoder(architecture, config)
    model = build_model(config, quick_gelu, seed)
    if state is not None:
        load_weights(model, state, source=origin)
    scale, bias = CLIP_SCALE, 0.0
    if state is not None:
        scale, bias = scale_of(model.state_dict()["logit_scale"]), bias_of(model)
    if logit_scale != AUTO:
        scale = logit_scale
    if explicit:
        explicit_attention(model)
        lean_quick_gelu(model)
    preprocess = chosen_preprocessing(
        architecture,
        published,
        checkpoint is not None,
        preprocessing or {},
        tiny_folder=tiny_folder,
    )
    tokenizer = build_tokenizer(architecture, config)
    gelu = ", QuickGELU" if quick_gelu else ""
    description = f"{architecture} ({origin}{gelu})"
    architecture_as_built = config | {"quick_gelu": quick_gelu}
    backbone = Backbone(
        model,
        tokenizer,
        preprocess.mean,
        preprocess.std,
        scale,
        description,
        architecture_as_built,
        memory,
        preprocess.pixels(square_size(model)),
        bias,
    )
    return backbone.eval().requires_grad_(False)


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


def _check_gelu(
    architecture: str,
    quick_gelu: bool,
    stated: bool | None,
    pretrained: str | None,
    published: dict[str, Any],
) -> None:
    """Raise InputError if two options contradict: a wrong activation lowers accuracy silently."""
    if stated is not None or not published or bool(published.get("quick_gelu")) == quick_gelu:
        return
    base = architecture.removesuffix("-quickgelu")
    raise InputError(
        f"the checkpoint's activation is unclear: backbone.architecture={architecture} is "
        f"{'with' if quick_gelu else 'without'} QuickGELU, pretrained={pretrained} the opposite. "
        f"Set backbone.pretrained=null and backbone.architecture={base}-quickgelu (weights derived "
        f"from OpenAI's) or {base} (LAION's and most others)."
    )


def square_size(model: Any) -> int:
    """Return the side of the square images that an open_clip model takes, pixels.

    Raises:
        InputError: the model takes images that are not square.
    """
    height, width = image_sides(model)
    if height != width:
        raise InputError(
            f"the backbone takes images of {height}x{width} pixels; only square ones are supported."
        )
    return height

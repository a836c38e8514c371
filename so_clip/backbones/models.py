"""The list of all models that open_clip builds: towers, sizes, published weights and methods.

It has the image models of conf/backbone, too.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import yaml
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.backbones.methods import refusals
from so_clip.backbones.without_weights import (
    backbone_without_weights,
    bare_model,
    without_numbers,
)
from so_clip.clip.backbone import square_size
from so_clip.clip.loading.architecture import architecture_config
from so_clip.clip.loading.architecture_names import is_image_only
from so_clip.clip.loading.hub import pretrained_tags
from so_clip.clip.towers import (
    CAPTION_DECODER,
    TOWERS,
    Tower,
    has_text,
    named_blocks,
    tower_of,
)
from so_clip.config.compose import choices
from so_clip.errors import InputError

# Not a part of the towers: the scale and bias of logits, and CoCa's caption decoder.
_OUTSIDE = ("logit_", CAPTION_DECODER)
# Sizes of blocks are alike if they have the same divisors of this number: OFT rotates 32 inputs
# together.
_DIVISOR = 32


@dataclass(frozen=True)
class TowerSize:
    """The size of a tower.

    Attributes:
        kind: the class of its model.
        blocks: number of its residual blocks.
        width: features after the last block; None without blocks.
        weights: number of its weights.
    """

    kind: str
    blocks: int
    width: int | None
    weights: int


@dataclass(frozen=True)
class Model:
    """An architecture.

    Attributes:
        architecture: open_clip's name, or `timm:NAME`.
        groups: names of its groups in conf/backbone.
        published: the tags of its published weights.
        image_size: pixels of a side.
        context_length: tokens of a prompt; 0 without a text tower.
        dimensions: of the embeddings.
        vision, text: the towers. The text tower is None if there is none, or its sizes are on the
            hub.
        hub_files: repositories of the hub that have its tokenizer or the sizes of its text tower.
        refused: methods that do not apply. None: unknown, because the model cannot be built.
    """

    architecture: str
    groups: list[str]
    published: list[str]
    image_size: int
    context_length: int
    dimensions: int
    vision: TowerSize
    text: TowerSize | None
    hub_files: list[str]
    refused: list[str] | None

    def record(self) -> dict[str, Any]:
        """Return the model as JSON values."""
        return asdict(self)


def listed(names: Iterable[str], report: Callable[[str], None]) -> Iterator[Model]:
    """Yield the models of architectures.

    Models of the same structure share the methods that apply; one of them is examined.

    Args:
        names: of architectures that open_clip lists.
        report: called with each name before its model is built.
    """
    known: dict[str, list[str]] = {}
    for name in names:
        report(name)
        yield _model(name, known)


@cache
def groups() -> dict[str, dict[str, Any]]:
    """Return the choices of conf/backbone, by name."""
    return {
        file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in choices("backbone")
    }


def groups_of(architecture: str) -> list[str]:
    """Return the names of an architecture's groups in conf/backbone."""
    return [name for name, values in groups().items() if values["architecture"] == architecture]


def local_config(name: str) -> dict[str, Any]:
    """Return an architecture's model_cfg, with the hub's files of this machine.

    If the hub's cache has the sizes of the text tower, `hf_model_name` becomes their folder, so
    that nothing asks the hub.
    """
    config = architecture_config(name)
    if "text_cfg" not in config:
        return config
    text = dict(config["text_cfg"])
    found = text.get("hf_model_name") and try_to_load_from_cache(
        text["hf_model_name"], "config.json"
    )
    if isinstance(found, str):
        text["hf_model_name"] = str(Path(found).parent)
    return config | {"text_cfg": text}


def hub_files(config: dict[str, Any]) -> list[str]:
    """Return the repositories of the hub that a model needs besides its weights."""
    text = config.get("text_cfg", {})
    names = [text.get("hf_model_name"), text.get("hf_tokenizer_name")]
    return [name for name in dict.fromkeys(names) if name and not Path(name).is_dir()]


def tower_size(model: nn.Module, tower: Tower) -> TowerSize:
    """Return the size of a tower of an open_clip model, on any device."""
    weights = sum(
        value.numel()
        for name, value in model.named_parameters()
        if tower_of(name) == tower and not name.startswith(_OUTSIDE)
    )
    blocks = [block for _, block in named_blocks(model, tower)]
    # A block ends with the matrix from its hidden values to its outputs.
    last = [value for value in blocks[-1].parameters() if value.ndim > 1] if blocks else []
    width = last[-1].shape[0] if last else None
    return TowerSize(tower_kind(model, tower), len(blocks), width, weights)


def tower_kind(model: Any, tower: Tower) -> str:
    """Return the class of a tower's model; that of timm or transformers inside open_clip's."""
    if tower == "vision":
        return type(getattr(model.visual, "trunk", model.visual)).__name__
    text = getattr(model, "text", None)
    if text is None:
        return "TextTransformer"  # the parts of CLIP's text tower are the model's own
    is_wrapped = type(text).__name__ == "HFTextEncoder"
    return type(text.transformer if is_wrapped else text).__name__


def _model(name: str, known: dict[str, list[str]]) -> Model:
    config = local_config(name)
    model = built(config)
    refused = None
    if can_build(config):
        structure = _structure(model, config)
        if structure not in known:
            known[structure] = _refused(name, config)
        refused = known[structure]
    return sized(name, config, model, refused)


def built(config: dict[str, Any]) -> Any:
    """Return the bare model; with any text tower if the sizes of the text tower are missing."""
    if can_build(config):
        return bare_model(config)
    return bare_model(config | {"text_cfg": _any_text(config["text_cfg"])})


def can_build(config: dict[str, Any]) -> bool:
    """Return whether the sizes of the text tower, if any, are on this machine; see local_config."""
    encoder = config.get("text_cfg", {}).get("hf_model_name")
    return not encoder or Path(encoder).is_dir()


def sized(name: str, config: dict[str, Any], model: Any, refused: list[str] | None = None) -> Model:
    """Return an architecture's entry in the list, from its bare model."""
    return Model(
        architecture=name,
        groups=groups_of(name),
        published=pretrained_tags(name),
        image_size=square_size(model),
        context_length=int(model.context_length) if has_text(model) else 0,
        dimensions=int(config["embed_dim"] if has_text(model) else model.output_dim),
        vision=tower_size(model, "vision"),
        text=tower_size(model, "text") if has_text(model) and can_build(config) else None,
        hub_files=hub_files(config),
        refused=refused,
    )


def _refused(name: str, config: dict[str, Any]) -> list[str]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    backbone = backbone_without_weights(name, config, mode, cut=True)
    return sorted(refusals(backbone, mode))


def _any_text(text: dict[str, Any]) -> dict[str, Any]:
    """Return a small text tower in place of one that cannot be built; the image tower stays."""
    length = text.get("context_length", 77)
    return {"context_length": length, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


def _structure(model: nn.Module, config: dict[str, Any]) -> str:
    """Return a text that two models share if their parts differ in number and size alone."""
    blocks = tuple(f"{name}." for tower in TOWERS for name, _ in named_blocks(model, tower))
    parts = {
        (
            without_numbers(name),
            type(model.get_submodule(name.rpartition(".")[0])).__name__,
            *(math.gcd(size, _DIVISOR) for size in value.shape if name.startswith(blocks)),
        )
        for name, value in model.named_parameters()
    }
    settings = [
        {key: value for key, value in config[tower].items() if _is_kind(key, value)}
        for tower in ("vision_cfg", "text_cfg")
        if tower in config
    ]
    kinds = [tower_kind(model, tower) for tower in (TOWERS if has_text(model) else TOWERS[:1])]
    towers = [*kinds, type(model).__name__]
    return json.dumps([sorted(parts, key=str), settings, towers], sort_keys=True)


def _is_kind(key: str, value: Any) -> bool:
    """Return whether a value of a configuration chooses a kind, not a size or a name."""
    return isinstance(value, (str, bool)) and "model" not in key and "tokenizer" not in key


def architecture_names() -> list[str]:
    """Return open_clip's names of all architectures, and those of the image models of groups."""
    chosen = {str(values["architecture"]) for values in groups().values()}
    return sorted([*open_clip.list_models(), *filter(is_image_only, chosen)], key=str.lower)


def check_can_build(config: dict[str, Any], name: str) -> None:
    """Refuse a model whose sizes are on the hub and not on this machine.

    Raises:
        InputError: names the repository.
    """
    if not can_build(config):
        encoder = config["text_cfg"]["hf_model_name"]
        raise InputError(
            f"{name}: the sizes of its text encoder are on the hub, {encoder}, and not on this "
            f"machine. With a network, `hf download {encoder} config.json` downloads them."
        )

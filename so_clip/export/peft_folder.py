"""Adapters as a folder for peft, on top of transformers' CLIPModel.

open_clip holds query, key and value as one matrix of 3 D rows, transformers as three matrices. The
update of the one matrix is split: an input side, such as LoRA's A, is the same for all three, and
an output side, such as B, is cut into their rows.

Tensor names end in their shape: R rank, I inputs, O outputs.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.loading.layouts import hugging_face_name
from so_clip.errors import InputError
from so_clip.export.sizes import PEFT
from so_clip.methods.peft_adapter import Peft
from so_clip.methods.peft_layers import NAME, named_layers
from so_clip.system.commands import install

_PARTS = ("q_proj", "k_proj", "v_proj")
FUSED = ".in_proj"
# Tensors of peft's layers that have one entry for each output along a dimension. The kinds without
# an entry here cannot be split.
_OUTPUTS: dict[str, dict[str, int]] = {
    "lora": {"lora_B": 0},
    "dora": {"lora_B": 0, "lora_magnitude_vector": 0},
    "loha": {"hada_w1_a": 0, "hada_w2_a": 0},
    "miss": {"miss_block": 1},
    "oft": {},  # it rotates inputs
}
# peft stores SHiRA's values, and draws their places again by a rule of its own.
_WITHOUT_PLACES = "shira"
WAY_OUT = "Take --to transformers or --to open_clip, which hold the merged weights."


@dataclass(frozen=True)
class LowRankUpdate:
    """The update scale · B A of a linear layer of open_clip's model.

    Attributes:
        layer: the layer's name, such as "transformer.resblocks.0.attn.in_proj".
        down_RI, up_OR: A and B.
        scale: of the product.
        part: 0, 1 or 2 if the update is of query, key or value alone; None for the whole layer.
    """

    layer: str
    down_RI: Tensor
    up_OR: Tensor
    scale: float
    part: int | None = None


def save_lora(
    updates: Iterable[LowRankUpdate], model: nn.Module, folder: Path, base: str | None
) -> None:
    """Write low-rank updates as peft's LoRA.

    Args:
        updates: of different layers or parts.
        model: transformers' CLIPModel with the base's weights.
        folder: gets adapter_config.json and adapter_model.safetensors.
        base: the name of the base on the hub, if it is known.

    Raises:
        InputError: there are two updates of one layer or part.
    """
    peft = library()
    layers: dict[str, LowRankUpdate] = {}
    for update in updates:
        for name, own in _by_layer(update).items():
            if name in layers:
                raise InputError(f"--to {PEFT}: two updates of {name} are no LoRA. {WAY_OUT}")
            layers[name] = own
    ranks = {name: len(update.down_RI) for name, update in layers.items()}
    # alpha / sqrt(rank), as in CLIP-LoRA, is peft's use_rslora.
    alphas = {name: update.scale * math.sqrt(ranks[name]) for name, update in layers.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=True,
        target_modules=list(layers),
        rank_pattern={name: value for name, value in ranks.items() if value != rank},
        alpha_pattern={name: value for name, value in alphas.items() if value != alpha},
        base_model_name_or_path=base,
    )
    tensors = {
        name: {
            f"lora_A.{NAME}.weight": update.down_RI,
            f"lora_B.{NAME}.weight": update.up_OR,
        }
        for name, update in layers.items()
    }
    _save(peft, config, tensors, model, folder)


def _by_layer(update: LowRankUpdate) -> dict[str, LowRankUpdate]:
    """Return the updates of transformers' layers by their names."""
    if not update.layer.endswith(FUSED):
        return {hugging_face_name(update.layer): update}
    names = [hugging_face_name(f"{update.layer.removesuffix(FUSED)}.{part}") for part in _PARTS]
    if update.part is not None:
        return {names[update.part]: update}
    rows = update.up_OR.chunk(len(names))
    return {
        name: LowRankUpdate(name, update.down_RI, up_OR, update.scale)
        for name, up_OR in zip(names, rows, strict=True)
    }


def save_kind(
    adapter: Peft, classifier: Classifier, model: nn.Module, folder: Path, base: str | None
) -> None:
    """Write an adapter of another kind of peft's.

    Args:
        adapter: the method.
        classifier: its model has layers that the adapter has wrapped.
        model, folder, base: see `save_lora`.

    Raises:
        InputError: peft cannot store the kind, or the adapter is of a fused matrix and its kind
            cannot be split.
    """
    peft = library()
    if adapter.kind == _WITHOUT_PLACES:
        raise InputError(
            f"--to {PEFT}: a file of peft holds no places of the entries that kind={adapter.kind} "
            f"trains. {WAY_OUT}"
        )
    wrapped = named_layers(classifier)
    tensors: dict[str, dict[str, Any]] = {}
    for name, layer in wrapped.items():
        tensors |= _renamed(adapter.kind, name, _tensors(layer))
    spec = adapter.spec
    settings = {
        spec.options[name]: value for name, value in adapter.options.items() if name != "inputs"
    }
    if spec.seeded_by:
        settings[spec.seeded_by] = adapter.seed
    if "inputs" in spec.options:
        settings[spec.options["inputs"]] = [
            hugging_face_name(name) for name, layer in wrapped.items() if layer.is_feedforward
        ]
    config = getattr(peft, spec.config)(
        target_modules=list(tensors), base_model_name_or_path=base, **spec.fixed, **settings
    )
    _save(peft, config, tensors, model, folder)


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    found = dict(layer.named_parameters()) | dict(layer.named_buffers())
    return {name: value for name, value in found.items() if not name.startswith("base_layer.")}


def _renamed(kind: str, name: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    if not name.endswith(FUSED):
        return {hugging_face_name(name): dict(tensors)}
    if kind not in _OUTPUTS:
        raise InputError(
            f"--to {PEFT}: kind={kind} has one adapter for query, key and value together, and "
            "transformers has three matrices for them. Train the run again with "
            f"adapter.split_qkv=true. {WAY_OUT}"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for index, part in enumerate(_PARTS):
        parts[hugging_face_name(f"{name.removesuffix(FUSED)}.{part}")] = {
            key: _part(value, _OUTPUTS[kind].get(key.partition(".")[0]), index)
            for key, value in tensors.items()
        }
    return parts


def _part(value: Tensor, dimension: int | None, index: int) -> Tensor:
    return value if dimension is None else value.chunk(len(_PARTS), dimension)[index]


@torch.no_grad()
def _save(
    peft: Any, config: Any, tensors: Mapping[str, Mapping[str, Tensor]], model: Any, folder: Path
) -> None:
    with warnings.catch_warnings():
        # peft calls functions of transformers by their old names.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = peft.get_peft_model(model, config)
    for name, values in tensors.items():
        target = _tensors(wrapped.get_submodule(f"base_model.model.{name}"))
        assert target.keys() == values.keys(), (name, target.keys() ^ values.keys())
        for key, value in values.items():
            target[key].copy_(value)
    wrapped.save_pretrained(folder, save_embedding_layers=False)


def library() -> Any:
    """Return peft.

    Raises:
        InputError: peft or transformers is not installed.
    """
    try:
        import peft
        import transformers  # noqa: F401 - peft imports it too, from version 0.1 on
    except ImportError as error:
        raise InputError(
            f"--to {PEFT} needs peft and transformers ({error}): {install('so-clip[methods]')}."
        ) from error
    return peft

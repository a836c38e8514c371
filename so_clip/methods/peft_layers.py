"""The layers that peft puts around a model's linear layers: their forward, and their names.

Tensor names end in their shape: B inputs of a batch, I and O a layer's inputs and outputs, R ranks,
E entries of a sparse update.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import saved_place
from so_clip.clip.heads import exact
from so_clip.methods.adapter import LowRankUpdate
from so_clip.methods.random_draws import Dropout

# peft's name for an adapter without a name.
NAME = "default"
# peft's attributes for the projections that all layers share.
_SHARED = ("vera_A", "vera_B", "randlora_A", "randlora_B")
# The kinds whose layers have drawn the places of their entries: peft's attribute for the places.
_PLACES = {"shira": "shira_indices", "fourierft": "indices"}


def adapted_layers(classifier: Classifier) -> list[Any]:
    """Return the layers of a classifier's model that peft has wrapped."""
    return list(named_layers(classifier).values())


def named_layers(classifier: Classifier) -> dict[str, Any]:
    """Return the layers that peft has wrapped, by their names in the classifier's model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = classifier.backbone.model.named_modules()
    return {name: module for name, module in named if isinstance(module, BaseTunerLayer)}


def unwrap(classifier: Classifier) -> None:
    """Put the model's own linear layers back in the place of peft's layers."""
    for name, layer in named_layers(classifier).items():
        parent, _, last = name.rpartition(".")
        setattr(classifier.backbone.model.get_submodule(parent), last, layer.base_layer)


def frozen_tensors(classifier: Classifier, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Return tensors of the layers inside peft's layers, by their names in the model's state dict.

    Args:
        classifier: gives the model.
        kinds: weight, bias or both.
    """
    model = classifier.backbone.model
    state = model.state_dict()
    prefixes = [saved_place(model, name)[0] for name in named_layers(classifier)]
    names = [prefix + kind for prefix in prefixes for kind in kinds]
    return {name: state[name] for name in names if name in state}


def low_rank_updates(
    classifier: Classifier,
    *,
    down: str,
    up: str,
    scale: Callable[[Any], float],
    diagonal: str | None = None,
) -> list[LowRankUpdate]:
    """Return the low-rank update of each of peft's layers.

    Args:
        classifier: gives the model.
        down, up, diagonal: names of tensors in a layer of peft.
        scale: maps a layer to the factor of its update.
    """
    updates = []
    for name, layer in named_layers(classifier).items():
        prefix, rows = saved_place(classifier.backbone.model, name)
        own = f"backbone.model.{name}."
        updates.append(
            LowRankUpdate(
                tensor=f"{prefix}weight",
                rows=rows,
                down=own + down,
                up=own + up,
                diagonal=None if diagonal is None else own + diagonal,
                scale=float(scale(layer)),
            )
        )
    return updates


def prepare(layer: Any, kind: str) -> bool:
    """Adjust one of peft's layers to the model; return whether it has dropout."""
    layer.register_state_dict_post_hook(_save_under_model_name)
    layer.register_load_state_dict_pre_hook(_load_under_model_name)
    if kind in _PLACES:
        layer.register_state_dict_post_hook(partial(_save_places, _PLACES[kind]))
        layer.register_load_state_dict_pre_hook(partial(_load_places, _PLACES[kind]))
    # Under autocast, peft would copy the input to float32, round it again, and save the copy.
    layer.cast_input_dtype_enabled = False
    if kind == "shira":
        layer.get_delta_weight = partial(_dense_update, layer)
    if kind == "dora":
        vector = layer.lora_magnitude_vector[NAME]
        vector.forward = partial(_dora_update, vector)
    has_dropout = False
    for module in [*layer.modules()]:
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                module.add_module(name, Dropout(child.p))
                has_dropout = True
    # In training mode, checkpointing would save the random state of layers without dropout too.
    layer.train(has_dropout)
    layer.base_layer.eval()
    return has_dropout


def save_shared_once(layers: Sequence[Any]) -> None:
    """Keep the projections that all layers share in the state of the first layer only.

    Otherwise VeRA's and RandLoRA's files would have them once for each layer.
    """
    for layer in layers[1:]:
        layer.register_state_dict_post_hook(_omit_shared)
        layer.register_load_state_dict_pre_hook(_load_no_shared)


def random_masks(seed: int) -> Callable[..., Tensor]:
    """Return a function that selects SHiRA's entries: rank · (I + O) random ones per matrix [O, I].

    It replaces peft's function. That one starts from the same seed for each matrix, so it selects
    the same entries in all matrices of one size.
    """
    draws = torch.Generator().manual_seed(seed)

    def mask(layer: nn.Linear, rank: int, **_: Any) -> Tensor:
        shape = layer.weight.shape
        selected = torch.randperm(shape.numel(), generator=draws)[: rank * sum(shape)]
        mask_OI = torch.zeros(shape.numel(), dtype=torch.bool)
        mask_OI[selected] = True
        return mask_OI.view(shape)

    return mask


def _dense_update(layer: Any, name: str) -> Tensor:
    """Return SHiRA's update as a dense tensor: the memory of a sparse one cannot be measured."""
    values, (rows, columns) = layer.shira_weight[name], layer.shira_indices[name].long()
    update_OI = values.new_zeros(layer.out_features, layer.in_features)
    return update_OI.index_put((rows, columns), values * layer.scaling[name])


def _dora_update(
    vector: nn.Module,
    x: Tensor,
    *,
    lora_A: nn.Linear,
    lora_B: nn.Linear,
    scaling: float,
    base_layer: nn.Linear,
    base_result: Tensor | None = None,
    adapter_name: str = NAME,
) -> Tensor:
    """Return DoRA's change of a layer's output; autograd saves half of what peft's version saves.

    m / |W + s B A| · (W x + s B A x) - W x. The lengths |.| of rows have no gradient (section 4.3
    of the paper) and the weights' precision, with or without autocast.
    """
    with torch.no_grad(), exact(x.device):
        sum_OI = torch.addmm(base_layer.weight, lora_B.weight, lora_A.weight, alpha=scaling)
        lengths_O = torch.linalg.vector_norm(sum_OI, dim=1)
    if base_result is None:
        plain = F.linear(x, base_layer.weight)
    else:
        plain = base_result if base_layer.bias is None else base_result - base_layer.bias
    return vector.weight / lengths_O * (plain + scaling * lora_B(lora_A(x))) - plain


def _save_under_model_name(
    _layer: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    for kind in ("weight", "bias"):
        if f"{prefix}base_layer.{kind}" in state:
            state[f"{prefix}{kind}"] = state.pop(f"{prefix}base_layer.{kind}")


def _load_under_model_name(
    _layer: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any
) -> None:
    for kind in ("weight", "bias"):
        if f"{prefix}{kind}" in state:
            state[f"{prefix}base_layer.{kind}"] = state.pop(f"{prefix}{kind}")


def _omit_shared(_layer: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for attribute in _SHARED:
        state.pop(f"{prefix}{attribute}.{NAME}", None)


def _load_no_shared(layer: Any, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    """Give a layer its own projections, already loaded with the first layer."""
    for attribute in _SHARED:
        shared = getattr(layer, attribute, None)
        if shared is not None:
            state[f"{prefix}{attribute}.{NAME}"] = shared[NAME]


def _save_places(
    attribute: str, layer: Any, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    """Store the drawn places, so that loading needs no generator that draws them again.

    An entry in row o and column i is stored as o · I + i, in half the bytes.
    """
    rows_E, columns_E = getattr(layer, attribute)[NAME].long()
    places_E = (rows_E * layer.in_features + columns_E).int()
    state[f"{prefix}{attribute}.{NAME}"] = places_E


def _load_places(
    attribute: str,
    layer: Any,
    state: dict[str, Tensor],
    prefix: str,
    _metadata: Any,
    strict: bool,
    missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    name = f"{prefix}{attribute}.{NAME}"
    if name not in state:
        if strict:
            missing.append(name)
        return
    places_E, drawn = state.pop(name), getattr(layer, attribute)
    width, size = layer.in_features, layer.in_features * layer.out_features
    whole = not (places_E.is_floating_point() or places_E.is_complex())
    if places_E.shape != drawn[NAME].shape[1:] or not whole:
        count = drawn[NAME].shape[1]
        errors.append(f"{name}: {places_E.dtype} {tuple(places_E.shape)} must be {count} indices.")
    elif ((places_E < 0) | (places_E >= size)).any():
        errors.append(f"{name}: an index is outside a matrix of {size} entries.")
    else:
        places_2E = torch.stack([places_E // width, places_E % width])
        drawn[NAME] = places_2E.to(drawn[NAME].device, drawn[NAME].dtype)

"""LoKr, OFT, RandLoRA and FourierFT beside their papers' formulas, in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.methods.peft_adapter import Peft
from so_clip.methods.peft_layers import adapted_layers
from tests.helpers.tiny_classifiers import classifier
from tests.oracles import structured_oracle as oracle

ROLES = ["attention", "mlp"]
Formula = Callable[[Tensor, dict[str, Tensor]], Tensor]
CASES: dict[str, tuple[str, dict[str, Any], Formula]] = {
    "lokr": (
        *("lokr", {"rank": 2, "alpha": 3}),
        lambda weight, own: oracle.lokr(weight, own, 3 / 2),
    ),
    "lokr, both decomposed": (
        *("lokr", {"rank": 2, "alpha": 3, "decompose_both": True}),
        lambda weight, own: oracle.lokr(weight, own, 3 / 2),
    ),
    "lokr, whole, small first factor": (
        *("lokr", {"rank": 32, "alpha": 3, "factor": 4}),
        lambda weight, own: oracle.lokr(weight, own, 3 / 32),
    ),
    "oft": ("oft", {"block_size": 8}, lambda weight, own: oracle.oft(weight, own, 8)),
    "oft, one for all blocks": (
        *("oft", {"block_size": 16, "block_share": True}),
        lambda weight, own: oracle.oft(weight, own, 16),
    ),
    "randlora": (
        *("randlora", {"rank": 5, "alpha": 7}),
        lambda weight, own: oracle.randlora(weight, own, 7 / 5),
    ),
    "randlora, sparse": (
        *("randlora", {"rank": 16, "alpha": 8, "sparse": True}),
        lambda weight, own: oracle.randlora(weight, own, 8 / 16),
    ),
    "fourierft": (
        *("fourierft", {"frequencies": 40, "scaling": 9}),
        lambda weight, own: oracle.fourierft(weight, own, 9),
    ),
}


def adapted(kind: str, options: dict[str, Any], by: float = 0.1) -> tuple[Classifier, Peft]:
    """Return a classifier in float64 whose adapters are moved away from their first values."""
    made, adapter = classifier(), Peft(kind, ROLES, **options)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in adapter(made).values():
            value.data = value.double()
            value += by * torch.randn(value.shape, generator=draw, dtype=value.dtype)
    made.forget_classes()
    return made, adapter


def one_of_each_size(made: Classifier) -> list[Any]:
    """Return an adapted layer of each size."""
    layers = {tuple(layer.base_layer.weight.shape): layer for layer in adapted_layers(made)}
    assert {(into > out) - (into < out) for out, into in layers} == {-1, 0, 1}
    return [*layers.values()]


def parts(layer: Any) -> dict[str, Tensor]:
    """Return an adapter's tensors, by what is left of their names."""
    values = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    own = {
        name.split(".")[0]: value
        for name, value in values.items()
        if not name.startswith("base_layer") and value.is_floating_point()
    }
    places = getattr(layer, "indices", None)
    return own if places is None else own | {"places": places["default"]}


def tolerance(kind: str) -> dict[str, float]:
    """Return how close values are to be: FourierFT's update is made in float32."""
    return {"rtol": 1e-4, "atol": 1e-5} if kind == "fourierft" else {"rtol": 0, "atol": 1e-9}

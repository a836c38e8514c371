"""Low-rank and other parameter-efficient adapters of linear layers, by the library peft."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter
from so_clip.adapt.dropout import Draws, Dropout
from so_clip.adapt.peft_kinds import checked
from so_clip.adapt.random_state import lend
from so_clip.adapt.weights import Weights, blocks_at, check_interpolation
from so_clip.checks import whole
from so_clip.clip.attention import ExplicitAttention
from so_clip.clip.classifier import TOWERS, Classifier, tower_of
from so_clip.clip.heads import exact
from so_clip.errors import InputError

# What peft calls an adapter that was given no name.
NAME = "default"
_FUSED, _PARTS = "in_proj", ("q_proj", "k_proj", "v_proj")


class Peft(Adapter):
    """Puts an adapter of peft's around each matrix that `Weights` would choose.

    The matrices are those of linear layers, and stay as they are. In training, dropout draws from
    a generator of its own, and in each class's prompt other values: prompts share no rows then. As
    in Classifier, training is where gradients are recorded; `eval()` also ends it.

    State dicts keep the model's own names, and have the adapter's beside them.

    Args:
        kind: of adapter; see `peft_kinds`.
        patterns, encoder, position: which matrices; see Weights.
        split_qkv: part attention's in-projection into query, key and value, each with an adapter
            of its own, as CLIP-LoRA has them. `in_proj` in a pattern then means all three.
        seed: of first values, of what they depend on, and of what is dropped; the global random
            state is left alone.
        interpolation: a, in [0, 1]: below 1, the adapters end inside the weights, and those at
            (1 - a) · zero-shot CLIP's + a · the adapted ones (WiSE-FT, arXiv 2109.01903).
        options: of the kind. Those left out are as peft has them.

    Raises:
        InputError: there is no such kind, or it has no such option or value.

    Source: github huggingface/peft.
    """

    def __init__(
        self,
        kind: str,
        patterns: Sequence[str],
        encoder: str = "both",
        position: str = "all",
        split_qkv: bool = False,
        seed: int = 0,
        interpolation: float = 1.0,
        **options: Any,
    ) -> None:
        self.weights = Weights(patterns, encoder, position)
        self.interpolation = check_interpolation(interpolation)
        if not isinstance(split_qkv, bool):
            raise InputError(f"adapter.split_qkv={split_qkv}: must be true or false.")
        if split_qkv:
            self.weights = Weights(_parted(patterns), encoder, position)
        self.known = checked(kind, options)
        self.kind, self.options, self.split_qkv = kind, options, split_qkv
        self.seed = whole("adapter.seed", seed, 0, 2**63 - 1)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Put the adapters into the classifier's model and return their parameters by name.

        Raises:
            InputError: peft is missing, a chosen matrix is no linear layer's, or the kind cannot
                be had for its size.
        """
        library = _library(self.kind)
        if self.split_qkv:
            self._split(classifier)
        names = self._layers_chosen(classifier)
        config = self._config(library, classifier, names)
        with _drawing(self.seed, classifier.backbone.mean.device):
            self.wrap(library, classifier.backbone.model, config)
        drops = [self._fit(layer) for layer in adapted_layers(classifier)]
        if any(drops):
            if any(tower_of(name) == "text" for name in names):
                classifier.keep_prompts_apart()
            self.draws = Draws(self.seed, classifier.backbone.mean.device)
            self.draws.serve(classifier)
        named = classifier.backbone.model.named_parameters()
        return {name: value for name, value in named if value.requires_grad}

    def wrap(self, library: ModuleType, model: Any, config: Any) -> Any:
        """Let peft wrap the layers, and return its tuner."""
        tuner = library.mapping.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        try:
            made = tuner(model, config, NAME)
        except (ValueError, TypeError, NotImplementedError, AssertionError) as error:
            raise InputError(f"adapter.kind={self.kind}: {error}") from error
        del model.peft_config  # a second adapter would be taken for another of the same
        return made

    @torch.no_grad()
    def finish(self, classifier: Classifier) -> None:
        """Put the adapters into the weights, if these are to go back a part of the way."""
        if self.interpolation == 1:
            return
        for layer in adapted_layers(classifier):
            before = self.zero_shot(layer)
            layer.merge()
            for name, adapted in layer.base_layer.named_parameters():
                value = before[name].to(adapted.device)
                adapted.copy_(torch.lerp(value, adapted, self.interpolation))

    def resume(self, classifier: Classifier) -> None:
        """Leave out the adapters, if the weights that were loaded have them inside."""
        if self.interpolation < 1:
            for layer in adapted_layers(classifier):
                layer.merged_adapters.append(NAME)

    def zero_shot(self, layer: Any) -> dict[str, Tensor]:
        """Return copies of a layer's weight and bias as they came, from which nothing has moved."""
        return {name: value.clone() for name, value in layer.base_layer.named_parameters()}

    def _layers_chosen(self, classifier: Classifier) -> list[str]:
        names = []
        for name in self.weights.select(classifier):
            layer, _, kind = name.rpartition(".")
            module = classifier.backbone.model.get_submodule(layer)
            if kind != "weight" or type(module) is not nn.Linear:
                raise InputError(
                    f"adapter.patterns: {name} is not the weight of a linear layer, which is all "
                    f"that kind={self.kind} adapts. Choose others, or adapter=weights to train it."
                )
            names.append(layer)
        return names

    def _config(self, library: ModuleType, classifier: Classifier, names: list[str]) -> Any:
        settings = {self.known.options[name]: value for name, value in self.options.items()}
        if "inputs" in self.options:
            inputs = Weights(self.options["inputs"], self.weights.encoder, self.weights.position)
            chosen = [name.rpartition(".")[0] for name in inputs.select(classifier)]
            settings[self.known.options["inputs"]] = _exactly(chosen)
        if self.known.seeded_by:
            settings[self.known.seeded_by] = self.seed
        make = getattr(library, self.known.config, None)
        if make is None:
            raise InputError(
                f"adapter.kind={self.kind}: peft {library.__version__} is too old for it: "
                "pip install --upgrade peft."
            )
        try:
            config = make(target_modules=_exactly(names), **self.known.fixed, **settings)
        except (ValueError, TypeError) as error:
            raise InputError(f"adapter.kind={self.kind}: {error}") from error
        if self.kind == "shira":
            config.mask_fn = _random_masks(self.seed)
        return config

    def _split(self, classifier: Classifier) -> None:
        for tower in TOWERS:
            if self.weights.encoder in (tower, "both"):
                blocks: Any = classifier.backbone.blocks(tower)
                for i in blocks_at(self.weights.position, len(blocks)):
                    if isinstance(blocks[i].attn, ExplicitAttention):
                        blocks[i].attn.split()

    def _fit(self, layer: Any) -> bool:
        """Make one of peft's layers behave as the model around it; return whether it drops."""
        layer.register_state_dict_post_hook(_save_under_own_name)
        layer.register_load_state_dict_pre_hook(_load_under_own_name)
        # Under autocast, a float32 copy of the input would be made, rounded again, and kept.
        layer.cast_input_dtype_enabled = False
        if self.kind == "shira":
            layer.get_delta_weight = partial(_entries, layer)
        if self.kind == "dora":
            vector = layer.lora_magnitude_vector[NAME]
            vector.forward = partial(_change_of_length, vector)
        drops = False
        for module in [*layer.modules()]:
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    module.add_module(name, Dropout(child.p))
                    drops = True
        # In training mode, layers that drop nothing would still have random numbers put by.
        layer.train(drops)
        layer.base_layer.eval()
        return drops


def adapted_layers(classifier: Classifier) -> list[Any]:
    """Return peft's layers in a classifier's model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = classifier.backbone.model
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _library(kind: str) -> ModuleType:
    try:
        import peft
        import peft.mapping
    except ImportError as error:
        raise InputError(
            f"adapter.kind={kind} needs peft ({error}): pip install 'so-clip[methods]'."
        ) from error
    return peft


def _parted(patterns: Sequence[str]) -> list[str]:
    return [
        pattern.replace(_FUSED, part)
        for pattern in patterns
        for part in (_PARTS if _FUSED in pattern else (_FUSED,))
    ]


def _exactly(names: Sequence[str]) -> str:
    """Return a pattern for these names; a list would also mean all that end like one of them."""
    return "|".join(map(re.escape, names))


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Let peft, which draws from the global random state, draw from a generator."""
    with ExitStack() as stack:
        stack.enter_context(lend(torch.Generator().manual_seed(seed)))
        if device.type == "cuda":
            stack.enter_context(lend(torch.Generator(device).manual_seed(seed)))
        yield


def _random_masks(seed: int) -> Callable[..., Tensor]:
    """Return SHiRA's choice of entries, rank (I + O) of a matrix [O, I].

    peft's own begins anew for each matrix, so that all of one size would have the same.
    """
    draws = torch.Generator().manual_seed(seed)

    def mask(layer: nn.Linear, rank: int, **_: Any) -> Tensor:
        shape = layer.weight.shape
        chosen = torch.randperm(shape.numel(), generator=draws)[: rank * sum(shape)]
        mask_OI = torch.zeros(shape.numel(), dtype=torch.bool)
        mask_OI[chosen] = True
        return mask_OI.view(shape)

    return mask


def _entries(layer: Any, name: str) -> Tensor:
    """Return SHiRA's update, dense; peft's is a sparse tensor, whose memory cannot be counted."""
    values, (rows, columns) = layer.shira_weight[name], layer.shira_indices[name].long()
    update_OI = values.new_zeros(layer.out_features, layer.in_features)
    return update_OI.index_put((rows, columns), values * layer.scaling[name])


def _change_of_length(
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
    """Return what DoRA adds to its layer's output, keeping half of what peft's own way does.

    m / |W + s B A| · (W x + s B A x) - W x, in which the lengths of rows have no gradient (the
    paper's section 4.3) and are in the weights' precision, autocast or not.
    """
    with torch.no_grad(), exact(x.device):
        sum_OI = torch.addmm(base_layer.weight, lora_B.weight, lora_A.weight, alpha=scaling)
        lengths_O = torch.linalg.vector_norm(sum_OI, dim=1)
    if base_result is None:
        plain = F.linear(x, base_layer.weight)
    else:
        plain = base_result if base_layer.bias is None else base_result - base_layer.bias
    return vector.weight / lengths_O * (plain + scaling * lora_B(lora_A(x))) - plain


def _save_under_own_name(
    _layer: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    for kind in ("weight", "bias"):
        if f"{prefix}base_layer.{kind}" in state:
            state[f"{prefix}{kind}"] = state.pop(f"{prefix}base_layer.{kind}")


def _load_under_own_name(
    _layer: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any
) -> None:
    for kind in ("weight", "bias"):
        if f"{prefix}{kind}" in state:
            state[f"{prefix}base_layer.{kind}"] = state.pop(f"{prefix}{kind}")

"""Parameter-efficient adapters of linear layers from the library peft: LoRA and its relatives."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.attention import ExplicitAttention
from so_clip.clip.classifier import TOWERS, Classifier, tower_of
from so_clip.clip.heads import exact
from so_clip.errors import InputError
from so_clip.methods import options as checks
from so_clip.methods.adapter import Adapter
from so_clip.methods.peft_kinds import checked_kind
from so_clip.methods.random_draws import Dropout, DropoutDraws, use_globally
from so_clip.methods.weights import Weights, blocks_at
from so_clip.system.commands import install

# peft's name for an adapter without a name.
NAME = "default"
_FUSED, _PARTS = "in_proj", ("q_proj", "k_proj", "v_proj")


class Peft(Adapter):
    """Wraps each matrix that `Weights` would select in one of peft's adapters.

    The matrices must be those of linear layers. They stay frozen; the adapters are trained. Dropout
    draws from a generator of the adapter. Each class's prompt drops different values: prompts then
    share no rows. As in Classifier, training is where gradients are recorded; `eval()` also ends
    it.

    State dicts keep the model's own names. The adapters' tensors are stored beside them.

    Args:
        kind: of adapter; see `peft_kinds`.
        patterns, encoder, position: select the matrices; see Weights.
        split_qkv: split attention's in-projection into query, key and value, each with its own
            adapter, as CLIP-LoRA does. `in_proj` in a pattern then means all three.
        seed: of first values, of fixed random choices and of dropout; the global random state does
            not change.
        interpolation: a, in [0, 1]. Below 1, `finish` merges the adapters into the weights, which
            become (1 - a) · zero-shot CLIP's + a · the adapted ones (WiSE-FT, arXiv 2109.01903).
        options: of the kind. Options left out have peft's defaults.

    Raises:
        InputError: the kind is unknown, it has no such option, or a value is out of range.

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
        self.interpolation = checks.interpolation(interpolation)
        if checks.flag("split_qkv", split_qkv):
            self.weights = Weights(_split_patterns(patterns), encoder, position)
        self.spec = checked_kind(kind, options)
        self.kind, self.options, self.split_qkv = kind, options, split_qkv
        self.seed = checks.seed(seed)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Add the adapters to the classifier's model and return their parameters by name.

        Raises:
            InputError: peft is missing, a selected matrix does not belong to a linear layer, or the
                kind does not support its size.
        """
        library = _library(self.kind)
        if self.split_qkv:
            self._split_attention(classifier)
        names = self._selected_layers(classifier)
        config = self._config(library, classifier, names)
        with _seeded(self.seed, classifier.backbone.mean.device):
            self.wrap(library, classifier.backbone.model, config)
        has_dropout = [self._prepare(layer) for layer in adapted_layers(classifier)]
        if any(has_dropout):
            if any(tower_of(name) == "text" for name in names):
                classifier.separate_prompts()
            self.draws = DropoutDraws(self.seed, classifier.backbone.mean.device)
            self.draws.attach(classifier)
        named = classifier.backbone.model.named_parameters()
        return {name: value for name, value in named if value.requires_grad}

    def wrap(self, library: ModuleType, model: Any, config: Any) -> Any:
        """Let peft wrap the layers, and return its tuner."""
        tuner = library.mapping.PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        try:
            wrapper = tuner(model, config, NAME)
        except (ValueError, TypeError, NotImplementedError, AssertionError) as error:
            raise InputError(f"adapter.kind={self.kind}: {error}") from error
        del model.peft_config  # peft would otherwise add the next adapter to this one
        return wrapper

    @torch.no_grad()
    def finish(self, classifier: Classifier) -> None:
        """Below interpolation=1, merge the adapters and interpolate the weights."""
        if self.interpolation == 1:
            return
        for layer in adapted_layers(classifier):
            before = self.zero_shot_weights(layer)
            layer.merge()
            for name, adapted in layer.base_layer.named_parameters():
                value = before[name].to(adapted.device)
                adapted.copy_(torch.lerp(value, adapted, self.interpolation))

    def resume(self, classifier: Classifier) -> None:
        """Below interpolation=1, turn off the adapters: the loaded weights include them."""
        if self.interpolation < 1:
            for layer in adapted_layers(classifier):
                layer.merged_adapters.append(NAME)

    def zero_shot_weights(self, layer: Any) -> dict[str, Tensor]:
        """Return copies of zero-shot CLIP's weight and bias. They are frozen: copy them now."""
        return {name: value.clone() for name, value in layer.base_layer.named_parameters()}

    def _selected_layers(self, classifier: Classifier) -> list[str]:
        names = []
        for name in self.weights.select(classifier):
            layer, _, kind = name.rpartition(".")
            module = classifier.backbone.model.get_submodule(layer)
            if kind != "weight" or type(module) is not nn.Linear:
                raise InputError(
                    f"adapter.patterns: {name} is not the weight of a linear layer, and "
                    f"kind={self.kind} adapts no other weight. Choose other patterns, or "
                    "adapter=weights to train it."
                )
            names.append(layer)
        return names

    def _config(self, library: ModuleType, classifier: Classifier, names: list[str]) -> Any:
        settings = {self.spec.options[name]: value for name, value in self.options.items()}
        if "inputs" in self.options:
            inputs = Weights(self.options["inputs"], self.weights.encoder, self.weights.position)
            selected = [name.rpartition(".")[0] for name in inputs.select(classifier)]
            settings[self.spec.options["inputs"]] = _exact_pattern(selected)
        if self.spec.seeded_by:
            settings[self.spec.seeded_by] = self.seed
        make = getattr(library, self.spec.config, None)
        if make is None:
            raise InputError(
                f"adapter.kind={self.kind}: peft {library.__version__} is too old for it: "
                f"{install('--upgrade', 'peft')}."
            )
        try:
            config = make(target_modules=_exact_pattern(names), **self.spec.fixed, **settings)
        except (ValueError, TypeError) as error:
            raise InputError(f"adapter.kind={self.kind}: {error}") from error
        if self.kind == "shira":
            config.mask_fn = _random_masks(self.seed)
        return config

    def _split_attention(self, classifier: Classifier) -> None:
        for tower in TOWERS:
            if self.weights.encoder in (tower, "both"):
                blocks: Any = classifier.backbone.blocks(tower)
                for i in blocks_at(self.weights.position, len(blocks)):
                    if isinstance(blocks[i].attn, ExplicitAttention):
                        blocks[i].attn.split()

    def _prepare(self, layer: Any) -> bool:
        """Adjust one of peft's layers to the model; return whether it has dropout."""
        layer.register_state_dict_post_hook(_save_under_model_name)
        layer.register_load_state_dict_pre_hook(_load_under_model_name)
        # Under autocast, peft would copy the input to float32, round it again, and save the copy.
        layer.cast_input_dtype_enabled = False
        if self.kind == "shira":
            layer.get_delta_weight = partial(_dense_update, layer)
        if self.kind == "dora":
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


def adapted_layers(classifier: Classifier) -> list[Any]:
    """Return the layers of a classifier's model that peft has wrapped."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = classifier.backbone.model
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _library(kind: str) -> ModuleType:
    try:
        import peft
        import peft.mapping
    except ImportError as error:
        raise InputError(
            f"adapter.kind={kind} needs peft ({error}): {install('so-clip[methods]')}."
        ) from error
    return peft


def _split_patterns(patterns: Sequence[str]) -> list[str]:
    return [
        pattern.replace(_FUSED, part)
        for pattern in patterns
        for part in (_PARTS if _FUSED in pattern else (_FUSED,))
    ]


def _exact_pattern(names: Sequence[str]) -> str:
    """Return a pattern for exactly these names. A list would also match longer names."""
    return "|".join(map(re.escape, names))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed peft's draws, which come from the global random state, and restore that state."""
    with ExitStack() as stack:
        stack.enter_context(use_globally(torch.Generator().manual_seed(seed)))
        if device.type == "cuda":
            stack.enter_context(use_globally(torch.Generator(device).manual_seed(seed)))
        yield


def _random_masks(seed: int) -> Callable[..., Tensor]:
    """Return a function that selects SHiRA's entries: rank · (I + O) random ones per matrix [O, I].

    It replaces peft's function, which starts from the same seed for each matrix and so selects
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
    """Return SHiRA's update as a dense tensor: the memory of peft's sparse one is not countable."""
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

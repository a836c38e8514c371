"""Parameter-efficient adapters of linear layers from the library peft: LoRA and its relatives."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import split_projections
from so_clip.clip.roles import named_roles
from so_clip.clip.towers import tower_of
from so_clip.errors import InputError
from so_clip.methods import options as checks
from so_clip.methods.adapter import Adapter, LowRankUpdate
from so_clip.methods.peft_kinds import checked_kind
from so_clip.methods.peft_layers import (
    NAME,
    adapted_layers,
    frozen_tensors,
    low_rank_updates,
    prepare,
    random_masks,
    save_shared_once,
    unwrap,
)
from so_clip.methods.random_draws import DropoutDraws, use_globally
from so_clip.methods.weights import Weights, blocks_at
from so_clip.system.commands import install


class Peft(Adapter):
    """Wraps each matrix that `Weights` would select in one of peft's adapters.

    The matrices must be those of linear layers. They stay frozen; the adapters are trained. Dropout
    draws from a generator of the adapter. Each class's prompt drops different values: prompts then
    share no rows. As in Classifier, the model is in training where gradients are recorded, unless
    `eval()` was called.

    State dicts keep the model's own names. The adapters' tensors are stored beside them, with all
    that was drawn at random: the projections of VeRA and RandLoRA, the places of SHiRA's entries
    and of FourierFT's frequencies.

    Args:
        kind: of adapter; see `peft_kinds`.
        roles, encoder, position: select the matrices; see Weights.
        split_qkv: split attention's in-projection into query, key and value, each with its own
            adapter, as CLIP-LoRA does. attention_in then means all three.
        seed: of first values, of fixed random choices and of dropout; the global random state does
            not change.
        interpolation: a, in [0, 1]. Below 1, `finish` merges the adapters into the weights, which
            become (1 - a) · zero-shot CLIP's + a · the adapted ones (WiSE-FT, arXiv 2109.01903).
        options: of the kind. Options left out have peft's defaults.

    Raises:
        InputError: the kind is unknown, it has no such option, or a value is out of range.

    Source: github huggingface/peft.
    """

    for_sentences = True
    plain = True

    def __init__(
        self,
        kind: str,
        roles: Sequence[str],
        encoder: str = "both",
        position: str = "all",
        split_qkv: bool = False,
        seed: int = 0,
        interpolation: float = 1.0,
        **options: Any,
    ) -> None:
        self.weights = Weights(roles, encoder, position)
        self.interpolation = checks.interpolation(interpolation)
        checks.flag("split_qkv", split_qkv)
        self.spec = checked_kind(kind, options)
        named_roles(options.get("inputs", ()), "adapter.inputs")
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
        with _seeded(self.seed, classifier.backbone.device):
            self.wrap(library, classifier.backbone.model, config)
        layers = adapted_layers(classifier)
        has_dropout = [prepare(layer, self.kind) for layer in layers]
        save_shared_once(layers)
        if any(has_dropout) and not classifier.draws_dropout:
            if any(tower_of(name) == "text" for name in names):
                classifier.separate_prompts()
            self.draws = DropoutDraws(self.seed, classifier.backbone.device)
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
        """Return zero-shot CLIP's weight and bias: copies, taken while they are frozen."""
        return {name: value.clone() for name, value in layer.base_layer.named_parameters()}

    def rewritten(self, classifier: Classifier) -> dict[str, Tensor]:
        """Return, below interpolation=1, the tensors into which `finish` merges the adapters."""
        if self.interpolation == 1:
            return {}
        # IA3 scales outputs, and with them the bias of a layer.
        return frozen_tensors(classifier, ("weight", "bias") if self.kind == "ia3" else ("weight",))

    def low_rank_updates(self, classifier: Classifier) -> list[LowRankUpdate]:
        """Return the updates of kind=lora, if `finish` does not merge them."""
        if self.kind != "lora" or self.interpolation < 1:
            return []
        return low_rank_updates(
            classifier,
            down=f"lora_A.{NAME}.weight",
            up=f"lora_B.{NAME}.weight",
            scale=lambda layer: layer.scaling[NAME],
        )

    @torch.no_grad()
    def merge(self, classifier: Classifier) -> None:
        """Add the adapters to the weights, unless `finish` has, and remove peft's layers."""
        for layer in adapted_layers(classifier):
            if not layer.merged:
                layer.merge()
        unwrap(classifier)
        classifier.forget_classes()

    def _selected_layers(self, classifier: Classifier) -> list[str]:
        names = []
        for name in self.weights.select(classifier):
            layer, _, kind = name.rpartition(".")
            module = classifier.backbone.model.get_submodule(layer)
            if kind != "weight" or type(module) is not nn.Linear:
                raise InputError(
                    f"adapter.roles: {name} is not the weight of a linear layer, and "
                    f"kind={self.kind} adapts no other weight. Choose other roles, "
                    "adapter.encoder=, or adapter=weights to train it."
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
            config.mask_fn = random_masks(self.seed)
        return config

    def _split_attention(self, classifier: Classifier) -> None:
        for tower in classifier.backbone.towers:
            if self.weights.encoder in (tower, "both"):
                blocks: Any = classifier.backbone.blocks(tower)
                for i in blocks_at(self.weights.position, len(blocks)):
                    split_projections(blocks[i])


def _library(kind: str) -> ModuleType:
    try:
        import peft
        import peft.mapping
    except ImportError as error:
        raise InputError(
            f"adapter.kind={kind} needs peft ({error}): {install('so-clip[methods]')}."
        ) from error
    return peft


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

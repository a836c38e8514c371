"""Tiny random encoders of transformers' families, with tokenizers, as folders made here.

Example: `folder = encoder_folder(tmp_path / "bert")`, then `model.source=folder:{folder}`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from so_clip.encoder.encoder import SentenceEncoder, quiet
from so_clip.encoder.load import load_encoder

PAIRS = [
    ("The cat sat on the warm mat in the kitchen.", "A cat sat."),
    ("Nobody in the village owns a boat.", "Somebody owns a boat."),
    ("It rains.", "The streets of the old town are wet, and the river rises every hour."),
    ("A dog barked at the post van.", "An animal made a noise."),
    ("Prices rose by three percent last year.", "Prices fell last year."),
    ("Two ships left the harbour at dawn.", "Two ships left."),
    ("The museum is closed on Mondays.", "The museum is open on Mondays."),
    ("She speaks four languages.", "She speaks at least two languages."),
]
WORDS, POSITIONS = 160, 40


def _sizes(**others: Any) -> dict[str, Any]:
    """Return the sizes under the names that most families use."""
    return {
        "vocab_size": WORDS,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,  # so that sentences differ
        **others,
    }


def _config(kind: str, **sizes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **sizes)


# RoBERTa's relatives count positions from 2.
_FROM_TWO = {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "pad_token_id": 1}
FAMILIES: dict[str, Callable[..., Any]] = {
    "bert": lambda **more: _config("bert", **_sizes(**more)),
    "roberta": lambda **more: _config("roberta", **_sizes(**_FROM_TWO, **more)),
    "xlm-roberta": lambda **more: _config("xlm-roberta", **_sizes(**_FROM_TWO, **more)),
    "mpnet": lambda **more: _config(
        "mpnet", **_sizes(max_position_embeddings=POSITIONS + 2, pad_token_id=1, **more)
    ),
    "distilbert": lambda **more: _config(
        "distilbert",
        vocab_size=WORDS,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=32,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        **more,
    ),
    "electra": lambda **more: _config("electra", **_sizes(embedding_size=8, **more)),
    "albert": lambda **more: _config("albert", **_sizes(embedding_size=8, **more)),
    "deberta-v2": lambda **more: _config(
        "deberta-v2",
        **_sizes(
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            position_biased_input=False,
            type_vocab_size=0,
            conv_kernel_size=3,
            **more,
        ),
    ),
    "modernbert": lambda **more: _config(
        "modernbert",
        **_sizes(
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
            embedding_dropout=0.1,
            attention_dropout=0.1,
            mlp_dropout=0.1,
            local_attention=8,
            **more,
        ),
    ),
}


def encoder_folder(folder: Path, family: str = "bert", head: int = 0, **more: Any) -> Path:
    """Write a pre-trained encoder as transformers does, and return its folder.

    Args:
        folder: a new one.
        family: of `FAMILIES`.
        head: the classes of a classifier of its own; 0: it has none, like most on the hub.
        more: values of the configuration in place of others.
    """
    from transformers import AutoModelForSequenceClassification

    config = FAMILIES[family](**more)
    config.num_labels = head or 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    kept = {
        name: value
        for name, value in model.state_dict().items()
        if head or name.startswith(f"{model.base_model_prefix}.")
    }
    with quiet():
        model.save_pretrained(folder, state_dict=kept)
        _tokenizer(family).save_pretrained(folder)
    return folder


def tiny_encoder(
    folder: Path, family: str = "bert", classes: int = 2, seed: int = 1, **more: Any
) -> SentenceEncoder:
    """Return a loaded encoder of a family."""
    encoder_folder(folder, family, **more)
    return load_encoder(f"folder:{folder}", classes=classes, seed=seed, max_length=POSITIONS)


def _tokenizer(family: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    has_bytes = family in ("roberta", "xlm-roberta", "mpnet")
    names = ("<s>", "<pad>", "</s>", "<unk>") if has_bytes else ("[CLS]", "[PAD]", "[SEP]", "[UNK]")
    first, padding, last, unknown = names
    special = [*names] if has_bytes else [padding, unknown, first, last]
    letters = [
        f"{start}{letter}" for start in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"
    ]
    words = sorted({word for pair in PAIRS for text in pair for word in text.lower()[:-1].split()})
    entries = dict.fromkeys([*special, ".", ",", *letters, *words])
    vocabulary = {entry: i for i, entry in enumerate(entries)}
    assert len(vocabulary) <= WORDS
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = ((last, made.token_to_id(last)), (first, made.token_to_id(first)))
    kind = processors.RobertaProcessing if has_bytes else processors.BertProcessing
    made.post_processor = kind(*ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        cls_token=first,
        pad_token=padding,
        sep_token=last,
        unk_token=unknown,
        model_max_length=POSITIONS,
    )

"""Small Hugging Face tokenizers of every kind that open_clip's architectures name, made here.

Each is trained on a few prompts and has the pieces, special tokens and padding of the real one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    f"{words} a {name}."
    for words in ("a photo of", "a small drawing of", "a satellite photo of")
    for name in ("cat", "dog", "river", "annual crop land", "boeing 737", "café terrace")
]


def _unigram(special: list[str], unknown: str) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token=unknown, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def _siglip() -> tuple[Tokenizer, dict[str, Any]]:
    made = _unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    _ends_with(made, "$A </s>")
    # The padding is the end token.
    return made, {"pad": "</s>", "eos": "</s>", "unk": "<unk>", "class": "T5TokenizerFast"}


def _mt5() -> tuple[Tokenizer, dict[str, Any]]:
    made = _unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    _ends_with(made, "$A </s>")
    return made, {"pad": "<pad>", "eos": "</s>", "unk": "<unk>", "class": "T5TokenizerFast"}


def _gemma() -> tuple[Tokenizer, dict[str, Any]]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Replace("▁", " ")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[*special, *bytes_], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    _ends_with(made, "$A <eos>")
    names = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}
    return made, names | {"class": "PreTrainedTokenizerFast"}


def _xlm_roberta() -> tuple[Tokenizer, dict[str, Any]]:
    made = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    _ends_with(made, "<s> $A </s>")
    names = {"pad": "<pad>", "eos": "</s>", "bos": "<s>", "cls": "<s>", "sep": "</s>"}
    return made, names | {"unk": "<unk>", "class": "PreTrainedTokenizerFast"}


def _roberta() -> tuple[Tokenizer, dict[str, Any]]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"pad": "<pad>", "eos": "</s>", "bos": "<s>", "cls": "<s>", "sep": "</s>"}
    return made, names | {"unk": "<unk>", "class": "PreTrainedTokenizerFast"}


def _bert() -> tuple[Tokenizer, dict[str, Any]]:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    _ends_with(made, "[CLS] $A [SEP]")
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return made, names | {"class": "PreTrainedTokenizerFast"}


def _nllb() -> tuple[Tokenizer, dict[str, Any]]:
    made = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    made.add_special_tokens([AddedToken("eng_Latn", special=True)])
    _ends_with(made, "eng_Latn $A </s>")
    names = {"pad": "<pad>", "eos": "</s>", "bos": "<s>", "unk": "<unk>"}
    return made, names | {"class": "PreTrainedTokenizerFast"}


def _ends_with(made: Tokenizer, single: str) -> None:
    """Put special tokens around a text; $A is the text."""
    special = [word for word in single.split() if word != "$A"]
    made.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(word, made.token_to_id(word)) for word in special]
    )


MAKERS: dict[str, Callable[[], tuple[Tokenizer, dict[str, Any]]]] = {
    "siglip": _siglip,
    "siglip2": _gemma,
    "mt5": _mt5,
    "xlm_roberta": _xlm_roberta,
    "roberta": _roberta,
    "clipa": _bert,
    "nllb": _nllb,
}
# open_clip's own options of the architectures.
OPTIONS: dict[str, dict[str, Any]] = {
    "siglip": {"clean": "canonicalize"},
    "siglip2": {"clean": "canonicalize"},
    "clipa": {"strip_sep_token": True},
}


def local_tokenizer(kind: str, folder: Path, context_length: int, **options: Any) -> HFTokenizer:
    """Return a tokenizer of the kind, from files in a new folder inside `folder`."""
    made, names = MAKERS[kind]()
    place = folder / kind
    place.mkdir(exist_ok=True)
    made.save(str(place / "tokenizer.json"))
    tokens = {f"{name}_token": token for name, token in names.items() if name != "class"}
    config = {"tokenizer_class": names["class"], "padding_side": "right", **tokens}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    options = OPTIONS.get(kind, {}) | options
    return HFTokenizer(str(place), context_length=context_length, **options)

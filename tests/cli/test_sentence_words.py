"""Bad input of runs on sentences: exit code 2, one message with a way out, and nothing left.

tests/config/test_sentence_settings.py has the values of options.
"""

import sys

import pytest
import yaml

from tests.helpers.command import call
from tests.helpers.made_sentences import files_of, rows

BAD_WORDS = [
    ("method=so rte", ["rte: comes first: python -m so_clip rte"]),
    ("shots=8 sentences", ["sentences: comes first"]),
    ("rte dataset=mrpc", ["rte dataset=mrpc: both name a dataset", "sentences dataset=mrpc"]),
    ("rte rte_fair", ["rte_fair: there is no such command. Did you mean experiment=rte_fair?"]),
    ("rte --config-name config", ["--config-name config", "rte has a main configuration"]),
    ("rte experiment=demo", ["experiment=demo: is about images", "python -m so_clip experiment="]),
    ("-m rte experiment=rte_fair,demo", ["experiment=demo: is about images"]),
    ("experiment=rte_fair", ["experiment=rte_fair: is about sentences", "so_clip sentences exp"]),
    ("sentences dataset=eurosat", ["dataset=eurosat: is a dataset of images", "so_clip dataset="]),
    ("dataset=rte", ["dataset=rte: is a dataset of sentences", "so_clip rte"]),
    ("rte subset=all", ["subset=all", "balanced or official"]),
    ("rte method=tip_adapter", ["method=tip_adapter", "needs CLIP"]),
    ("rte -m method=coop seed=1", ["method=coop", "needs CLIP"]),
    ("rte data_root={empty}", ["{empty}/rte", "prepare dataset=rte"]),
    ("rte --from {empty}", ["{empty}: this is no folder of a run"]),
    ("draw rte --split", ["--split: lists images"]),
]


def check_refusal(done, messages):
    assert done.code == 2, done
    (message,) = done.messages
    for text in messages:
        assert text in message


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize(("line", "messages"), BAD_WORDS, ids=[line for line, _ in BAD_WORDS])
def test_bad_words_are_refused_with_a_way_out(line, messages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    empty = str(tmp_path / "empty")
    done = call(*line.format(empty=empty).split())
    check_refusal(done, [text.format(empty=empty) for text in messages])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.fixture
def dataset(tmp_path):
    for name, content in files_of("tsv", rows(40), rows(11, start=100)).items():
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return f"data_root={tmp_path / 'data'}"


@pytest.mark.parametrize(
    ("package", "method", "extra"),
    [("transformers", "so", "so-clip[text]"), ("peft", "lora", "so-clip[methods]")],
)
def test_a_missing_package_is_named_with_its_extra(package, method, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    done = call("rte", f"method={method}")
    check_refusal(done, [f"needs the package {package}", f"pip install '{extra}'"])


def test_torchrun_does_no_run_on_sentences(monkeypatch, dataset):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    check_refusal(call("rte", dataset), ["torchrun: starts 2 processes", "Leave out torchrun"])


def test_the_first_word_gives_the_same_configuration_as_the_flag_of_hydra():
    given = call("rte", "method=bitfit", "--cfg", "job")
    assert (given.code, given.err) == (0, "")
    assert yaml.safe_load(given.out)["dataset"] == {"name": "rte"}
    flags = ("--config-name", "sentences", "dataset=rte", "method=bitfit", "--cfg", "job")
    assert call(*flags) == given
    assert call("sentences", "dataset=rte", "method=bitfit", "--cfg=job") == given

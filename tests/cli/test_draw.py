"""`python -m so_clip draw`: one JSON document from the split file, without torch."""

import json
from pathlib import Path

import pytest

from so_clip.data.cards.card import load_card
from so_clip.data.fewshot import draw_few_shot
from so_clip.data.lists.splits import load_splits
from so_clip.data.sentences.choice import SentenceChoice
from so_clip.data.sentences.read import gather_sentences
from tests.helpers.command import call, python
from tests.helpers.made_sentences import files_of, write


@pytest.mark.parametrize("protocol", ["coop", "clip_lora"])
def test_it_prints_the_run_s_document_from_the_split_file_alone(protocol, shared: Path):
    root = shared / "data" / "splits"  # has no images
    options = ("dataset=dtd", "shots=4", "seed=1", f"split_protocol={protocol}")
    done = call("draw", *options, f"data_root={root}")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    expected = draw_few_shot(load_splits(load_card("dtd"), root), 4, 1, protocol)
    assert document == expected.as_json()
    assert (document["dataset"], document["shots"], document["seed"]) == ("dtd", 4, 1)
    assert document["split_protocol"] == protocol
    assert len(document["train"]) == len(document["val"]) == 4 * 47


def test_each_image_has_a_line():
    lines = call("draw", "dataset=digits", "shots=2").out.splitlines()
    assert lines[:2] == ["{", '  "dataset": "digits",']
    assert sum(line.startswith('    ["digit_') for line in lines) == 2 * 10 * 2  # train and val


def test_it_prints_the_drawn_rows_of_sentences(tmp_path):
    write(tmp_path, files_of("tsv"))
    done = call("draw", "rte", "shots=4", "subset=official", "seed=42", f"data_root={tmp_path}")
    assert done.code == 0, done.err
    choice = SentenceChoice(dataset="rte", shots=4, subset="official", seed=42, data_root=tmp_path)
    assert json.loads(done.out) == gather_sentences(choice).draw_json()


def test_sentences_have_no_split_to_list():
    done = call("draw", "rte", "--split")
    assert (done.code, done.out) == (2, "")
    assert "--split: lists images" in done.err


@pytest.mark.slow
def test_it_needs_no_torch():
    code = (
        "import sys; from so_clip.__main__ import main;"
        "assert main() == 0; assert 'torch' not in sys.modules"
    )
    assert len(json.loads(python(code, "draw", "dataset=digits", "shots=1"))["train"]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=dtdd"], "Did you mean 'dtd'"),
        (["dataset=digits", "split_protocol=clip"], "split_protocol=clip"),
        (["dataset=dtd", "data_root=/no/such/folder"], "data_root=/no/such/folder"),
    ],
)
def test_bad_input_is_one_message(arguments, message):
    done = call("draw", *arguments)
    assert (done.code, done.out, len(done.messages)) == (2, "", 1)
    assert message in done.err

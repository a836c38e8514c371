"""`python -m so_clip draw`: one JSON document, fast, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from so_clip.data.cards.card import load_card
from so_clip.data.fewshot import draw_few_shot
from so_clip.data.lists.splits import load_splits

ROOT = Path(__file__).resolve().parents[2]


def _draw(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "so_clip", "draw", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("protocol", ["coop", "clip_lora"])
def test_prints_the_runs_document_from_the_split_file_alone(protocol, shared: Path):
    root = shared / "data" / "splits"  # no image lies there
    done = _draw(
        "dataset=dtd", "shots=4", "seed=1", f"split_protocol={protocol}", f"data_root={root}"
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    expected = draw_few_shot(load_splits(load_card("dtd"), root), 4, 1, protocol)
    assert document == expected.as_json()
    assert (document["dataset"], document["shots"], document["seed"]) == ("dtd", 4, 1)
    assert document["split_protocol"] == protocol
    assert len(document["train"]) == len(document["val"]) == 4 * 47


def test_answers_without_torch():
    probe = (
        "import sys; from so_clip.__main__ import main; "
        "sys.argv[1:] = ['draw', 'dataset=digits', 'shots=1']; "
        "code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["train"]) == 10


def test_help_names_every_option():
    done = _draw("--help")
    assert done.returncode == 0
    for option in ("dataset", "shots", "seed", "split_protocol", "data_root", "dataset.split_file"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=dtdd"], "Did you mean 'dtd'"),
        (["dataset=digits", "shots=0"], "shots=0"),
        (["dataset=digits", "seed=-1"], "seed=-1"),
        (["dataset=digits", "split_protocol=clip"], "split_protocol=clip"),
        (["dataset=dtd", "data_root=/no/such/folder"], "data_root=/no/such/folder"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, message):
    done = _draw(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""

"""Bad input to meta: exit code 2, one message that names it and a way out, and no leftovers."""

from pathlib import Path

import pytest

from tests.helpers.command import call
from tests.helpers.made_datasets import write_eurosat

# A row that is not refused would train on 4 tasks.
GOOD = "sources=[digits] targets=[] episodes.ways=[2,2] training.tasks=4 validation_tasks=1"
ROWS = [
    ("smat", ["smat: is no OPTION=VALUE", "experiment=smat"]),
    ("experiment=demo", ["experiment=demo", "for meta", "smat, smat_released"]),
    ("backbone=tinyy", ["backbone=tinyy", "'tiny'"]),
    ("backbone=[tiny]", ["backbone=NAME"]),
    ("dataset=digits", ["dataset: there is no such option", "meta --help"]),
    ("tasks=8", ["tasks: there is no such option", "'training.tasks'"]),
    ("training.task=8", ["training.task: there is no such option", "meta --help"]),
    ("seed=1,2", ["seed"]),
    ("hydra.run.dir=x", ["hydra.run.dir", "no effect here"]),
    ("~training.tasks", ["training.tasks is missing"]),
    ("sources=digits", ["sources=digits", "must be a list"]),
    ("sources=[]", ["sources=[]", "Give one or more"]),
    ("training.tasks=41", ["training.tasks=41", "training.tasks=44"]),
    ("training.tasks=0", ["training.tasks=0", "1 or more"]),
    (f"training.tasks={10**400}", ["training.tasks=1000", "1000000000000 or less"]),
    (f"training.mask_lr={10**400}", ["training.mask_lr=1000", "must be a finite number"]),
    ("training.delta_lr=-1", ["training.delta_lr=-1", "0 or above"]),
    ("training.frozen_teacher=false training.teacher_lr=0", ["there is no teacher", "=0"]),
    ("training.mask_lr=fast", ["training.mask_lr=fast", "auto, or a number"]),
    ("training.head=texts", ["training.head=texts", "text or prototype or mean"]),
    ("adapter.sparsity=1", ["adapter.sparsity=1", "[0, 1)"]),
    ("adapter.granularity=rows", ["adapter.granularity=rows", "'row'"]),
    ("adapter.roles=mlp", ["adapter.roles=mlp", "must be a list"]),
    ("episodes.ways=[1,3]", ["episodes.ways", "2 or more"]),
    ("episodes.images=4", ["episodes.images=4", "5 classes"]),
    ("validation_tasks=0", ["select=best", "select=last"]),
    ("precision=fp16", ["precision=fp16", "bf16"]),
    ("device=gpu", ["device=gpu", "cuda"]),
    ("workers=-1", ["workers=-1", "0 or more"]),
    ("results_dir=null", ["results_dir is empty"]),
    ("results_dir={bad}/file", ["results_dir={bad}/file", "cannot be written"]),
    ("backbone.checkpoint={bad}/none.pt", ["none.pt", "backbone.checkpoint=FILE"]),
    ("sources=[nope] targets=[]", ["sources=nope", "Known: caltech101"]),
    ("sources=[digits] targets=[digits]", ["digits", "allow_overlap=true"]),
    ("sources=[eurosat,dtd] targets=[digits]", ["sources=eurosat", "sources=dtd"]),
    (f"{GOOD} episodes.ways=[6,9]", ["digits", "episodes.ways=[6,9] needs 6 classes"]),
    ("sources=[eurosat] targets=[] data_root={good}", ["ant/train_0.png", "1 of 30 images"]),
    (f"{GOOD} adapter.roles=[mlp_inn]", ["'mlp_inn' is no role", "'mlp_in'"]),
    (f"{GOOD} adapter.roles=[pooling]", ["adapter.roles", "'pooling'"]),
    (f"{GOOD} adapter.position=last", ["adapter.position=last", "last-N"]),
    ("template=nope", ["template=nope", "ensemble"]),
    (f"{GOOD} backbone.pretrained=openai", ["backbone.pretrained=openai", "embedded"]),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    bad, good = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("good")
    (bad / "file").write_text("")
    write_eurosat(good)
    (good / "eurosat" / "2750" / "ant" / "train_0.png").unlink()
    return {"bad": bad, "good": good}


@pytest.mark.fast_cases(12)
@pytest.mark.parametrize(("words", "parts"), ROWS, ids=[words[:60] for words, _ in ROWS])
def test_it_is_refused_by_name_and_leaves_nothing(
    words: str, parts: list[str], folders: dict[str, Path], tmp_path: Path
) -> None:
    given = words.format(**folders).split()
    has_place = any(word.startswith("results_dir=") for word in given)
    place = [] if has_place else [f"results_dir={tmp_path / 'meta'}"]
    root = [] if "data_root" in words else [f"data_root={tmp_path}"]
    outcome = call("meta", *given, *place, *root)
    assert outcome.code == 2, outcome.err
    assert len(outcome.messages) == 1, outcome.err
    for part in parts:
        assert part.format(**folders) in outcome.err, outcome.err
    assert [*tmp_path.iterdir()] == []


def test_a_folder_of_choices_must_exist_and_hide_nothing(tmp_path: Path) -> None:
    missing = call("meta", "--config-dir", tmp_path / "none")
    assert missing.code == 2
    assert "there is no such folder" in missing.err
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "smat.yaml").write_text("seed: 2\n")
    hidden = call("meta", "--config-dir", tmp_path, "experiment=smat")
    assert hidden.code == 2
    assert "experiment/smat.yaml is a file of the program too" in hidden.err

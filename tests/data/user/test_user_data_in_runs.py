"""Whole runs on a user's own images: a few steps of the tiny CLIP on small folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import Outcome, call
from tests.helpers.made_datasets import ANIMALS, write_class_folders

SHORT = ("experiment=demo", "schedule.max_steps=2", "shots=2", "schedule.batch_size=8")
OTHER_METHODS = ("taskres", "tip_adapter_f", "clip_lora", "lp_plus_plus", "clap", "two_stage")
DESCRIPTIONS = {"ant": ["a small ant", "six legs"], "bee": "a {} in flight", "*": ["a {}"]}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "zoo"
    write_class_folders(folder, ANIMALS, images=8)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "descriptions.json"
    file.write_text(json.dumps(DESCRIPTIONS))
    return file


def run(zoo: Path, results: Path, *overrides: object) -> Outcome:
    where = ("dataset=folder", f"data_root={zoo}", f"results_dir={results}")
    return call(*SHORT, *where, *overrides)


def metrics(results: Path, start: str = "zoo-") -> dict[str, Any]:
    (folder,) = results.glob(f"{start}*")
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_says_what_it_ran_on(zoo: Path, tmp_path: Path):
    outcome = run(zoo, tmp_path, "dataset.split_seed=3")
    assert outcome.code == 0, outcome.err
    found = metrics(tmp_path)
    assert found["dataset"] == "zoo"
    assert found["test_images"] == 10
    assert found["settings"]["user_data"]["split_seed"] == 3
    (folder,) = tmp_path.glob("zoo-tiny-so-2shot-seed1-*")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["split_file"] == str(zoo)
    assert provenance["split_file_sha256"] == found["split_sha256"]
    again = run(zoo, tmp_path, "dataset.split_seed=3")
    assert "finished before: skipped" in again.out


@pytest.mark.slow
def test_one_more_image_makes_another_run_also_within_a_sweep(tmp_path: Path):
    zoo = tmp_path / "zoo"
    write_class_folders(zoo, ANIMALS[:3], images=6)
    for count in (1, 2, 2):
        assert run(zoo, tmp_path / "r", "method=zero_shot").code == 0
        assert len(list((tmp_path / "r").glob("zoo-*"))) == count
        if count == 1:
            (zoo / "bee" / "more.png").write_bytes((zoo / "bee" / "0.png").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("protocol=base_to_new",),
        ("imbalance=0.5", "shots=3"),
        ("transfer=[digits]", "dataset.name=mine"),
        ("split_protocol=coop", "method=tip_adapter"),
        ("method=linear_probe",),
    ],
    ids=str,
)
def test_protocols_and_methods_work_as_on_any_dataset(
    options: tuple[str, ...], zoo: Path, tmp_path: Path
):
    outcome = run(zoo, tmp_path, *options)
    assert outcome.code == 0, outcome.err
    assert 0 <= metrics(tmp_path, "*-tiny-")["accuracy_percent"] <= 100


@pytest.mark.slow
def test_user_images_can_be_test_sets_of_other_training_data(zoo: Path, tmp_path: Path):
    where = (f"transfer=[folder:{zoo}]", f"results_dir={tmp_path}")
    outcome = call(*SHORT, "shots=1", "evaluation.batch_size=512", *where)
    assert outcome.code == 0, outcome.err
    found = metrics(tmp_path, "digits-")
    assert found["transfer"]["zoo"]["test_images"] == 10
    (folder,) = tmp_path.glob("digits-*")
    assert (folder / "predictions_zoo.csv").is_file()


@pytest.mark.slow
def test_a_csv_file_runs_like_the_folders_it_lists(zoo: Path, tmp_path: Path):
    rows = [f"{name}/{n}.png;{name}" for name in ANIMALS for n in range(8)]
    file = tmp_path / "list.csv"
    file.write_text("\ufeff" + "\r\n".join(["path;label", *rows]), encoding="utf-8")
    assert run(zoo, tmp_path / "a").code == 0
    assert run(zoo, tmp_path / "b", "dataset=csv", f"dataset.csv_file={file}").code == 0
    ours, theirs = metrics(tmp_path / "a"), metrics(tmp_path / "b")
    assert ours["run_fingerprint"] == theirs["run_fingerprint"]
    assert ours["accuracy_percent"] == theirs["accuracy_percent"]
    file.write_text("path,label\nant/0.png,ant\nant/none.png,ant\nbee/0.png,bee\nbee/9.png,bee\n")
    outcome = run(zoo, tmp_path / "c", "dataset=csv", f"dataset.csv_file={file}")
    assert outcome.code == 2
    assert "2 of 4 images of zoo are missing, first ant/none.png" in outcome.err
    assert "split file" not in outcome.err


@pytest.mark.parametrize(
    "method",
    [
        "so",
        *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_METHODS),
    ],
)
def test_descriptions_replace_templates(method: str, zoo: Path, prompts: Path, tmp_path: Path):
    outcome = run(zoo, tmp_path, f"template={prompts}", f"method={method}")
    assert outcome.code == 0, outcome.err
    assert metrics(tmp_path)["settings"]["template"] == str(prompts)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_methods_of_one_prompt_refuse_descriptions(
    method: str, zoo: Path, prompts: Path, tmp_path: Path
):
    outcome = run(zoo, tmp_path, f"template={prompts}", f"method={method}")
    assert outcome.code == 2
    assert "template=FILE with class descriptions: a class has 2 prompts here" in outcome.err


@pytest.mark.slow
def test_the_content_of_a_prompt_file_is_part_of_the_run(zoo: Path, tmp_path: Path):
    file = tmp_path / "prompts.json"
    prints = []
    for content in (DESCRIPTIONS, DESCRIPTIONS | {"cat": "a {} asleep"}, ["a {}."]):
        file.write_text(json.dumps(content))
        assert run(zoo, tmp_path / "r", "method=zero_shot", f"template={file}").code == 0
        prints.append({path.name for path in (tmp_path / "r").glob("zoo-*")})
    assert [len(folders) for folders in prints] == [1, 2, 3]


@pytest.mark.slow
def test_descriptions_work_for_published_datasets_new_classes_and_targets(
    zoo: Path, tmp_path: Path
):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    file = tmp_path / "digits.json"
    file.write_text(
        json.dumps({name: [f"a {name}", "{}, drawn"][: 1 + len(name) % 2] for name in names})
    )
    common = ("evaluation.batch_size=512", "shots=1", f"template={file}", f"results_dir={tmp_path}")
    assert call(*SHORT, *common, "protocol=base_to_new").code == 0
    outcome = call(*SHORT, *common, f"transfer=[folder:{zoo}]")
    assert outcome.code == 2
    assert "no prompts for 5 of 5 classes, such as 'ant'" in outcome.err


@pytest.mark.slow
def test_draw_and_forecast_work_with_user_images(zoo: Path):
    where = ("dataset=folder", f"data_root={zoo}")
    drawn = json.loads(call("draw", *where, "shots=1").out)
    assert drawn["dataset"] == "zoo"
    assert len(drawn["train"]) == 5
    forecast = call("forecast", *where, "backbone=tiny")
    assert "tiny on zoo" in forecast.out, forecast.err


@pytest.mark.slow
def test_the_doctor_examines_user_images(zoo: Path, tmp_path: Path):
    where = ("dataset=folder", f"data_root={zoo}")
    found = call("doctor", *where)
    assert found.code == 0
    assert "zoo: whole, 40 images, 40 of them checked" in found.out
    assert "5 classes; images: 20 train, 10 val, 10 test" in found.out
    found = call(
        "doctor", "dataset=folder", f"dataset.folder={zoo}", f"data_root={tmp_path / 'none'}"
    )
    assert (found.code, found.err) == (0, "")
    assert "zoo: whole, 40 images" in found.out
    broken = tmp_path / "broken"
    write_class_folders(broken, ANIMALS[:2], images=4)
    (broken / "bee" / "0.png").write_bytes(b"\x89PNG")
    found = call("doctor", "dataset=folder", f"data_root={broken}", "dataset.name=odd")
    assert found.code == 1
    assert "odd: faulty" in found.out
    assert "bee/0.png" in found.out
    assert call("doctor", "dataset=digits", "dataset.name=x", f"data_root={zoo}").code == 2


def test_a_printed_split_gives_the_same_split_again(zoo: Path, tmp_path: Path):
    where = ("dataset=folder", f"data_root={zoo}", "dataset.split_seed=5")
    file = tmp_path / "split.csv"
    file.write_text(call("draw", *where, "--split").out)
    listed = ("dataset=csv", f"dataset.csv_file={file}", f"data_root={zoo}")
    assert call("draw", *listed, "--split").out == file.read_text()
    assert call("draw", *listed).out == call("draw", *where).out
    digits = call("draw", "dataset=digits", "--split").out.splitlines()
    assert digits[:2] == ["path,label,split", digits[1]]
    assert len(digits) == 1 + 898 + 359 + 540


@pytest.mark.slow
def test_two_user_datasets_are_two_columns(zoo: Path, tmp_path: Path):
    farm = tmp_path / "farm"
    write_class_folders(farm, ANIMALS[:3], images=4)
    for folder in (zoo, farm):
        assert run(folder, tmp_path / "r", "method=zero_shot").code == 0
    shown = call("table", tmp_path / "r").out
    assert "| shots | method | farm | zoo | average |" in " ".join(shown.split())

"""cards_dir=FOLDER: the user's own cards in every command, and in a run's identity."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_store import ConfigStore

from so_clip.build import check_classes
from so_clip.config.compose import compose, register
from so_clip.config.parse import from_config
from so_clip.config.recorded import repeating
from so_clip.config.settings import Settings
from so_clip.data.cards.card import load_card
from so_clip.data.find import find_card
from so_clip.data.run_data import gather
from so_clip.errors import InputError
from so_clip.fingerprint import KnownRuns, contents_sha256, run_fingerprint
from so_clip.system.paths import CARDS_DIR
from tests.data.cards.test_user_cards import CARD, NAMES
from tests.helpers.bases import clip_base
from tests.helpers.command import call
from tests.helpers.made_datasets import write_class_folders, write_split_dataset

SHORT = ("experiment=demo", "schedule.max_steps=1", "schedule.batch_size=2", "shots=1")
KIN = {
    "name": "kin",
    "title": "Relatives of mine",
    "layout": "wordnet_folders",
    "folder": "kin",
    "classes_of": "mine",
    "sizes": {"classes": 2, "train": 0, "val": 0, "test": 4},
} | {key: CARD[key] for key in ("image_dir", "licence", "homepage", "citation")}


def write_card(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    content = CARD | {"class_folders": ["r", "b"]} | changes
    (folder / f"{content['name']}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data root with a dataset of its own, and the cards of it and of a test set."""
    write_split_dataset(tmp_path / "data", "mine", "images", "split.json", NAMES)
    write_class_folders(tmp_path / "data" / "kin" / "images", ("r", "b"))
    write_card(tmp_path / "cards")
    (tmp_path / "cards" / "kin.yaml").write_text(yaml.safe_dump(KIN), encoding="utf-8")
    return tmp_path


def where(home: Path) -> tuple[str, ...]:
    return ("dataset=mine", f"data_root={home / 'data'}", f"cards_dir={home / 'cards'}")


def settings(home: Path, *overrides: str) -> Settings:
    return from_config(compose([*where(home), *overrides]))


def fingerprint(home: Path, *overrides: str) -> str:
    chosen = settings(home, *overrides)
    return run_fingerprint(
        chosen, contents_sha256(gather(chosen.data), "plain"), clip_base("weights")
    )


def test_runs_read_the_users_cards_beside_the_known_ones(home: Path):
    chosen = settings(home, "transfer=[kin,digits]", "shots=2")
    data = gather(chosen.data)
    assert [test_set.card.name for test_set in data.test_sets] == ["mine", "digits", "kin"]
    assert data.test_sets[2].columns == (0, 1)
    assert chosen.record()["cards_dir"] == str(home / "cards")
    bound = settings(home, "transfer=[kin]", "method=linear_probe")
    check_classes(bound.method, bound.data)
    # The steps of a method that counts epochs depend on the number of classes in the card.
    assert settings(home, "method=tip_adapter_f", "shots=4").schedule.max_steps == 20
    assert find_card("kin", None, cards_dir=home / "cards").parent_labels == (0, 1)


def test_a_card_counts_by_its_content_and_not_by_its_place(home: Path):
    known = fingerprint(home)
    shutil.copytree(home / "cards", home / "copy")
    assert fingerprint(home, f"cards_dir={home / 'copy'}") == known
    write_card(home / "cards", title="Renamed", licence="CC0", homepage="https://example.org")
    assert fingerprint(home) == known
    # The same lists, with other images under the same names.
    shutil.copytree(home / "data" / "mine" / "images", home / "data" / "mine" / "dark")
    write_card(home / "cards", image_dir="dark")
    assert fingerprint(home) != known


def test_a_sweep_sees_that_a_card_has_changed(home: Path):
    runs, chosen = KnownRuns(), settings(home)
    runs.remember(chosen, gather(chosen.data), clip_base("weights"))
    assert runs.find(chosen) is not None
    write_card(home / "cards", templates={"plain": "a {}.", "specific": "a {}."})
    assert runs.find(chosen) is None


@pytest.mark.slow
def test_every_command_takes_the_folder(home: Path):
    outcome = call("draw", *where(home), "shots=1")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["dataset"] == "mine"
    outcome = call("doctor", *where(home), "check=all")
    assert outcome.code == 0, outcome.err
    assert f"cards_dir={home / 'cards'}" in outcome.out.splitlines()[-1]
    outcome = call("-m", *where(home), *SHORT, f"results_dir={home / 'runs'}", "seed=1,2")
    assert outcome.code == 0, outcome.err
    run, other = sorted((home / "runs").glob("mine-tiny-so-1shot-*"))
    for more in ([], [f"cards_dir={home / 'cards'}"]):
        again = from_config(compose(repeating(run, more))).record()
        assert again == json.loads(json.dumps(yaml.safe_load((run / "config.yaml").read_text())))
    assert other.is_dir()


@pytest.mark.slow
def test_forecasts_and_parallel_sweeps_take_the_folder(home: Path):
    outcome = call("forecast", *where(home), *SHORT, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["dataset"] == "mine"
    results = f"results_dir={home / 'runs'}"
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2")
    outcome = call("-m", *where(home), *SHORT, results, *parallel)
    assert outcome.code == 0, outcome.err
    assert len(list((home / "runs").glob("mine-tiny-so-1shot-*"))) == 2


def test_a_sweep_may_compare_folders_of_cards(home: Path):
    write_card(home / "b c", name="second")
    write_card(home / "d,e", name="third")
    register([f"cards_dir='{home / 'b c'}',\"{home / 'd,e'}\""])
    assert {"second.yaml", "third.yaml"} <= {*ConfigStore.instance().list("dataset")}


def test_a_published_name_and_a_missing_folder_are_refused(home: Path):
    write_card(home / "cards", name="dtd")
    with pytest.raises(InputError, match=r"dtd\.yaml: dtd is the name of a published dataset"):
        load_card("dtd", home / "cards")
    shutil.copy(CARDS_DIR / "dtd.yaml", home / "cards")  # a copy is no other dataset
    assert load_card("dtd", home / "cards").user_file is None
    with pytest.raises(InputError, match=r"cards_dir=.*none: there is no such folder"):
        compose(["dataset=mine", f"cards_dir={home / 'none'}"])
    with pytest.raises(InputError, match=r"dataset=mine: .*cards_dir=FOLDER adds your own cards"):
        load_card("mine")

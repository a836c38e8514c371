"""Fingerprints of runs, the hashes that a process keeps, and the scores of each version."""

import csv
import json
import os
from dataclasses import replace

import pytest
from safetensors.torch import save_file

from so_clip import fingerprint as fingerprint_module
from so_clip.build import build_model
from so_clip.clip.load import load_backbone
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.resolve import resolved
from so_clip.config.settings import Settings
from so_clip.data.run_data import gather
from so_clip.fingerprint import (
    RESULTS_VERSION,
    Base,
    KnownRuns,
    contents_sha256,
    run_dir,
    run_fingerprint,
)
from so_clip.run import run
from tests.helpers.bases import clip_base
from tests.helpers.made_datasets import write_dtd, write_eurosat

# For each RESULTS_VERSION, runs with their overrides, adapted accuracy in percent, and first and
# last loss. Another processor rounds differently; a change of the computation has a larger effect.
PINNED = {
    3: [
        ("experiment=demo schedule.max_steps=6", 64.074, 1.567166, 2.600357),
        (
            "method=clip_lora schedule.max_steps=4 shots=2 augment.flip=false",
            61.296,
            1.970698,
            2.400633,
        ),
        ("method=tip_adapter_f schedule.max_steps=4 seed=2", 61.852, 3.213301, 2.529073),
    ]
}


def _settings(*overrides: object) -> Settings:
    return from_config(compose([*map(str, overrides), "evaluation.workers=0"]))


def test_every_part_changes_the_fingerprint():
    settings, other = _settings(), _settings("seed=2")
    first = run_fingerprint(settings, "lists", clip_base("weights"))
    assert len(first) == 64
    assert first == run_fingerprint(
        _settings("threads=3", "force=true"), "lists", clip_base("weights")
    )
    others = {
        run_fingerprint(other, "lists", clip_base("weights")),
        run_fingerprint(settings, "another", clip_base("weights")),
        run_fingerprint(settings, "lists", clip_base("other")),
        run_fingerprint(settings, "weights", clip_base("lists")),
        run_fingerprint(settings, "lists", clip_base("weights", resize_mode="squash")),
        run_fingerprint(settings, "lists", clip_base("weights", mean=[0.5, 0.5, 0.5])),
        run_fingerprint(_settings("backbone.resize_mode=squash"), "lists", clip_base("weights")),
    }
    assert len({first, *others}) == 8


def test_another_results_version_is_another_run(monkeypatch):
    before = run_fingerprint(_settings(), "lists", clip_base("weights"))
    monkeypatch.setattr(fingerprint_module, "RESULTS_VERSION", RESULTS_VERSION + 1)
    assert run_fingerprint(_settings(), "lists", clip_base("weights")) != before


def test_all_gpus_of_a_machine_share_a_fingerprint():
    fingerprints = {
        run_fingerprint(_settings(f"device={device}"), "lists", clip_base("weights"))
        for device in ("cuda", "cuda:0", "cuda:1")
    }
    assert len(fingerprints) == 1
    assert (
        run_fingerprint(_settings("device=cpu"), "lists", clip_base("weights")) not in fingerprints
    )


def _contents(*overrides: object) -> str:
    settings = _settings(*overrides)
    return contents_sha256(gather(settings.data), settings.data.template)


def test_the_lists_of_every_test_set_count(tmp_path):
    write_eurosat(tmp_path)
    write_dtd(tmp_path)
    place = ("dataset=eurosat", f"data_root={tmp_path}", "shots=1")
    alone, halves = _contents(*place), _contents(*place, "protocol=base_to_new")
    before = _contents(*place, "transfer=[dtd]")
    file = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    split = json.loads(file.read_text())
    file.write_text(json.dumps(split | {"val": split["val"][1:]}))
    assert len({alone, halves, before, _contents(*place, "transfer=[dtd]")}) == 4
    assert _contents(*place) == alone


def test_shortened_lists_change_the_hash():
    """The lists count, not their file: a script may use a part of the file."""
    data = gather(_settings().data)
    lists = data.splits
    first, *others = (
        contents_sha256(replace(data, splits=item), "plain")
        for item in (
            lists,
            replace(lists, train=lists.train[1:]),
            replace(lists, val=lists.val[1:]),
            replace(lists, test=lists.train),
            replace(lists, test=lists.test[::-1]),
            replace(lists, class_names=lists.class_names[:2]),
        )
    )
    assert len({first, *others}) == 6
    assert first == contents_sha256(gather(_settings("seed=2").data), "plain")


def test_prompts_count_by_their_text(tmp_path):
    write_eurosat(tmp_path)
    write_dtd(tmp_path)
    place = ("dataset=eurosat", f"data_root={tmp_path}", "transfer=[dtd]")
    data = gather(_settings(*place).data)
    (other,) = data.others

    def edited(card):
        return replace(card, templates=card.templates | {"specific": "a good photo of a {}."})

    own, others = edited(data.card), (replace(other, card=edited(other.card)),)
    specific = [
        contents_sha256(item, "specific")
        for item in (data, replace(data, card=own), replace(data, others=others))
    ]
    assert len({*specific}) == 3
    plain = contents_sha256(data, "plain")
    assert plain == contents_sha256(replace(data, card=own), "plain")
    assert plain == contents_sha256(data, data.card.templates["plain"]) not in specific


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "needs", ["dataset=eurosat", "transfer=[dtd]", "dataset=textile transfer=[dtd]"]
)
def test_the_data_root_counts_by_its_real_path(needs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("data")
    runs = [
        run_fingerprint(
            _settings(*needs.split(), f"data_root={place}"), "lists", clip_base("weights")
        )
        for place in ("data", tmp_path / "data", "./data", "link", "elsewhere")
    ]
    assert len({*runs[:4]}) == 1
    assert runs[4] != runs[0]


def test_images_of_a_package_have_no_data_root():
    for needs in ("dataset=digits", "dataset=textile"):
        runs = [
            run_fingerprint(_settings(needs, f"data_root={place}"), "lists", clip_base("weights"))
            for place in ("data", "elsewhere")
        ]
        assert runs[0] == runs[1]


def _known(settings: Settings) -> tuple[KnownRuns, str, Base]:
    """Return the memory of a process that has done one run, and its two hashes."""
    known, data = KnownRuns(), gather(settings.data)
    base = clip_base(build_model(resolved(settings), data).weights_sha256)
    return known, known.remember(settings, data, base), base


@pytest.mark.slow
def test_a_process_remembers_the_lists_and_weights_of_its_runs(tmp_path):
    write_eurosat(tmp_path)
    place = ("dataset=eurosat", f"data_root={tmp_path}")
    settings = _settings(*place)
    assert KnownRuns().find(settings) is None
    known, contents, base = _known(settings)
    assert known.base(settings) == base
    settings = _settings(*place, "shots=1", "seed=2", "method=adamw")
    fingerprint = run_fingerprint(
        resolved(settings).with_logit_scale(base.logit_scale), contents, base
    )
    assert known.find(settings) == (run_dir(settings, fingerprint), fingerprint)
    for other in ("transfer=[dtd]", "template=specific", "protocol=base_to_new"):
        assert known.find(_settings(*place, other)) is None
    assert known.find(_settings("dataset=digits")) is None
    assert known.find(_settings(*place, "backbone.logit_scale=50")) is None
    file = tmp_path / "eurosat" / "split_zhou_EuroSAT.json"
    os.utime(file, ns=(0, 0))
    assert known.find(settings) is None
    file.unlink()
    assert known.find(settings) is None


@pytest.mark.slow
def test_random_weights_belong_to_their_seed():
    settings = _settings("backbone.pretrained=null", "seed=1")
    known, *_ = _known(settings)
    assert known.base(settings) is not None
    assert known.base(_settings("backbone.pretrained=null", "seed=2")) is None
    assert known.base(_settings("seed=1")) is None


def test_a_changed_checkpoint_is_not_known(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(load_backbone("tiny", seed=3).model.state_dict(), file)
    settings = _settings(f"backbone.checkpoint={file}")
    known, *_ = _known(settings)
    assert known.base(settings) is not None
    assert known.base(_settings(f"backbone.checkpoint={file}", "seed=2")) is not None
    os.utime(file, ns=(0, 0))
    assert known.base(settings) is None


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("overrides", "accuracy", "first", "last"), PINNED[RESULTS_VERSION])
def test_results_are_those_of_this_version(overrides, accuracy, first, last, tmp_path):
    """If a change of results is intended, raise RESULTS_VERSION and add the new values."""
    settings = _settings(*overrides.split(), "threads=1", f"results_dir={tmp_path}")
    result = run(settings, gather(settings.data))
    with (result.folder / "history.csv").open(newline="", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert (losses[0], losses[-1]) == pytest.approx((first, last), rel=1e-3)
    # Rounding may change the prediction of one of the 540 images.
    assert result.metrics["accuracy_percent"] == pytest.approx(accuracy, abs=0.4)

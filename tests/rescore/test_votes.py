"""Votes of several models, against one image at a time; groups of runs by all but the seed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from so_clip.rescore.kept_runs import KeptRun
from so_clip.rescore.votes import groups, vote
from so_clip.results.logits_file import ModelLogits


def _model(seed: int, images: int, classes: int, label_N: Any) -> ModelLogits:
    logits_NK = np.random.default_rng(seed).normal(0, 2, (images, classes)).astype(np.float16)
    logits_NK -= logits_NK.max(axis=1, keepdims=True)
    logits_NK[(logits_NK == 0) & (logits_NK.argmax(axis=1)[:, None] != np.arange(classes))] = -1
    rank_N = (logits_NK > np.take_along_axis(logits_NK, label_N[:, None], axis=1)).sum(axis=1)
    return ModelLogits(logits_NK, np.ones(images, np.float32), rank_N)


def test_votes_equal_one_image_at_a_time():
    label_N = np.random.default_rng(0).integers(0, 4, 200)
    for count in (2, 3, 5):
        models = [_model(seed, 200, 4, label_N) for seed in range(1, count + 1)]
        majority = mean = 0
        for image, label in enumerate(label_N):
            rows = [model.logits_NK[image].astype(np.float64) for model in models]
            mean_K = sum(softmax(row_K) for row_K in rows) / count
            counts = Counter(int(row_K.argmax()) for row_K in rows)
            most = max(counts.values())
            tied = [place for place, votes in counts.items() if votes == most]
            majority += max(tied, key=lambda place: mean_K[place]) == label
            mean += mean_K.argmax() == label
        found = vote(models, label_N)
        assert found.majority == 100 * majority / 200
        assert found.mean_probability == 100 * mean / 200
        assert found.single == [100 * float((model.rank_N == 0).mean()) for model in models]


def test_models_that_agree_vote_as_one():
    label_N = np.random.default_rng(0).integers(0, 4, 50)
    model = _model(1, 50, 4, label_N)
    found = vote([model] * 3, label_N)
    assert found.majority == found.mean_probability == found.single[0]


def _run(fingerprint: str, seed: int = 1, **more: Any) -> KeptRun:
    options = {"seed": seed, "device": "cpu", "results_dir": fingerprint, "optimizer": {"lr": 0.1}}
    settings = options | more.pop("settings", {})
    metrics = {"seed": seed, "settings": settings, "run_fingerprint": fingerprint, **more}
    return KeptRun(Path(f"/runs/{fingerprint}"), metrics, ("",), False)


def test_runs_that_differ_only_in_the_seed_are_a_group():
    runs = [
        _run("c", 3),
        _run("a", 1, settings={"device": "cuda:0", "evaluation": {"workers": 1}}),
        _run("d", 3, settings={"device": "cuda:1", "evaluation": {"workers": 3}}),
        _run("b", 2),
        _run("b", 2),
        _run("other rate", 4, settings={"optimizer": {"lr": 0.2}}),
        _run("other prompts", 5, prompts_sha256="0"),
        _run("validation images", 6, tested_on="val"),
        _run("an adapter tested again", 1, trained_on="digits"),
    ]
    left_out: list[str] = []
    found = [[run.metrics["run_fingerprint"] for run in group] for group in groups(runs, left_out)]
    assert found == [["b", "c"], ["a", "d"]]
    assert left_out == []


def test_two_different_runs_with_one_seed_do_not_vote():
    left_out: list[str] = []
    assert [*groups([_run("a", 1), _run("b", 1), _run("c", 2)], left_out)] == []
    (line,) = left_out
    assert "because 2 different runs have seed=1" in line

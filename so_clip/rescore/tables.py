"""The tables of rescored runs, as tidy frames: one line per score, vote or interpolation weight."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from so_clip.errors import InputError
from so_clip.rescore.kept_runs import KeptRun
from so_clip.rescore.votes import groups, vote
from so_clip.rescore.weight_space import WeightSpace
from so_clip.results.logit_scores import ensemble_accuracy, logit_scores
from so_clip.results.logits_file import KeptLogits
from so_clip.results.scores import ADAPTED, ZERO_SHOT

MODELS = {ZERO_SHOT: "zero-shot", ADAPTED: "adapted"}
# The shares of the adapted model along a curve.
WEIGHTS = tuple(index / 10 for index in range(11))
# The value of `tested_on` in metrics.json for test images.
TEST = "test"
# The values of the column `space` of curves.
OUTPUTS, WEIGHT_SPACE = "outputs", "weights"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Tables:
    """All tables. A table without a line has no columns.

    Attributes:
        scores: by run, test set, model, and before or after scaling.
        votes: by group of runs that differ only in the seed, and test set.
        curves: by run, test set, space and weight.
        left_out: one line for each run or group that is left out, with the reason.
    """

    scores: pd.DataFrame
    votes: pd.DataFrame
    curves: pd.DataFrame
    left_out: Sequence[str]


def make_tables(
    runs: Sequence[KeptRun], left_out: list[str], weight_space: WeightSpace | None = None
) -> Tables:
    """Read the kept logits of runs and score them.

    Args:
        runs: with kept logits.
        left_out: lines about other runs; gets more.
        weight_space: adds curves in weight space; None adds none.

    Raises:
        InputError: a run that the user named cannot be used, or no run can.
    """
    scores: Rows = []
    curves: Rows = []
    images_sha256: dict[tuple[KeptRun, str], str] = {}
    weights = WEIGHTS if weight_space is None else weight_space.weights
    for run in runs:
        for test_set in run.test_sets:
            try:
                kept = run.read(test_set)
            except InputError as error:
                if run.is_named:
                    raise
                left_out.append(str(error))
                continue
            images_sha256[run, test_set] = kept.images_sha256
            names = _names(run, test_set)
            scores += [names | row for row in _score_rows(kept)]
            curves += [names | row for row in _output_curve(kept, weights)]
        if weight_space is not None:
            try:
                curves += _weight_curve(run, weight_space)
            except InputError as error:
                if run.is_named:
                    raise
                left_out.append(f"no curve in weight space: {error}")
    if not scores:
        raise InputError(f"no run has kept logits. Left out: {' '.join(left_out)}")
    votes = [*_vote_rows(runs, images_sha256, left_out)]
    frame = pd.DataFrame(scores).astype({"calibrated_on": "Int64"})
    return Tables(frame, pd.DataFrame(votes), pd.DataFrame(curves), left_out)


def _names(run: KeptRun, test_set: str) -> dict[str, Any]:
    """Return the columns that name a run and a test set."""
    metrics = run.metrics
    columns = ("dataset", "backbone", "method", "method_title", "shots", "seed")
    own, tested_on = metrics["dataset"], metrics.get("tested_on", TEST)
    return {
        "folder": str(run.folder),
        "run": run.folder.name,
        **{name: metrics[name] for name in columns},
        "test_set": test_set or (own if tested_on == TEST else f"{own} ({tested_on})"),
    }


def _score_rows(kept: KeptLogits) -> Iterator[dict[str, Any]]:
    for prefix, model in kept.models.items():
        fitted = kept.temperatures[prefix]
        for temperature in (None, fitted) if fitted is not None else (None,):
            yield {
                "model": MODELS[prefix],
                "temperature": temperature,
                "calibrated_on": None if temperature is None else kept.calibrated_on,
                "images": len(kept.label_N),
                "classes": kept.classes,
                **logit_scores(model, kept.label_N, temperature),
            }


def _output_curve(kept: KeptLogits, weights: Sequence[float]) -> Iterator[dict[str, Any]]:
    if len(kept.models) < len(MODELS):
        return
    for weight in weights:
        accuracy = ensemble_accuracy(
            kept.models[ZERO_SHOT], kept.models[ADAPTED], kept.label_N, weight
        )
        yield {"space": OUTPUTS, "weight": weight, "accuracy_percent": accuracy}


def _weight_curve(run: KeptRun, weight_space: WeightSpace) -> Rows:
    """Return the lines of all test sets. Weights 0 and 1 are the models with kept logits."""
    found = [*weight_space.accuracies(run)]
    for test_set in run.test_sets:
        models = run.read(test_set).models
        for weight, prefix in ((0.0, ZERO_SHOT), (1.0, ADAPTED)):
            if weight in weight_space.weights and prefix in models:
                accuracy = 100.0 * float((models[prefix].rank_N == 0).mean())
                found.append((test_set, weight, accuracy))
    return [
        _names(run, test_set)
        | {"space": WEIGHT_SPACE, "weight": weight, "accuracy_percent": accuracy}
        for test_set, weight, accuracy in sorted(found)
    ]


def _vote_rows(
    runs: Sequence[KeptRun],
    images_sha256: Mapping[tuple[KeptRun, str], str],
    left_out: list[str],
) -> Iterator[dict[str, Any]]:
    for group in groups(runs, left_out):
        for test_set in dict.fromkeys(name for run in group for name in run.test_sets):
            members = [run for run in group if (run, test_set) in images_sha256]
            if len(members) < 2:
                continue
            if len({images_sha256[run, test_set] for run in members}) > 1:
                left_out.append(
                    f"{members[0].folder}: no vote with its other seeds, because their test "
                    f"images of {test_set or members[0].metrics['dataset']} differ."
                )
                continue
            found = [run.read(test_set) for run in members]
            if not all(ADAPTED in kept.models for kept in found):
                continue
            votes = vote([kept.models[ADAPTED] for kept in found], found[0].label_N)
            yield {
                **_names(members[0], test_set),
                "seed": " ".join(str(run.metrics["seed"]) for run in members),
                "runs": len(members),
                "images": len(found[0].label_N),
                "single_accuracy_percent": sum(votes.single) / len(members),
                "majority_accuracy_percent": votes.majority,
                "mean_probability_accuracy_percent": votes.mean_probability,
            }

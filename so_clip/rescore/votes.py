"""Votes over seeds: runs that differ only in the seed classify the same test images together.

Array names end in their shape: N test images, K classes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from so_clip.clip.loading.architecture_names import is_place
from so_clip.config.settings import NO_DIFFERENCE
from so_clip.rescore.kept_runs import KeptRun
from so_clip.results.logit_scores import probabilities, row_groups
from so_clip.results.logits_file import ModelLogits
from so_clip.results.run_files import PROVENANCE_FILE, flat_options, read_object

_SEEDS = ("seed", "adapter.seed", "optimizer.seed")
# Keys of metrics.json that must be equal beside the settings.
_CONTENTS = ("prompts_sha256", "results_version", "processes", "tested_on", "trained_on")


class Votes(NamedTuple):
    """Accuracies in percent: of each run, of the majority, and of the mean probability."""

    single: list[float]
    majority: float
    mean_probability: float


def vote(models: Sequence[ModelLogits], label_N: npt.NDArray[Any]) -> Votes:
    """Return the accuracy of models that vote.

    The majority vote takes the class that most models predict. Among classes with equal votes it
    takes the one with the largest mean probability. The mean of probabilities takes the class with
    the largest mean of softmax(logits).
    """
    majority = mean_probability = 0
    for rows in row_groups(models[0].logits_NK):
        # A row has 0 for its predicted class only.
        votes_NK = np.add.reduce([model.logits_NK[rows] == 0 for model in models], dtype=np.float64)
        mean_NK = np.mean([probabilities(model.logits_NK[rows]) for model in models], axis=0)
        majority += int(((votes_NK + mean_NK / 2).argmax(axis=1) == label_N[rows]).sum())
        mean_probability += int((mean_NK.argmax(axis=1) == label_N[rows]).sum())
    return Votes(
        [100.0 * float((model.rank_N == 0).mean()) for model in models],
        100.0 * majority / len(label_N),
        100.0 * mean_probability / len(label_N),
    )


def groups(runs: Sequence[KeptRun], left_out: list[str]) -> Iterator[list[KeptRun]]:
    """Yield the groups of two or more runs that differ only in the seed, sorted by seed.

    Args:
        runs: of any kind. Copies of one run count once.
        left_out: gets a line for each group with two different runs of one seed.
    """
    by_key: dict[str, dict[str, KeptRun]] = defaultdict(dict)
    for run in runs:
        by_key[_key_without_seed(run)].setdefault(str(run.metrics.get("run_fingerprint")), run)
    for members in by_key.values():
        group = sorted(members.values(), key=lambda run: run.metrics["seed"])
        seed, count = Counter(run.metrics["seed"] for run in group).most_common(1)[0]
        if count > 1:
            left_out.append(
                f"{group[0].folder}: no vote with its other seeds, because {count} different runs "
                f"have seed={seed}. Give only one of them."
            )
        elif len(group) > 1:
            yield group


def _key_without_seed(run: KeptRun) -> str:
    metrics = run.metrics
    settings: Mapping[str, Any] = metrics["settings"]
    options = {
        name: value
        for name, value in flat_options(settings).items()
        if name not in (*NO_DIFFERENCE, *_SEEDS) and not name.startswith("user_data")
    }
    options["device"] = str(options.get("device")).partition(":")[0]
    backbone = settings.get("backbone")
    weights = None
    if isinstance(backbone, Mapping) and _has_weights(backbone):
        weights = read_object(run.folder / PROVENANCE_FILE).get("backbone_weights_sha256")
    contents = [metrics.get(name) for name in _CONTENTS]
    return json.dumps([options, contents, weights], sort_keys=True)


def _has_weights(backbone: Mapping[str, Any]) -> bool:
    """Return whether the weights are no random ones, which the seed decides."""
    named = backbone.get("pretrained") or backbone.get("checkpoint")
    return bool(named) or is_place(str(backbone.get("architecture")))

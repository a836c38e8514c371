"""Makes the commands of a page small: the embedded backbone, one step, few runs.

The test checks that the command runs, not its score. A page with recorded outputs is run as it is
written instead.
"""

import re
from collections.abc import Sequence

import yaml

from so_clip.cli.program import COMMANDS
from so_clip.system.paths import CONF_DIR

SMALL = "SO_CLIP_PAGE_SMALL"  # the variable that asks for small commands
SOURCES = "SO_CLIP_PAGE_SOURCES"  # names the folder of tests/helpers/page_sources.py
ONE_STEP, TWO_STEPS = "schedule.max_steps=1", "schedule.max_steps=2"
MOST_RUNS, MOST_LAUNCHED = 4, 2
# The first to be cut in a sweep that is too long, and how many values stay: methods stay longest.
_CUT_FIRST = (("seed", 2), ("shots", 1), ("dataset", 1), ("seed", 1))
SENTENCES = ("rte", "wnli", "mrpc", "cola", "sst2")


def small(arguments: Sequence[str]) -> tuple[list[str], tuple[int, ...]]:
    """Return the arguments of the small command, and the exit codes that are right for it."""
    words = list(arguments)
    if not words or any(word in ("-h", "--help", "--show-completion") for word in words):
        return words, (0,)
    if words[0] == "doctor":
        return words, (0, 1)  # the made datasets are smaller than the published ones
    if words[0] == "meta" and "--forecast" not in words:
        return _small_meta(words), (0,)
    if words[0] == "forecast":
        return _without_backbone(words), (0,)  # published models are built whole, without values
    if words[0] == "backbones":
        return _one_model(words), (0,)
    if words[0] in COMMANDS:
        return words, (0,)
    return _small_run(words), (0,)


def _small_run(words: list[str]) -> list[str]:
    """Return the arguments of a run or sweep that takes seconds."""
    experiment = next((word for word in words if word.startswith("experiment=")), "")
    kept = _without_backbone(words)
    kept = [re.sub(r"^tasks=\d+$", "tasks=2", word) for word in kept]
    if "-m" in kept:
        # A launcher starts a process for each run, and each imports torch.
        launched = any(word.startswith("hydra/launcher=") for word in kept)
        kept = _fewer(kept, MOST_LAUNCHED if launched else MOST_RUNS)
    if experiment not in ("", "experiment=demo"):
        kept += _small_experiment(experiment, kept)
    kept = [word for word in kept if not word.startswith("schedule.max_steps=")]
    # AdaLoRA's schedule of ranks has two steps or more.
    last = TWO_STEPS if "method=adalora" in kept else ONE_STEP
    return kept if "method=zero_shot" in kept else [*kept, last]


def _small_meta(words: Sequence[str]) -> list[str]:
    """Return the arguments of a meta-training with one update."""
    counts = {"training.tasks": 4, "validate_every": 4, "validation_tasks": 1, "test_tasks": 2}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    small = {key: str(count) for key, count in counts.items()}
    small |= {key: str(min(int(given[key]), counts[key])) for key in counts if key in given}
    if given.get("backbone") != "tiny":
        small |= {"backbone": "tiny", "sources": "[digits]", "targets": "[eurosat]"}
        small["episodes.ways"] = "[2,5]"
    kept = [word for word in words if word.partition("=")[0] not in small]
    return [*kept, *(f"{key}={value}" for key, value in small.items())]


def _one_model(words: Sequence[str]) -> list[str]:
    """Return the arguments of `backbones` for few models: to build one of each takes long."""
    listed = "--matching" in words or any("*" in word for word in words)
    names = ["--matching", "ViT-S-32"] if "--matching" in words else ["ViT-S-32*"]
    return ["backbones", *(names if listed else ["tiny"])]


def _without_backbone(words: list[str]) -> list[str]:
    published = r"backbone(\.\w+)?=|model=(?!folder$|minilm$)"
    return [word for word in words if not re.match(published, word)]


def _small_experiment(experiment: str, words: Sequence[str]) -> list[str]:
    """Return options that the command line leaves to a published experiment, for one run."""
    file = CONF_DIR / "experiment" / f"{experiment.partition('=')[2]}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    swept = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    options = {key: _values(f"{key}={values}")[0] for key, values in swept.items()}
    if words[0] in SENTENCES:
        options["model"] = "minilm"
    else:
        options |= {"backbone": "tiny", "dataset": "eurosat", "seed": "1", "shots": "1"}
    given = {word.partition("=")[0] for word in words}
    return [f"{key}={value}" for key, value in options.items() if key not in given]


def _fewer(words: list[str], most: int) -> list[str]:
    """Return a sweep's arguments with at most `most` runs: values are cut from the end."""
    cells = {word.partition("=")[0]: _values(word) for word in words}
    order = [*_CUT_FIRST, *((key, 1) for key in reversed(cells))]
    for key, least in order:
        while _runs(cells) > most and len(cells.get(key, [])) > least:
            cells[key] = cells[key][:-1]
    return [_joined(word, cells[word.partition("=")[0]]) for word in words]


def _values(word: str) -> list[str]:
    """Return the values of an option that a sweep varies; one value for another option."""
    _, _, text = word.partition("=")
    return [text] if any(mark in text for mark in "[{'\"(") else text.split(",")


def _joined(word: str, values: Sequence[str]) -> str:
    key, equals, _ = word.partition("=")
    return f"{key}={','.join(values)}" if equals else word


def _runs(cells: dict[str, list[str]]) -> int:
    count = 1
    for values in cells.values():
        count *= len(values)
    return count


def small_script(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a script of the repository: its manual, where it takes long."""
    return ["--help"] if arguments[0].startswith("scripts/") else list(arguments[1:])

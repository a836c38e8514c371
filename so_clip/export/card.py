"""The model card of an export: README.md with front matter for the Hugging Face hub."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from so_clip.escape import markdown
from so_clip.export.files import CLASSES_FILE, CLASSIFIER_FILE
from so_clip.results.run_files import number_of

USER_IMAGES = "your own images"
_ZERO_SHOT, _ADAPTED = "zero_shot_accuracy_percent", "accuracy_percent"
_ADDRESS = re.compile(r"https?://[\w./?=&%+#~-]+", re.ASCII)
# Columns of the table row: title, key in metrics.json, and form.
_SCORES = (
    ("Zero-shot accuracy (%)", _ZERO_SHOT, ".2f"),
    ("Accuracy (%)", _ADAPTED, ".2f"),
    ("Base classes (%)", "base_accuracy_percent", ".2f"),
    ("New classes (%)", "new_accuracy_percent", ".2f"),
    ("Harmonic mean (%)", "harmonic_mean_percent", ".2f"),
    ("ECE (%)", "expected_calibration_error_percent", ".2f"),
    ("Test images", "test_images", ".0f"),
    ("Trained parameters", "trainable_parameters", ".0f"),
    ("Training time (s)", "train_seconds", ".0f"),
    ("Peak memory (MiB)", "peak_memory_mib", ".0f"),
)


@dataclass(frozen=True)
class Origin:
    """Where an adapted model comes from. All texts are foreign: they come from files.

    Attributes:
        architecture, pretrained: of the base; pretrained is None for a local file.
        weights_sha256: of the base's weights.
        method, method_title: the adapter's and optimizer's.
        dataset, dataset_title: the training data.
        licence, homepage: of the data, from the dataset's card; "" if unknown.
        shots, seed: of the few-shot images; None if unknown.
        class_names: in the order of the logits.
        prompts: of each class.
        metrics: the run's metrics.json; empty if only a file was given.
    """

    architecture: str
    pretrained: str | None
    weights_sha256: str
    method: str
    method_title: str
    dataset: str
    dataset_title: str
    licence: str
    homepage: str
    shots: int | None
    seed: int | None
    class_names: Sequence[str]
    prompts: Sequence[Sequence[str]]
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loading:
    """How a library loads an export.

    Attributes:
        library: its name on the hub.
        title: of the export, such as "A checkpoint for open_clip".
        snippet: Python that classifies photo.jpg.
        base_model: the base on the hub, if it is known.
        notes: sentences about this export.
    """

    library: str
    title: str
    snippet: str
    base_model: str | None
    notes: Sequence[str] = ()


def card(origin: Origin, loading: Loading, needs_classifier: bool) -> str:
    """Return the text of README.md.

    Args:
        origin: see there.
        loading: see there.
        needs_classifier: whether CLIP's own text encoder does not give the classes.
    """
    sections = [
        _front_matter(loading),
        f"# {_text(origin.architecture)} for {_text(origin.dataset_title)}\n",
        _facts(origin, loading),
        *(f"{note}\n" for note in loading.notes),
        _classes(needs_classifier),
        _scores(origin.metrics),
        f"## Load it\n\nIn a copy of this folder:\n\n```python\n{loading.snippet.strip()}\n```\n",
        _licence(origin),
    ]
    return "\n".join(section for section in sections if section)


def _front_matter(loading: Loading) -> str:
    values: dict[str, Any] = {
        "library_name": loading.library,
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "few-shot", "so-clip"],
    }
    if loading.base_model:
        values["base_model"] = loading.base_model
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n"


def _facts(origin: Origin, loading: Loading) -> str:
    weights = f", {_text(origin.pretrained)} weights" if origin.pretrained else ""
    few_shots = f", {origin.shots} images per class" if origin.shots is not None else ""
    seed = f", seed {origin.seed}" if origin.seed is not None else ""
    rows = {
        "What it is": loading.title,
        "Base": f"{_text(origin.architecture)}{weights}, SHA-256 `{origin.weights_sha256}`",
        "Method": f"{_text(origin.method_title)} ({_text(origin.method)})",
        "Trained on": f"{_text(origin.dataset_title)}{few_shots}{seed}",
        "Classes": str(len(origin.class_names)),
    }
    return "".join(f"- {name}: {value}\n" for name, value in rows.items())


def _classes(needs_classifier: bool) -> str:
    text = (
        f"`{CLASSIFIER_FILE}` has one row `weight[k]` and one `bias[k]` for each class: logits are "
        "unit-length image embeddings times the transposed weight, plus the bias. "
        f"`{CLASSES_FILE}` has the names and prompts of the classes in this order."
    )
    if needs_classifier:
        return (
            f"**Classify with `{CLASSIFIER_FILE}`.** The method changes the classifier itself, so "
            f"the prompts and the text encoder alone give other logits. {text}\n"
        )
    return f"{text} The text encoder turns other prompts into other classes.\n"


def _scores(metrics: Mapping[str, Any]) -> str:
    found = {
        title: format(value, form)
        for title, key, form in _SCORES
        if (value := number_of(metrics, key)) is not None
    }
    if not found:
        return ""
    rows = (found, ["---:"] * len(found), found.values())
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"## Scores\n\nOn the test split of its dataset:\n\n{table}\n"


def _licence(origin: Origin) -> str:
    data = f"The licence of the data is {_text(origin.licence)}" if origin.licence else ""
    if origin.dataset_title == USER_IMAGES:
        data = "The data are your own images"
    data = data or "The licence of the data is unknown"
    home = f" ({_address(origin.homepage)})" if origin.homepage else ""
    return (
        f"## Licence\n\n{data}{home}. These weights derive from the base's weights and the data: "
        "both licences bind them, and this card grants none.\n"
    )


def _address(text: str) -> str:
    return f"<{text}>" if _ADDRESS.fullmatch(text) else _text(text)


def _text(text: object) -> str:
    return markdown(str(text))

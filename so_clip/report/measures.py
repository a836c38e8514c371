"""What a table can measure, and its columns: datasets and costs."""

from dataclasses import dataclass

# The papers' order and short names; other datasets follow in alphabetical order.
DATASETS = {
    "imagenet": "ImageNet",
    "sun397": "SUN397",
    "fgvc": "Aircraft",
    "eurosat": "EuroSAT",
    "stanford_cars": "Cars",
    "food101": "Food101",
    "oxford_pets": "Pets",
    "oxford_flowers": "Flowers",
    "caltech101": "Caltech101",
    "dtd": "DTD",
    "ucf101": "UCF101",
}
SECONDS = "train_seconds"
EVALUATION, TASKS = "evaluation", "tasks"


@dataclass(frozen=True)
class Column:
    """One column: a dataset, the average over datasets, or a cost."""

    key: str
    title: str
    decimals: int = 2


# Cost columns beside accuracies, shown if runs recorded them.
COSTS = (
    Column("peak_memory_mib", "memory (MiB)", 1),
    Column(SECONDS, "training (s)", 1),
    Column("train_tflops", "training (TFLOP)"),
    Column("steps", "steps", 0),
)
# A column of runs on sentences only: they stop at a batch's loss, so their steps are a result.
STEPS = "steps"


@dataclass(frozen=True)
class Measure:
    """The number that a table shows: its column in the runs, its caption, and what is best.

    `interval` is the column of the half width of its 95 % interval over sampled tasks.
    """

    name: str
    column: str
    caption: str
    best: str = "max"
    decimals: int = 2
    costs: bool = False
    interval: str = ""


MEASURES = (
    Measure("accuracy", "accuracy_percent", "Test accuracy in percent", costs=True),
    Measure(
        "base_accuracy", "base_accuracy_percent", "Accuracy on base classes in percent", costs=True
    ),
    Measure("new_accuracy", "new_accuracy_percent", "Accuracy on new classes in percent"),
    Measure(
        "harmonic_mean", "harmonic_mean_percent", "Harmonic mean of base and new accuracy, percent"
    ),
    Measure("transfer", "accuracy_percent", "Test accuracy on other datasets in percent"),
    Measure(EVALUATION, "accuracy_percent", "Test accuracy of saved adapters in percent"),
    Measure(
        TASKS,
        "accuracy_percent",
        "Accuracy over sampled tasks in percent",
        costs=True,
        interval="accuracy_interval_percent",
    ),
    Measure(
        "calibration",
        "expected_calibration_error_percent",
        "Expected calibration error in percent (15 bins)",
        best="min",
    ),
    Measure("memory", "peak_memory_mib", "Peak memory in MiB", best="min", decimals=1),
    Measure("seconds", SECONDS, "Training time in seconds", best="min", decimals=1),
    Measure("flops", "train_tflops", "Training in TFLOP", best="min"),
)

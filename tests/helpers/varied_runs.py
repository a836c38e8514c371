"""Made runs of many kinds in one folder: all measures, protocols, sizes of numbers and scripts."""

import json
from pathlib import Path
from typing import Any

from tests.helpers.page_runs import write_run

METHODS = (("so", "SO", 80.0), ("adamw", "AdamW (dense)", 70.0), ("clip_lora", "CLIP-LoRA", 85.0))
NAMES = ("猫", "شجرة", "कुत्ता", "🐱 cat", "a rather long name of a class 2", "plain")


def write_varied_runs(root: Path) -> None:
    """Write about 40 runs that together fill every table and every plot of a report."""
    for number, (method, title, accuracy) in enumerate(METHODS):
        for dataset in ("digits", "dtd"):
            for shots in (1, 16):
                for seed in (1, 2):
                    share = accuracy + shots / 4 + seed / 7 + number
                    memory = 900.0 + 130_000.4 * number + seed / 3
                    folder = write_run(root, dataset=dataset, method=method, title=title,
                                       shots=shots, seed=seed, accuracy_percent=share,
                                       peak_memory_mib=memory, test_images=60)  # fmt: skip
                    _change(folder, train_flops=1.25e12 * (number + 1) + seed,
                            train_seconds=3.0 + 1234.56 * number + seed,
                            mean_class_accuracy_percent=share - 1 / 3,
                            transfer={"eurosat": {"accuracy_percent": 40.125 + seed}},
                            transfer_accuracy_percent=40.125 + seed,
                            trainable_parameters=1_234_567)  # fmt: skip
    for kappa in (5e-3, 5e-2, 0.3):
        for interval in (0, 10):
            accuracy = 70 + 20 * kappa + interval / 7
            write_run(root, density_ratio=kappa, T=interval, method="so_k", title="SO, κ",
                      accuracy_percent=accuracy, steps=3, test_images=40)  # fmt: skip
    for rate in (1e-5, 2e-3):
        write_run(root, method="lr", title="Rates", lr=rate, shots=1, accuracy_percent=59.995)
    write_run(root, method="zero_shot", title="Zero-shot CLIP", accuracy_percent=61.0)
    for seed in (1, 2):
        folder = write_run(root, method="so", title="SO", shots=4, seed=seed, folder=f"new-{seed}")
        _change(folder, protocol="base_to_new", base_accuracy_percent=81.005 + seed,
                new_accuracy_percent=55.555, harmonic_mean_percent=65.9 + seed)  # fmt: skip
        changes: dict[str, Any] = {"imbalance": 0.5} if seed == 1 else {"skipped_test_images": 3}
        _change(write_run(root, method="so", shots=16, seed=5 + seed), **changes)
    breeds = [f"breed {number}" for number in range(35)]
    write_run(root, dataset="oxford_pets", class_names=breeds, test_images=300)
    write_run(root, dataset="photos 写真", class_names=NAMES, test_images=80)
    write_run(root, dataset="two", class_names=("yes", "no"), test_images=50, steps=1)
    folder = write_run(root, dataset="eurosat", backbone="ViT-B-16", shots=16)
    _change(folder, backbone_pretrained="openai")


def _change(folder: Path, **values: Any) -> None:
    """Change values of a run's metrics; settings of the same name change too."""
    metrics = json.loads((folder / "metrics.json").read_text())
    pretrained = values.pop("backbone_pretrained", None)
    if pretrained:
        metrics["settings"]["backbone"]["pretrained"] = pretrained
    for key in ("protocol", "imbalance"):
        if key in values:
            metrics["settings"][key] = values[key]
    (folder / "metrics.json").write_text(json.dumps(metrics | values))
    (folder / "config.yaml").write_text(json.dumps(metrics["settings"]))

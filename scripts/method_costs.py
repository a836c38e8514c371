"""Forecast what a training step of every method costs with CLIP ViT-B/16: memory and operations.

python scripts/method_costs.py                     # 37 minutes on two shared cores
python scripts/method_costs.py --methods so lora   # other methods keep their rows

Writes results/tables/method_costs.csv, which the methods' pages show. No weights, images or GPU are
needed: the numbers are those of `python -m so_clip forecast`, on tensors without values. A method
that a forecast refuses has a row with the reason, and no numbers.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import MADE_BY, hardware
from so_clip.backbones.methods import method_names
from so_clip.config.compose import compose
from so_clip.config.early_checks import check_packages, check_smat_file
from so_clip.config.parse import from_config
from so_clip.data.cards.card import load_card
from so_clip.errors import InputError, reason_of
from so_clip.forecast.predict import forecast
from so_clip.system.atomic import write_text

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "results" / "tables" / "method_costs.csv"
COMMAND = "python scripts/method_costs.py"
DATASET, BACKBONE, SHOTS = "dtd", "vit_b16", 4
TERA = 10**12
COLUMNS = (
    "method",
    "method_title",
    "architecture",
    "dataset",
    "shots",
    "precision",
    "batch_size",
    "steps",
    "trained_parameters",
    "peak_memory_mib",
    "weights_mib",
    "gradients_mib",
    "optimizer_state_mib",
    "activations_mib",
    "step_tflop",
    "training_tflop",
    "reason",
    *MADE_BY,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, forecast each method, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", help="methods; others keep their rows")
    parser.add_argument("--dataset", default=DATASET, help="a dataset with a card")
    parser.add_argument("--backbone", default=BACKBONE, help="a file of conf/backbone")
    parser.add_argument("--out", type=Path, default=TABLE, help="the CSV file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    if options.methods and options.out.exists():
        kept = pd.read_csv(options.out, dtype=str, keep_default_na=False)
        rows = {row["method"]: row for row in kept.to_dict("records")}
    for method in tqdm(options.methods or method_names(), dynamic_ncols=True):
        rows[method] = row_of(method, options.dataset, options.backbone)
        ordered = [rows[method] for method in sorted(rows)]
        # Objects: a column of whole numbers would become floats where a method has none.
        table = pd.DataFrame(ordered, columns=list(COLUMNS), dtype=object)
        write_text(options.out, table.to_csv(index=False))  # now: a stopped command keeps its rows


def row_of(method: str, dataset: str, backbone: str) -> dict[str, Any]:
    """Return the row of a method: its forecast, or why there is none."""
    overrides = [f"method={method}", f"dataset={dataset}", f"backbone={backbone}"]
    settings = from_config(compose([*overrides, f"shots={SHOTS}", "device=cpu"]))
    made_by = (COMMAND, hardware(torch.device("cpu")), 1, torch.__version__)
    row = {
        "method": method,
        "method_title": settings.method.title,
        "architecture": settings.backbone.architecture,
        "dataset": dataset,
        "shots": SHOTS,
        **dict(zip(MADE_BY, made_by, strict=True)),
    }
    try:
        check_packages(settings.method)
        check_smat_file(settings.method)
        values = forecast(settings, load_card(dataset))
    except InputError as error:
        return row | {"reason": reason_of(error)}
    row |= {name: values[name] for name in ("precision", "batch_size", "steps") if name in values}
    row |= {name: round(value, 1) for name, value in values.items() if name in _MEMORY}
    row["trained_parameters"] = values["trainable_parameters"]
    if "flops_per_step" in values:
        row["step_tflop"] = float(f"{values['flops_per_step'] / TERA:.4g}")
        row["training_tflop"] = float(f"{values['training_flops'] / TERA:.4g}")
    return row


_MEMORY = frozenset(name for name in COLUMNS if name.endswith("_mib"))

if __name__ == "__main__":
    main()

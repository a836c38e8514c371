"""The methods that apply to each family of backbones: a table for the docs.

python scripts/backbone_methods.py           # some minutes on one core
python scripts/backbone_methods.py --step    # also takes a training step with each

Writes results/tables/backbone_methods.csv and the table between the two comments in
docs/benchmarks/backbones.md. One architecture of each family is built without weights, with
open_clip's sizes, and each method opens its parameters on it. The text towers of Hugging Face have
the default sizes of transformers, because the published sizes are on the hub.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from so_clip.backbones.methods import method_names, refusals
from so_clip.backbones.without_weights import backbone_without_weights
from so_clip.clip.loading.architecture import architecture_config
from so_clip.system.atomic import write_text

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "results" / "tables" / "backbone_methods.csv"
PAGE = ROOT / "docs" / "benchmarks" / "backbones.md"
BEGIN, END = "<!-- made by scripts/backbone_methods.py -->", "<!-- end of the table -->"
YES, NO = "yes", "no"
# The family's name, one of its architectures, and transformers' configuration of its text tower.
FAMILIES = (
    ("ViT of OpenAI, LAION, DFN, MetaCLIP", "ViT-B-16", ""),
    ("MetaCLIP 2", "ViT-H-14-worldwide", ""),
    ("CLIPA", "ViT-L-14-CLIPA", ""),
    ("CoCa", "coca_ViT-B-32", ""),
    ("ResNet", "RN50", ""),
    ("ConvNeXt", "convnext_base", ""),
    ("SigLIP", "ViT-B-16-SigLIP", ""),
    ("SigLIP 2", "ViT-B-16-SigLIP2", ""),
    ("EVA-01, EVA-02-E", "EVA01-g-14", ""),
    ("EVA-02", "EVA02-B-16", ""),
    ("PE-Core", "PE-Core-B-16", ""),
    ("ViTamin", "ViTamin-B", ""),
    ("MobileCLIP-B, -L", "MobileCLIP-B", ""),
    ("MobileCLIP-S (FastViT)", "MobileCLIP-S1", ""),
    ("Swin", "swin_base_patch4_window7_224", ""),
    ("ViT, relative positions", "vit_relpos_medium_patch16_cls_224", ""),
    ("ViT, average of tokens", "vit_medium_patch16_gap_256", ""),
    ("RoBERTa text tower", "roberta-ViT-B-32", "RobertaConfig"),
    ("XLM-RoBERTa text tower", "xlm-roberta-base-ViT-B-32", "XLMRobertaConfig"),
    ("mT5 text tower", "mt5-base-ViT-B-32", "MT5Config"),
    ("NLLB text tower", "nllb-clip-base", "M2M100Config"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, try all methods, and write the table and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step", action="store_true", help="take a training step, too")
    parser.add_argument("--families", nargs="+", help="architectures; others keep their rows")
    parser.add_argument("--methods", nargs="+", help="methods; others keep their rows")
    parser.add_argument("--out", type=Path, default=TABLE, help="the CSV file")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page with the table")
    options = parser.parse_args(argv)
    chosen = [row for row in FAMILIES if row[1] in (options.families or [row[1]])]
    methods = options.methods or method_names()
    made = {
        (row["architecture"], row["method"]): row
        for family in tqdm(chosen, dynamic_ncols=True)
        for row in rows_of(*family, methods, options.step)
    }
    if options.families or options.methods:
        kept = pd.read_csv(options.out, keep_default_na=False).to_dict("records")
        made = {(row["architecture"], row["method"]): row for row in kept} | made
    order = [family for family, _, _ in FAMILIES]
    table = pd.DataFrame(
        sorted(made.values(), key=lambda row: (order.index(row["family"]), row["method"]))
    )
    write_text(options.out, table.to_csv(index=False))
    text = options.page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(options.page, f"{before}{BEGIN}\n{page_table(options.out)}\n{END}{after}")


def rows_of(
    family: str, architecture: str, text: str, methods: Sequence[str], step: bool
) -> Iterator[dict[str, str]]:
    """Yield a row for each method."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with tempfile.TemporaryDirectory() as folder:
        config = architecture_config(architecture)
        if text:
            import transformers

            getattr(transformers, text)().save_pretrained(folder)
            config["text_cfg"] = config["text_cfg"] | {"hf_model_name": folder}
        backbone = backbone_without_weights("the model", config, mode, cut=True)
    refused = refusals(backbone, mode, methods, step=step)
    for method in methods:
        reason = refused.get(method, "")
        applies = NO if reason else YES
        yield {
            "family": family,
            "architecture": architecture,
            "method": method,
            "applies": applies,
            "reason": reason,
        }


def page_table(file: Path) -> str:
    """Return the table of a CSV file as Markdown, with the groups of methods and the reasons.

    Methods with the same answers for all families share a column.
    """
    table = pd.read_csv(file, keep_default_na=False)
    notes: dict[str, int] = {}
    answers = {
        method: tuple(_cell(reason, notes) for reason in rows["reason"])
        for method, rows in table.groupby("method", sort=True)
    }
    columns: dict[tuple[str, ...], list[str]] = {}
    for method, cells in answers.items():
        columns.setdefault(cells, []).append(str(method))
    ordered = sorted(columns.items(), key=lambda item: -len(item[1]))
    letters = [chr(ord("A") + i) for i in range(len(ordered))]
    families = list(dict.fromkeys(table["family"]))
    lines = [
        f"| family | {' | '.join(letters)} |",
        "| --- |" + " --- |" * len(letters),
        *(
            f"| {family} | {' | '.join(cells[i] for cells, _ in ordered)} |"
            for i, family in enumerate(families)
        ),
        "",
    ]
    for letter, (_, methods) in zip(letters, ordered, strict=True):
        lines.append(f"- {letter}: {', '.join(methods)}")
    lines += ["", *(f"{number}. {reason}" for reason, number in notes.items())]
    return "\n".join(lines).rstrip()


def _cell(reason: str, notes: dict[str, int]) -> str:
    if not reason:
        return YES
    return str(notes.setdefault(_short(reason), len(notes) + 1))


def _short(reason: str) -> str:
    """Return the first sentence of a reason, without the names of single tensors and options."""
    sentence = re.split(r"(?<=\.) ", reason)[0]
    sentence = re.sub(r"\b(visual|text|transformer)\.[\w.]+", "a chosen tensor", sentence)
    sentence = re.sub(
        r"adapter\.roles=\[.*?\]: (.*) of them with position=all", r"\1 of the roles", sentence
    )
    sentence = sentence.removeprefix("adapter.roles: ")
    return re.sub(r"kind=\w+", "the method", sentence)


if __name__ == "__main__":
    main()

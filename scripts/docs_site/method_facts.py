"""The fence `facts` of a method's page: its defaults, and what it costs.

    method: so
    part: defaults      # or cost; both if it is left out

The defaults are read from the composed configuration, with the comments of the files in conf/. The
costs are read from tables that commands wrote; a method without a row says so.
"""

import csv
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from scripts.docs_site.blocks import name_pages
from scripts.docs_site.fences import FenceError, placed

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
DIGITS = ROOT / "results" / "tables" / "digits_methods.csv"
COSTS = ROOT / "results" / "tables" / "method_costs.csv"
SHOTS = "4"
DATASET = "dtd"  # the defaults are those of a run on this dataset: some lengths depend on it
PARTS = ("defaults", "cost")
ON_SENTENCES = ("head",)  # methods that no run on images takes
GROUPS = ("adapter", "optimizer", "schedule")
MADE_BY = ("command", "hardware", "threads", "torch")
# What the schedules of all methods mean, where their files have no comment.
_SCHEDULE = {
    "batch_size": "images of a step",
    "max_steps": "steps of the training, at most",
    "stop_loss": "training ends when an epoch's mean loss is below this; 0: never",
    "lr_min": "learning rate at the end of the cosine",
    "drop_last": "leave out the last batch of an epoch if it is incomplete and not the only one",
    "crops": "random crops of each image in an epoch",
}
_OPTIMIZER = {
    "lr": "learning rate, first value of the cosine",
    "betas": "decay of the two moments per step",
    "eps": "added to the root of the second moment",
    "momentum": "share of the last step that the next one keeps",
}


@placed
def facts(
    source: str, language: str, css_class: str, options: Any, md: Any, **arguments: Any
) -> str:
    """Return the HTML of a fence; the signature is that of superfences' formatters.

    Raises:
        FenceError: the fence names an unknown method, part or key.
    """
    try:
        asked = yaml.safe_load(source)
    except yaml.YAMLError as error:
        raise FenceError(f"facts: {error}") from error
    if not isinstance(asked, dict) or set(asked) - {"method", "part"} or "method" not in asked:
        raise FenceError(f"facts: needs `method: NAME`, and perhaps `part:`; got {source!r}")
    method, part = str(asked["method"]), asked.get("part")
    if not (CONF / "method" / f"{method}.yaml").exists():
        raise FenceError(f"facts: conf/method/{method}.yaml does not exist")
    if part not in (None, *PARTS):
        raise FenceError(f"facts: part: {part} must be one of {', '.join(PARTS)}")
    try:
        shown = [
            _defaults(method) if part != "cost" else "",
            _cost(method) if part != "defaults" else "",
        ]
    except (KeyError, TypeError, ValueError) as error:  # such as a word in a column of numbers
        raise FenceError(f"facts: {method}: {type(error).__name__}: {error}") from error
    return f'<div class="{css_class}">{"".join(shown)}</div>'


def _defaults(method: str) -> str:
    """Return the options of a method's parts as tables, and its "Different:" remarks."""
    parts = [_options_table(method, group) for group in GROUPS]
    found = remarks(method)
    if found:
        items = "".join(f"<li>{html.escape(remark)}</li>" for remark in found)
        parts.append(f"<p>What differs from the authors' code or paper:</p><ul>{items}</ul>")
    parts.append(
        f"<p><small>Defaults of a run with <code>{_run(method)}</code>. An asterisk marks a value "
        "that follows from other options.</small></p>"
    )
    return "".join(parts)


def _run(method: str) -> str:
    if method in ON_SENTENCES:
        return f"rte method={method}"
    return f"method={method} dataset={DATASET} shots={SHOTS}"


def _options_table(method: str, group: str) -> str:
    choice = chosen(method)[group]
    config = _composed(method)
    values = config[group]
    rows = [
        (f"{group}.{key}", _shown(group, key, values, config), meaning(group, choice, key))
        for key in values
        if key not in ("name", "_target_", "kind")
    ]
    title = f"{group.capitalize()} <code>{html.escape(choice)}</code>"
    if not rows:
        return f"<p>{title}: no options.</p>"
    body = "".join(
        f'<tr><th scope="row"><code>{html.escape(name)}</code></th>'
        f"<td><code>{html.escape(value)}</code>{star}</td><td>{_linked(text)}</td></tr>"
        for name, (value, star), text in rows
    )
    head = '<tr><th scope="col">Option</th><th scope="col">Default</th><th scope="col">Meaning</th>'
    return (
        f"<table><caption>{title}</caption><thead>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _linked(text: str) -> str:
    """Return an option's comment as HTML, with links from a method's page to the pages it names."""
    return name_pages(
        html.escape(text),
        lambda page, title: f'<a href="../{page.removesuffix("md")}html">{html.escape(title)}</a>',
    )


@cache
def _composed(method: str) -> Any:
    from so_clip.config.compose import compose
    from so_clip.config.trees import RUNS, SENTENCES

    if method in ON_SENTENCES:
        return compose([f"method={method}", "dataset=rte"], tree=SENTENCES)
    return compose([f"method={method}", f"dataset={DATASET}", f"shots={SHOTS}"], tree=RUNS)


def _shown(group: str, key: str, values: Any, config: Any) -> tuple[str, str]:
    """Return a value as one writes it on the command line, and an asterisk if it is computed."""
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(values)
    raw = written[key]
    if raw == "${seed}":
        return "seed", "*"
    value = OmegaConf.select(config, f"{group}.{key}")
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    computed = isinstance(raw, str) and "${" in raw
    return _written(value), "*" if computed else ""


def _written(value: Any) -> str:
    """Return a value as in YAML, with short numbers and no spaces."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def chosen(method: str) -> Mapping[str, str]:
    """Return the adapter, the optimizer and the schedule that a method's file names."""
    usual = "sentences" if method in ON_SENTENCES else "few_shot"
    found = {"adapter": "weights", "optimizer": "so", "schedule": usual}
    file = CONF / "method" / f"{method}.yaml"
    overrides = list(_defaults_list(file))
    for name in [*overrides]:
        group, _, choice = name.partition("=")
        if group == "optimizer":  # the released SO brings its schedule along
            overrides += _defaults_list(CONF / "optimizer" / f"{choice}.yaml")
    for name in overrides:
        group, _, choice = name.partition("=")
        if group in found and choice:
            found[group] = choice
    return found


def _defaults_list(file: Path) -> Iterator[str]:
    """Yield the entries of a file's defaults list: GROUP=CHOICE for overrides, else the name."""
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", []):
        if isinstance(entry, str):
            yield entry.partition("@")[0].rpartition("/")[2]
        else:
            for name, choice in entry.items():
                yield f"{name.removeprefix('override').strip().lstrip('/')}={choice}"


def meaning(group: str, choice: str, key: str) -> str:
    """Return the comment of an option in its file, or in a file that this one is built on."""
    for file in _files(group, choice):
        for line in file.read_text(encoding="utf-8").splitlines():
            match = re.match(rf" *{key}: *[^#]*#\s*(.*)$", line)
            if match:
                return match[1]
    if group == "schedule":
        return _SCHEDULE.get(key, "")
    if group == "optimizer" and key == "weight_decay":
        decoupled = any(
            "AdamW" in file.read_text(encoding="utf-8") for file in _files(group, choice)
        )
        return "decay of the weights, decoupled" if decoupled else "part of the gradient"
    return _OPTIMIZER.get(key, "") if group == "optimizer" else ""


def _files(group: str, choice: str) -> list[Path]:
    """Return a choice's file, and then the files of the same group that it is built on."""
    file = CONF / group / f"{choice}.yaml"
    files = [file]
    for name in _defaults_list(file):
        if "=" not in name and (CONF / group / f"{name}.yaml").exists():
            files += _files(group, name)
    return files


def remarks(method: str) -> list[str]:
    """Return the lines that begin with "Different:" in a method's file and its schedule's file."""
    files = [
        CONF / "method" / f"{method}.yaml",
        CONF / "schedule" / f"{chosen(method)['schedule']}.yaml",
    ]
    found = []
    for file in files:
        comment = [line[1:].strip() for line in _lines(file) if line.startswith("#")]
        text = " ".join(comment)
        if "Different:" in text:
            found.append(_sentence(text.partition("Different:")[2].strip()))
    return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _cost(method: str) -> str:
    return _measured(method) + _forecast(method)


def _measured(method: str) -> str:
    """Return what the runs on the digits measured: the mean over seeds at four shots."""
    rows = [row for row in _table(DIGITS) if row["method"] == method]
    rows = [row for row in rows if row["shots"] in (SHOTS, "0")]
    if not rows:
        return _missing("On the digits", "not measured", "results/tables/digits_methods.csv")
    seeds = len({row["seed"] for row in rows})
    values = [
        ("Trained parameters", f"{_mean(rows, 'trainable_parameters'):,.0f}"),
        ("Peak memory", f"{_mean(rows, 'peak_memory_mib'):,.1f} MiB"),
        ("Time of training", f"{_mean(rows, 'train_seconds'):,.1f} s"),
        ("Steps", f"{_mean(rows, 'steps'):,.0f}"),
    ]
    training = (
        f"{SHOTS} shots, mean over {seeds} seeds" if rows[0]["shots"] == SHOTS else "no shots"
    )
    title = f"Measured: the embedded CLIP on the digits, {training}"
    note = "Other work shared the cores, so the times are rough. "
    return _two_columns(title, values, note + _made_by(rows, DIGITS))


def _forecast(method: str) -> str:
    """Return the forecast for ViT-B/16."""
    rows = [row for row in _table(COSTS) if row["method"] == method]
    if not rows or rows[0]["reason"]:
        place, reason = "With ViT-B/16", rows[0]["reason"] if rows else ""
        return _missing(place, "not forecast", "results/tables/method_costs.csv", reason)
    row = rows[0]
    values = [
        ("Trained parameters", f"{int(row['trained_parameters']):,}"),
        ("Peak memory", f"{float(row['peak_memory_mib']):,.0f} MiB"),
    ]
    if row["step_tflop"]:
        step = f"{float(row['step_tflop']):.3g} TFLOP for {row['batch_size']} images"
        values.append(("A training step", step))
        values.append(("Steps", f"{int(row['steps']):,} at most"))
    title = (
        f"Forecast, not measured: {row['architecture']} on {row['dataset']}, {row['shots']} shots, "
        f"{row['precision']} on a CPU"
    )
    return _two_columns(title, values, _made_by(rows, COSTS))


def _two_columns(title: str, values: Sequence[tuple[str, str]], note: str) -> str:
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{html.escape(value)}</td></tr>'
        for name, value in values
    )
    return (
        f"<table><caption>{html.escape(title)}</caption><tbody>{body}</tbody></table>"
        f"<p><small>{note}</small></p>"
    )


def _made_by(rows: Sequence[Mapping[str, str]], file: Path) -> str:
    made = rows[0]
    return (
        f"From <code>{file.relative_to(ROOT)}</code>, written by "
        f"<code>{html.escape(made['command'])}</code>: {html.escape(made['hardware'])}, "
        f"{made['threads']} thread, torch {html.escape(made['torch'])}."
    )


def _missing(place: str, what: str, file: str, reason: str = "") -> str:
    why = reason.rstrip(".") if reason else f"<code>{file}</code> has no row for this method"
    shown = html.escape(why) if reason else why
    return f"<p>{place}: {what}: {shown}.</p>"


@cache
def _table(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _mean(rows: Sequence[Mapping[str, str]], column: str) -> float:
    return mean(float(row[column]) for row in rows)

"""The benchmark's tables, each from rows of plain values."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from scripts.bench.contenders import (
    ADAMW,
    BALANCED,
    DENSITY_RATIO,
    REFERENCE,
    Contender,
    Seconds,
    Shape,
    T,
    make_trainer,
    row_head,
)
from scripts.bench.estimate import Estimate, count, estimate
from scripts.bench.plans import Plan
from scripts.bench.tables import available_mib
from scripts.bench.timing import OptimizerTimes, spread, time_steps

Row = dict[str, Any]
TERA = 1e12
# Memory of each other contender while the reference steps: weights, and AdamW's moments.
_MIB_BESIDE = 800.0
# Usable share of the free memory: the allocator takes more than the tensors.
_USABLE = 0.9


def optimizer_rows(plan: Plan, device: torch.device) -> list[Row]:
    """Time optimizers alone, in turns of T steps, on all matrices of `plan.architecture`."""
    shape = Shape(plan.step_datasets[0], 1, plan.architecture)
    runs = [(BALANCED, density) for density in plan.densities]
    runs += [(ADAMW, 1.0), (REFERENCE, DENSITY_RATIO)]
    times = [
        OptimizerTimes(contender, replace(shape, density_ratio=density), device)
        for contender, density in runs
    ]
    for _ in tqdm(range(plan.optimizer_turns), "optimizers", unit="turn", dynamic_ncols=True):
        for optimizer_times in times:
            optimizer_times.turn()
    rows: list[Row] = [
        {
            "contender": contender.name,
            "title": contender.title,
            "architecture": plan.architecture,
            "density": density,
            **optimizer_times.result(),
        }
        for (contender, density), optimizer_times in zip(runs, times, strict=True)
    ]
    del times
    gc.collect()
    by_name = {row["contender"]: row["mean_seconds"] for row in rows}
    for row in rows:
        for other in (ADAMW, REFERENCE):
            row[f"times_faster_than_{other.name}"] = by_name[other.name] / row["mean_seconds"]
    return rows


def step_rows(plan: Plan, device: torch.device, optimizers: Sequence[Row]) -> list[Row]:
    """Time whole steps of the shapes of several datasets; contenders take turns."""
    rows: list[Row] = []
    for dataset in plan.step_datasets:
        shape = Shape(dataset, plan.step_batch, plan.architecture, precision=plan.precision)
        contenders = list(plan.step_contenders)
        notes: dict[str, str] = {}
        needed = _mib(estimate(REFERENCE, shape))
        limit, beside = plan.reference_limit_mib or available_mib(device) * _USABLE, 0.0
        if plan.reference_limit_mib is None:
            beside = _MIB_BESIDE * len(contenders)
        reference: list[Seconds] = []
        if needed > limit:
            contenders.remove(REFERENCE)
            few, many = plan.extrapolate_from
            reference = _extrapolated(shape, device, few, many)
            notes[REFERENCE.name] = (
                f"needs {needed / 1024:.1f} GiB: extrapolated from {few} and {many} classes"
            )
        elif needed > limit - beside:
            contenders.remove(REFERENCE)
            reference = time_steps([REFERENCE], shape, device, plan.rounds)[REFERENCE.name]
            notes[REFERENCE.name] = "alone, before the others, because of its memory"
            gc.collect()
        taken = time_steps(contenders, shape, device, plan.rounds)
        if reference:
            taken = {REFERENCE.name: reference, **taken}
        rows += _rows_of_steps(plan, shape, taken, notes, optimizers)
        gc.collect()
    return rows


def _extrapolated(shape: Shape, device: torch.device, few: int, many: int) -> list[Seconds]:
    """Return the seconds of two steps, extrapolated linearly from `few` and `many` classes."""
    one, other = (
        time_steps([REFERENCE], replace(shape, classes=classes), device, 2)[REFERENCE.name]
        for classes in (few, many)
    )
    share = (len(shape.prompts()) - few) / (many - few)
    return [
        Seconds(*(max(b, a + share * (b - a)) for a, b in zip(*steps, strict=True)))
        for steps in zip(one, other, strict=True)
    ]


def _rows_of_steps(
    plan: Plan,
    shape: Shape,
    taken: Mapping[str, Sequence[Seconds]],
    notes: Mapping[str, str],
    optimizers: Sequence[Row],
) -> list[Row]:
    rows: list[Row] = []
    for contender in plan.step_contenders:
        values = spread(taken[contender.name])
        refresh = _refresh_seconds(contender, optimizers)
        rows.append(
            {
                **row_head(shape, contender),
                "rounds": len(taken[contender.name]),
                **values,
                "refresh_seconds": refresh,
                "seconds_with_refresh": values["step_seconds"] + refresh / T,
                "note": notes.get(contender.name, ""),
            }
        )
    for key in ("step_seconds", "seconds_with_refresh"):
        reference = rows[0][key]
        for row in rows:
            row[f"times_faster_{key.removeprefix('seconds_')}"] = reference / row[key]
    return rows


def _refresh_seconds(contender: Contender, optimizers: Sequence[Row]) -> float:
    """Return the seconds to draw new supports, once in T steps; no timed step draws any."""
    for row in optimizers:
        if row["contender"] == (BALANCED.name if contender.kind == "so" else contender.name):
            if contender.kind == "so" and row["density"] != DENSITY_RATIO:
                continue
            return max(0.0, row["drawing_seconds"] - row["median_seconds"])
    return 0.0


def peak_rows(plan: Plan, device: torch.device) -> list[Row]:
    """Measure the allocator's peak for a step of the paper's batch, each contender alone."""
    rows: list[Row] = []
    work = [(dataset, who) for dataset in plan.memory_datasets for who in plan.cost_contenders]
    for dataset, contender in tqdm(work, "peaks", unit="step", dynamic_ncols=True):
        shape = Shape(dataset, plan.cost_batch, plan.architecture, precision=plan.precision)
        peak_mib = _allocated_mib(contender, shape, device)
        gc.collect()
        torch.cuda.empty_cache()
        rows.append(
            {
                **row_head(shape, contender),
                "peak_memory_mib": peak_mib,
            }
        )
    reference = {
        row["dataset"]: row["peak_memory_mib"] for row in rows if row["contender"] == REFERENCE.name
    }
    for row in rows:
        row["peak_part_of_reference"] = row["peak_memory_mib"] / reference[row["dataset"]]
    return rows


def _allocated_mib(contender: Contender, shape: Shape, device: torch.device) -> float:
    """Return the allocator's peak in MiB over a contender's step; NaN if it runs out of memory."""
    try:
        trainer = make_trainer(contender, shape, device)
        trainer.step()
        torch.cuda.reset_peak_memory_stats(device)
        trainer.step()
    except torch.cuda.OutOfMemoryError:
        return float("nan")
    return torch.cuda.max_memory_allocated(device) / 2**20


def cost_rows(plan: Plan) -> list[Row]:
    """Count FLOPs, and memory by category, of the paper's batch on every dataset."""
    rows: list[Row] = []
    work = [
        (dataset, contender)
        for dataset in plan.flop_datasets
        for contender in plan.cost_contenders
        if dataset in plan.memory_datasets or contender in plan.main_contenders
    ]
    reference: Estimate | None = None
    for dataset, contender in tqdm(work, "costs", unit="step", dynamic_ncols=True):
        shape = Shape(dataset, plan.cost_batch, plan.architecture)
        found = estimate(contender, shape, memory=dataset in plan.memory_datasets)
        reference = found if contender is REFERENCE else reference
        assert reference is not None
        row: Row = {
            "dataset": dataset,
            "classes": len(shape.prompts()),
            "architecture": shape.architecture,
            "batch": shape.batch,
            "contender": contender.name,
            "title": contender.title,
            "tflop": found.flops / TERA,
            "flops_below_reference_percent": 100 * (1 - found.flops / reference.flops),
            **(found.memory or {}),
        }
        if found.memory:
            row["peak_part_of_reference"] = _mib(found) / _mib(reference)
        rows.append(row)
    return rows + list(_averages(rows, plan))


def _averages(rows: Sequence[Row], plan: Plan) -> Iterator[Row]:
    """Yield mean FLOPs over datasets, for contenders that were counted on all datasets."""
    for contender in plan.cost_contenders:
        own = [row for row in rows if row["contender"] == contender.name]
        if len(own) < len(plan.flop_datasets):
            continue
        mean = {
            key: sum(row[key] for row in own) / len(own)
            for key in ("tflop", "flops_below_reference_percent")
        }
        same = {key: own[0][key] for key in ("architecture", "batch", "contender", "title")}
        yield {"dataset": f"mean of {len(own)}", **same, **mean}


def memory_check_rows(plan: Plan) -> list[Row]:
    """Compare counts on fake tensors with measurements on real ones, for small steps."""
    rows: list[Row] = []
    shape = Shape(plan.step_datasets[0], plan.step_batch, plan.small_architecture)
    for contender in tqdm(plan.cost_contenders, "memory check", unit="step", dynamic_ncols=True):
        trainer = make_trainer(contender, shape, torch.device("cpu"))
        trainer.step()
        real, fake = count(trainer), estimate(contender, shape)
        rows.append(
            {
                "dataset": shape.dataset,
                "architecture": shape.architecture,
                "batch": shape.batch,
                "contender": contender.name,
                "tflop_of_real_step": real.flops / TERA,
                "tflop_of_fake_step": fake.flops / TERA,
                "peak_mib_of_real_step": _mib(real),
                "peak_mib_of_fake_step": _mib(fake),
                "fake_by_real": _mib(fake) / _mib(real),
            }
        )
        del trainer
        gc.collect()
    return rows


def scaling_rows(plan: Plan, device: torch.device) -> list[Row]:
    """Time and count steps of the small model along classes, batch, density and depth."""
    base = Shape("dtd", plan.step_batch, plan.small_architecture, precision=plan.precision)
    named = replace(base, dataset=plan.scaling_dataset)
    all_contenders = list(plan.main_contenders)
    points: list[tuple[str, float | str, Shape, list[Contender]]] = []
    for classes in plan.classes:
        with_reference = classes <= plan.most_reference_classes
        who = all_contenders if with_reference else all_contenders[1:]
        points.append(("classes", classes, replace(named, classes=classes), who))
    points += [("batch", size, replace(base, batch=size), all_contenders) for size in plan.batches]
    for density in plan.densities:
        points.append(("density", density, replace(base, density_ratio=density), [BALANCED]))
    for position in plan.positions:
        points.append(("depth", position, replace(base, position=position), all_contenders[1:]))
    rows: list[Row] = []
    for axis, value, shape, contenders in points:
        taken = time_steps(contenders, shape, device, plan.scaling_rounds)
        for contender in contenders:
            found = estimate(contender, shape)
            rows.append(
                {
                    "axis": axis,
                    "value": value,
                    "dataset": shape.dataset,
                    "architecture": shape.architecture,
                    "batch": shape.batch,
                    "precision": shape.precision,
                    "contender": contender.name,
                    "title": contender.title,
                    "rounds": plan.scaling_rounds,
                    **spread(taken[contender.name]),
                    "tflop": found.flops / TERA,
                    "peak_memory_mib": _mib(found),
                }
            )
        gc.collect()
    return rows


def _mib(found: Estimate) -> float:
    assert found.memory is not None
    return found.memory["peak_memory_mib"]

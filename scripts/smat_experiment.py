"""Meta-train SMAT on rendered families and digits, and compare it with other methods.

    python scripts/smat_experiment.py                        # everything; takes long
    python scripts/smat_experiment.py --small --out FOLDER   # few tasks: does everything work?

Renders the families of pictures (scripts/smat/render.py), meta-trains experts for the embedded CLIP
on the first half of the classes of the source families and of the digits, and validates on the
other half. Targets are families that are held out, EuroSAT at 32 pixels if DATA_ROOT has it, and
the fabric images if their package is installed. Each method's learning rate is the best of three on
validation images of three targets, with other tasks than those of the test; no test image chooses
anything. The script writes OUT/tables/smat_tasks.csv (methods on sampled tasks), smat_all_way.csv
(all classes at once, over seeds), smat_masks.csv (learned, hand-designed and random entries at the
same number), smat_placement.csv and smat_overlap.csv (of the masks), and OUT/figures/smat_*.png.
Every number comes from the program's own commands, which are printed. Finished parts are skipped,
so the same command continues an interrupted experiment; with --only-finished, the tables have the
finished contenders. The script needs the extras `pretrain` and `report`.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from scripts.smat import plan, render
from scripts.smat.commands import Contest, Place, Unfinished, meta_train
from scripts.smat.families import families
from scripts.smat.plan import SMAT, UNTRAINED, Contender
from scripts.smat.tables import all_way_rows, task_rows
from so_clip.meta.outcome import MASKS_FILE, OVERLAP_FILE

RESULTS = Path(__file__).resolve().parents[1] / "results"
DATA_ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"


def main(argv: Sequence[str] | None = None) -> None:
    """Do what is missing, and write the tables and the figures."""
    options = _parse(argv)
    start = time.perf_counter()
    sizes = plan.SMALL if options.small else plan.FULL
    runs = options.out / "runs" / ("smat_small" if options.small else "smat")
    place = Place(runs.resolve() / "data", runs.resolve(), only_finished=options.only_finished)
    render.render(place.data, list(families()), images=sizes.images)
    sets = plan.datasets(
        with_eurosat=render.copy_eurosat(options.eurosat, place.data),
        with_textile=_has_textile(),
    )
    one, two = plan.table_one(), plan.table_two()
    tasks, all_way = _run_all(place, sizes, sets, [*one, *two], {each.name for each in one})
    folder = meta_train(place, SMAT, plan.meta_words(sizes), sets.sources)
    finished = {*tasks["contender"]}
    one, two = ([each for each in table if each.name in finished] for table in (one, two))
    compared = (("smat_tasks", one, "prototypes"), ("smat_masks", two, "sparta"))
    tables = {
        name: task_rows(tasks, table, reference)
        for name, table, reference in compared
        if reference in finished
    }
    tables |= {
        "smat_all_way": all_way_rows(all_way, one),
        "smat_placement": pd.read_csv(folder / MASKS_FILE).to_dict("records"),
        "smat_overlap": pd.read_csv(folder / OVERLAP_FILE).to_dict("records"),
    }
    _write(tables, options)
    print(f"{time.perf_counter() - start:.0f} s in all, without the parts that were finished")


def _run_all(
    place: Place,
    sizes: plan.Sizes,
    sets: plan.Datasets,
    contenders: Sequence[Contender],
    on_all_classes: set[str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Meta-train, and run the contenders in two processes at a time.

    Those of the first table that need no checkpoint run beside the meta-training.

    Returns:
        The accuracies of all tasks, and those on all classes.
    """
    contest = Contest(place, sizes, sets, checkpoints={})

    def meta(name: str, words: plan.Words) -> None:
        contest.checkpoints[name] = meta_train(place, name, words, sets.sources)

    def compete(contender: Contender) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        rate = contest.tune(contender)
        everything = contender.name in on_all_classes
        trained = sizes.tasks if everything else sizes.mask_tasks
        tasks = contest.tasks(contender, rate, trained if contender.rates else sizes.quick_tasks)
        return tasks, contest.all_way(contender, rate) if everything else None

    # The first table comes first, so that --only-finished soon has something to show.
    early = [c for c in contenders if c.checkpoint is None and c.name in on_all_classes]
    late = sorted((c for c in contenders if c not in early), key=lambda c: not c.checkpoint)
    with ThreadPoolExecutor(2) as executor:
        try:
            trained = [executor.submit(meta, SMAT, plan.meta_words(sizes))]
            trained.append(executor.submit(meta, UNTRAINED, plan.untrained_words()))
            found = {each.name: executor.submit(compete, each) for each in early}
            for work in trained:
                work.result()
            found |= {each.name: executor.submit(compete, each) for each in late}
            # All others finish before the error of one is raised, so a repetition has little to do.
            wait(found.values())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    frames, runs = [], []
    for contender in contenders:
        try:
            tasks, all_way = found[contender.name].result()
        except Unfinished as missing:
            print(f"{contender.name}: left out, {missing} is not finished")
            continue
        frames.append(tasks)
        runs += [] if all_way is None else [all_way]
    return pd.concat(frames, ignore_index=True), pd.concat(runs, ignore_index=True)


def _has_textile() -> bool:
    if importlib.util.find_spec("conformal_clip_data") is not None:
        return True
    print(f"{plan.TEXTILE}: skipped, its package is missing. Install the extra `textile`.")
    return False


def _write(tables: dict[str, list], options: argparse.Namespace) -> None:
    import torch

    from scripts.smat import plots

    torch.set_num_threads(1)  # as in every run; the tables record it
    command = "python scripts/smat_experiment.py" + (" --small" if options.small else "")
    folder, figures = options.out / "tables", options.out / "figures"
    made = {
        name: write_table(rows, folder / f"{name}.csv", torch.device("cpu"), command)
        for name, rows in tables.items()
    }
    titles = {"smat_tasks": "few-shot tasks", "smat_masks": "the same number of trained entries"}
    for name in [name for name in titles if name in made]:
        plots.accuracies(made[name], figures / f"{name}.png", titles[name])
    plots.masks(made["smat_placement"], made["smat_overlap"], figures / "smat_placement.png")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few tasks and steps of everything")
    parser.add_argument(
        "--only-finished", action="store_true", help="start nothing; write what is finished"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--eurosat", type=Path, default=DATA_ROOT, metavar="DATA_ROOT", help="folder of EuroSAT"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

"""Names of a sweep's jobs: what differs, short, and never the same for two different jobs."""

import pytest

from so_clip.results.job_files import SweepPlan
from so_clip.results.job_names import JobNames

COMMON = ["--config-dir=mine", "method=so", "data_root=/data"]


@pytest.mark.parametrize(
    ("jobs", "names"),
    [
        (
            [["optimizer.density_ratio=0.0005", "optimizer.T=10"], ["optimizer.T=5"]],
            ["kappa=0.0005 T=10", "T=5"],
        ),
        ([["seed=1"], ["seed=2"]], ["seed=1", "seed=2"]),
        ([["seed=1", "adapter.seed=1"], ["seed=2", "adapter.seed=2"]], None),
        ([["+optimizer.fused=true"], ["~evaluation.cache_dir"]], None),
        ([["seed=1", "force=true"], ["seed=2", "force=true"]], ["seed=1", "seed=2"]),
        ([["seed=1"]], [""]),
    ],
)
def test_jobs_are_named_by_what_differs(jobs, names):
    job_names = JobNames([[*COMMON, *overrides] for overrides in jobs])
    found = [job_names.name(number) for number in range(len(jobs))]
    assert len({*found}) == len(jobs)
    for number, name in enumerate(names or ()):
        assert found[number] == f"[{number + 1} of {len(jobs)}] {name}".rstrip()


def test_options_with_the_same_last_part_keep_their_whole_names():
    names = JobNames([["seed=1", "adapter.seed=1"], ["seed=2", "adapter.seed=2"]])
    assert names.name(1) == "[2 of 2] seed=2 adapter.seed=2"


def test_jobs_that_no_plan_has_show_all_their_options():
    assert JobNames([]).name(3, ["seed=4", "shots=2"]) == "[4] seed=4 shots=2"


def test_the_time_left_follows_from_the_jobs_that_ran():
    plan = SweepPlan([], [["a=1"]] * 12, finished=2, launched_at=1000.0)
    assert plan.seconds_left(4, 1040.0) == 60.0  # 6 of 10 jobs, 10 s each
    assert plan.seconds_left(0, 1040.0) is None
    assert plan.seconds_left(10, 1040.0) is None

"""The pictures of the concepts: the committed files are those that the script draws now."""

import pytest

from scripts import docs_figures
from scripts.docs_figures import DENSITY, KEPT, ORDERS, PICTURES, SIDE, main, one_step, regression
from scripts.docs_site.figure_style import FIGURES
from so_clip.optim.support import entry_count


@pytest.mark.slow
def test_drawing_again_gives_the_committed_files(tmp_path):
    main(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(f"{name}-{s}.svg" for name in PICTURES for s in ("dark", "light"))
    for name in written:
        committed = (FIGURES / name).read_bytes()
        assert (tmp_path / name).read_bytes() == committed, f"run {docs_figures.__file__}"


def test_each_step_reads_and_moves_as_many_entries_as_the_density_gives():
    count = entry_count(SIDE * SIDE, DENSITY)
    steps = regression(12, density=DENSITY, T=5)
    assert {len(step.read) for step in steps} == {count}
    assert {len(step.moved) for step in steps} == {count}
    assert steps[4].read == steps[0].read != steps[5].read


def test_the_first_support_stays_with_T_of_0():
    steps = regression(12, density=DENSITY, T=0)
    assert {step.read | step.moved for step in steps} == {steps[0].read}


def test_the_picture_of_the_orders_shows_what_the_optimizer_did():
    step = one_step()
    largest = sorted(step.mu, key=lambda entry: abs(step.mu[entry]))[-KEPT:]
    assert step.kept == set(largest)
    moved = {order: {e for e, value in enumerate(step.change[order]) if value} for order in ORDERS}
    assert moved == {"prune_first": set(step.kept), "update_first": set(step.mu)}
    assert len(step.mu) > KEPT
    for entry in step.kept:
        assert step.change["prune_first"][entry] == pytest.approx(
            step.change["update_first"][entry]
        )

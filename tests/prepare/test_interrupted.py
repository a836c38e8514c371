"""Killed and concurrent preparations leave no partial dataset, and a repetition completes it."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.archives import (
    SPLIT_FILE,
    archive,
    images,
    laid_out,
    picture,
    prepare,
    split_bytes,
    split_source,
    tarred,
    write_card,
    zipped,
)
from tests.helpers.command import environment

pytestmark = pytest.mark.slow


def _begin(root, *arguments):
    """Start prepare in a process of its own."""
    cards = f"cards_dir={root.parent / 'cards'}"
    command = ["-m", "so_clip", "prepare", "dataset=small", f"data_root={root}", cards, *arguments]
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def _wait_for(happened, seconds=30):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def _card(server, root, data, **how):
    split = split_source(server.serve("split_small.json", split_bytes()))
    write_card(root.parent / "cards", archive(server.serve("small.zip", data, **how)), split)


def _in_place_is_whole(root):
    """Assert that the final place holds the complete dataset or none of it."""
    there = laid_out(root)
    assert there in ({}, images())
    split = root / "small" / SPLIT_FILE
    assert not split.exists() or split.read_bytes() == split_bytes()


def test_a_killed_preparation_resumes_its_download(server, root):
    data = zipped(images() | {"padding.jpg": random.Random(1).randbytes(600_000)})
    _card(server, root, data, seconds_a_chunk=0.05)
    first = _begin(root)
    parts = root / ".prepare" / "small" / "downloads"
    _wait_for(lambda: any(part.stat().st_size > 99_000 for part in parts.rglob("small.zip.part")))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _in_place_is_whole(root)
    (part,) = parts.rglob("small.zip.part")
    there = part.stat().st_size
    server.files["/small.zip"].seconds_a_chunk = 0
    assert prepare(root).code == 0
    assert server.ranges("small.zip") == ["", f"bytes={there}-"]
    assert laid_out(root) == images()
    assert sorted(path.name for path in root.iterdir()) == ["small"]


@pytest.mark.parametrize("seed", range(3))
def test_a_preparation_killed_at_any_moment_can_be_repeated(seed, server, root):
    many = {f"more/{index}.jpg": picture(index) for index in range(800)}
    _card(server, root, tarred(images() | many, ""))
    first = _begin(root)
    _wait_for(lambda: server.ranges("small.zip") or first.poll() is not None)
    time.sleep(random.Random(seed).random() * 0.6)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _in_place_is_whole(root)
    assert prepare(root).code == 0
    assert laid_out(root) == images()
    assert sorted(path.name for path in root.iterdir()) == ["small"]


def test_a_second_preparation_waits_for_the_first(server, root):
    data = zipped(images() | {"padding.jpg": random.Random(1).randbytes(300_000)})
    _card(server, root, data, seconds_a_chunk=0.1)
    first = _begin(root)
    _wait_for(lambda: server.ranges("small.zip"))
    second = _begin(root)
    said = [process.communicate(timeout=60) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert said[0][0].startswith("small: completed: 12 images")
    assert said[1][0].startswith("small: is complete: 12 images")
    assert "another process is preparing datasets in" in said[1][1]
    assert server.ranges("small.zip") == [""]
    assert laid_out(root) == images()


def test_the_wait_ends_when_the_other_process_is_killed(server, root):
    data = zipped(images() | {"padding.jpg": random.Random(1).randbytes(900_000)})
    _card(server, root, data, seconds_a_chunk=0.1)
    first = _begin(root)
    _wait_for(lambda: server.ranges("small.zip"))
    second = _begin(root)
    assert "waiting" in second.stderr.readline()
    first.send_signal(signal.SIGKILL)
    server.files["/small.zip"].seconds_a_chunk = 0
    first.communicate()
    out, _ = second.communicate(timeout=60)
    assert out.startswith("small: completed")
    assert laid_out(root) == images()


def test_ctrl_c_ends_a_preparation_with_a_message(server, root):
    _card(server, root, zipped(images()), seconds_a_chunk=5)
    process = _begin(root)
    _wait_for(lambda: server.ranges("small.zip"))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.endswith("so_clip: interrupted\n")
    _in_place_is_whole(root)

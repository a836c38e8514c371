"""The prepare command for datasets of sentences, against a server on loopback."""

import hashlib

import pytest

from so_clip.data.sentences.choice import SentenceChoice
from so_clip.data.sentences.read import gather_sentences
from tests.helpers.archives import prepare
from tests.helpers.command import call
from tests.helpers.made_sentences import (
    TRAIN,
    VALIDATION,
    archive,
    files_of,
    parquet,
    rows,
    tsv,
    write,
    write_card,
)

STATE = "12 training and 5 validation examples in {}\n"


def _parquet_source(server, examples=TRAIN, **sums):
    made = {"train": parquet(examples), "validation": parquet(VALIDATION)}
    files = [
        {
            "url": server.serve(f"hub/{split}-00000-of-00001.parquet", data),
            "name": f"{split}.parquet",
            "sha256": sums.get(split, hashlib.sha256(data).hexdigest()),
        }
        for split, data in made.items()
    ]
    return {"kind": "parquet", "holds": "sentences", "files": files}


def _archive_source(server, data=None, **how):
    url = server.serve("glue/RTE.zip", archive() if data is None else data, **how)
    return {"kind": "archive", "holds": "sentences", "files": [{"url": url}]}


def _cards(root, *sources):
    return write_card(root.parent / "cards", sources=list(sources))


def _read(root):
    choice = SentenceChoice(
        dataset="small", shots=4, data_root=root, cards_dir=root.parent / "cards"
    )
    return gather_sentences(choice)


def test_the_first_source_is_downloaded_and_read(server, root):
    _cards(root, _parquet_source(server), _archive_source(server))
    done = prepare(root)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"small: completed: {STATE.format(root / 'small')}"
    assert sorted(file.name for file in root.rglob("*")) == [
        "small",
        "train.parquet",
        "validation.parquet",
    ]
    assert len(_read(root).test) == 5
    asked = list(server.asked)
    assert prepare(root).out == f"small: is complete: {STATE.format(root / 'small')}"
    assert server.asked == asked


BAD_FIRST = {
    "another checksum": ({"train": "0" * 64}, "has the sha256"),
    "other examples": ({"examples": rows(3)}, "holds 3 training and 5 validation examples, but 12"),
}


@pytest.mark.parametrize(("fault", "message"), BAD_FIRST.values(), ids=BAD_FIRST)
def test_the_archive_serves_where_the_parquet_files_do_not(fault, message, server, root):
    _cards(root, _parquet_source(server, **fault), _archive_source(server, break_after=[100]))
    done = prepare(root)
    assert done.code == 0, done.err
    assert message in done.err
    assert sorted(file.name for file in root.rglob("*.*")) == ["RTE.zip"]
    assert len(server.ranges("glue/RTE.zip")) == 2  # it broke off once and was resumed
    assert [pair[:3] for pair in _read(root).test] == VALIDATION


def test_no_working_source_leaves_nothing_and_names_the_ways_out(server, root):
    _cards(root, _archive_source(server, b"PK damaged"))
    done = prepare(root)
    assert done.code == 1
    assert "cannot be read as a zip archive" in done.err
    assert "download RTE.zip elsewhere (https://example.org/small)" in done.err
    assert "--offline-from FOLDER" in done.err
    assert not root.exists()


def test_damaged_files_are_replaced_on_demand_only(server, root):
    _cards(root, _archive_source(server))
    write(root, {"small/train.parquet": b"x", "small/validation.parquet": b"x"})
    refused = prepare(root)
    assert refused.code == 2
    assert "train.parquet: cannot be read" in refused.err
    assert "repair=true" in refused.err
    assert not server.asked
    repaired = prepare(root, "repair=true")
    assert repaired.code == 0, repaired.err
    assert sorted(file.name for file in root.rglob("*.*")) == ["RTE.zip"]


def test_a_failed_repair_gives_the_damaged_files_back(server, root):
    _cards(root, _archive_source(server, status=404))
    damaged = {"small/train.parquet": b"x", "small/validation.parquet": b"y"}
    write(root, damaged)
    assert prepare(root, "repair=true", "retries=0").code == 1
    assert {path: (root / path).read_bytes() for path in damaged} == damaged


OFFLINE = {
    "unpacked": {"RTE/train.tsv": tsv(TRAIN), "RTE/dev.tsv": tsv(VALIDATION)},
    "archive in a folder": {"RTE.zip": archive()},
    "parquet": {path.replace("rte/", "small/"): data for path, data in files_of("parquet").items()},
}


@pytest.mark.parametrize("files", OFFLINE.values(), ids=OFFLINE)
def test_the_users_files_are_copied_without_a_network(files, server, root):
    write_card(root.parent / "cards", sources=[_archive_source(server)], other_folders=["RTE"])
    given = write(root.parent / "given", files)
    done = prepare(root, "--offline-from", given)
    assert done.code == 0, done.err
    assert not server.asked
    assert [pair[:3] for pair in _read(root).test] == VALIDATION
    assert all((given / path).read_bytes() == data for path, data in files.items())


def test_an_archive_of_any_name_is_used_and_a_bad_one_refused(server, root):
    _cards(root, _archive_source(server))
    given = write(root.parent, {"mine.zip": archive(), "bad.zip": b"x"})
    refused = prepare(root, "--offline-from", given / "bad.zip")
    assert refused.code == 2
    assert "bad.zip: cannot be read as a zip archive" in refused.err
    assert prepare(root, "--offline-from", given / "mine.zip").code == 0
    assert (root / "small" / "RTE.zip").read_bytes() == archive()


def _doctor(root, *words):
    cards = root.parent / "cards"
    return call("doctor", "dataset=small", f"data_root={root}", f"cards_dir={cards}", *words)


def test_the_doctor_reads_all_examples_and_names_a_run(server, root):
    _cards(root, _archive_source(server))
    prepare(root)
    done = _doctor(root)
    assert done.code == 0, done.err
    assert "small: whole\n  note: 12 training and 5 validation examples" in done.out
    assert f"python -m so_clip sentences dataset=small data_root={root}" in done.out


def test_the_doctor_names_what_is_missing_or_damaged_and_the_repair(server, root):
    _cards(root, _archive_source(server))
    write(root, {"small/train.parquet": b"x"})
    missing = _doctor(root)
    assert missing.code == 1
    assert "small: absent" in missing.out
    assert f"fault: {root / 'small' / 'validation.parquet'}: is missing.\n" in missing.out
    write(root, {"small/validation.parquet": b"x"})
    damaged = _doctor(root)
    assert "small: faulty" in damaged.out
    repair = damaged.out.partition("repair: python -m so_clip ")[2].strip()
    assert repair.endswith("repair=true")
    assert call(*repair.split(), "retries=0").code == 0
    assert _doctor(root).code == 0

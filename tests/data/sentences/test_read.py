"""Sentences from parquet files, tsv files and GLUE's zip, and files that cannot be read."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

from so_clip.data.sentences.card import TsvFiles, load_sentence_card
from so_clip.data.sentences.choice import SentenceChoice
from so_clip.data.sentences.find import find_sentences, read_sentences
from so_clip.data.sentences.read import SentenceData, gather_sentences
from so_clip.data.sentences.tsv import read_tsv
from so_clip.errors import InputError
from tests.helpers.archives import zipped
from tests.helpers.made_sentences import (
    NAMES,
    TRAIN,
    VALIDATION,
    files_of,
    parquet,
    tsv,
    write,
    write_card,
)


def gathered(root: Path, dataset: str = "rte", **options: object) -> SentenceData:
    values = {"dataset": dataset, "shots": 4, "data_root": root} | options
    return gather_sentences(SentenceChoice(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["parquet", "hub", "tsv", "archive"])
def test_all_formats_give_the_same_examples_and_fingerprint(kind, tmp_path):
    data = gathered(write(tmp_path / kind, files_of(kind)))
    assert [pair[:3] for pair in data.test] == VALIDATION
    assert [pair.row for pair in data.test] == list(range(len(VALIDATION)))
    assert [pair[:3] for pair in data.train] == [TRAIN[pair.row] for pair in data.train]
    reference = gathered(write(tmp_path / "reference", files_of("parquet")))
    assert data.contents_sha256 == reference.contents_sha256
    assert data.draw_json() == reference.draw_json()


def test_another_label_or_sentence_changes_the_fingerprint(tmp_path):
    changed = [*TRAIN[:-1], (*TRAIN[-1][:2], 0)]
    one = gathered(write(tmp_path / "one", files_of("tsv")))
    other = gathered(write(tmp_path / "other", files_of("tsv", changed)))
    moved = gathered(write(tmp_path / "moved", files_of("tsv", [*TRAIN, VALIDATION[0]])))
    assert len({data.contents_sha256 for data in (one, other, moved)}) == 3


def test_a_file_of_another_size_is_read_with_a_note(tmp_path, capsys):
    gathered(write(tmp_path, files_of("tsv")))
    assert "12 training and 5 validation examples, but 2490 and 277" in capsys.readouterr().err


def test_an_archive_in_the_data_root_and_folders_of_other_code_are_found(tmp_path):
    card = load_sentence_card("rte")
    archive = write(tmp_path / "a", {"RTE.zip": files_of("archive")["rte/RTE.zip"]})
    assert find_sentences(card, archive).train == (archive / "RTE.zip",)
    other = write(tmp_path / "b", {f"glue/{path}": data for path, data in files_of("tsv").items()})
    assert find_sentences(card, other).train == (other / "glue" / "RTE" / "train.tsv",)


def test_the_header_of_mrpc_has_a_mark_and_labels_are_numbers(tmp_path):
    text = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tA "b\tc\r\n'
    write(tmp_path, {"MRPC/train.tsv": text.encode(), "MRPC/dev.tsv": text.encode()})
    card = load_sentence_card("mrpc")
    train, _ = read_sentences(find_sentences(card, tmp_path), card)
    assert train == [('A "b', "c", 1, 0)]


def test_cola_has_no_header_and_sst2_no_second_sentence(tmp_path):
    cola, sst2 = b"gj04\t1\t\tBirds sing.\nbc01\t0\t*\tSing bird.\n", b"sentence\tlabel\nnice \t1\n"
    write(tmp_path, {"CoLA/train.tsv": cola, "CoLA/dev.tsv": cola})
    write(tmp_path, {"SST-2/train.tsv": sst2, "SST-2/dev.tsv": sst2})
    found = {}
    for name in ("cola", "sst2"):
        card = load_sentence_card(name)
        found[name], _ = read_sentences(find_sentences(card, tmp_path), card)
    assert found["cola"] == [("Birds sing.", None, 1, 0), ("Sing bird.", None, 0, 1)]
    assert found["sst2"] == [("nice ", None, 1, 0)]


def test_only_line_ends_separate_lines_and_empty_lines_count_for_no_row():
    text = "sentence1\tsentence2\tlabel\n\na\u2028b\x85c\td\t0\r\n\ne\tf\t1"
    layout = TsvFiles(first="sentence1", second="sentence2", label="label")
    assert read_tsv(text, "x.tsv", layout, NAMES) == [
        ("a\u2028b\x85c", "d", 0, 0),
        ("e", "f", 1, 1),
    ]


HEAD = "index\tsentence1\tsentence2\tlabel\n"
BAD_TSV = {
    "empty": ("", "dev.tsv: holds no example"),
    "header only": (HEAD, "dev.tsv: holds no example"),
    "column": ("index\tsentence1\tlabel\n0\ta\tentailment\n", "line 1: there is no column 'sente"),
    "two columns": (f"label\t{HEAD}0\t0\ta\tb\t0\n", "no column 'label', or several"),
    "few fields": (f"{HEAD}0\ta\tb\tentailment\n1\ta\tb\n", "line 3: has 3 fields, but .* has 4"),
    "many fields": (f"{HEAD}0\ta\tb\tc\tentailment\n", "line 2: has 5 fields"),
    "word": (f"{HEAD}\n0\ta\tb\tneutral\n", r"line 3: there is no label 'neutral'. Known: entail"),
    "number": (f"{HEAD}0\ta\tb\t2\n", "line 2: there is no label '2'"),
    "secret": (f"{HEAD}0\ta\tb\t-1\n", "line 2: has the label -1, so its label is secret"),
    "NUL": (f"{HEAD}0\ta\0\tb\t0\n", "line 2: column sentence1 holds a NUL"),
    "encoding": (f"{HEAD}0\té\tb\t0\n".encode("latin-1"), "line 2: is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_TSV.values(), ids=BAD_TSV)
def test_a_bad_tsv_names_file_and_line(content, message, tmp_path):
    data = content if isinstance(content, bytes) else content.encode()
    write(tmp_path, {"rte/train.tsv": tsv(TRAIN), "rte/dev.tsv": data})
    with pytest.raises(InputError, match=message) as caught:
        gathered(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "rte" / "dev.tsv"))


def test_a_headerless_file_with_too_few_columns_is_refused(tmp_path):
    write(tmp_path, {"cola/train.tsv": b"a\t1\n", "cola/dev.tsv": b"a\t1\n"})
    with pytest.raises(InputError, match=r"line 1: has 2 fields .* column 3, counted from 0"):
        gathered(tmp_path, "cola")


def test_a_bad_parquet_file_names_file_and_row(tmp_path):
    good = files_of("parquet")
    wrong = {
        "column 'sentence2'": _without(good["rte/train.parquet"], "sentence2"),
        "row 1 .*column sentence1 must hold text, not None": parquet([TRAIN[0], (None, "b", 0)]),
        "row 0 .*must hold text, not 7": parquet([(7, "b", 0)]),
        "row 1 .*there is no label '5'": parquet([TRAIN[0], ("a", "b", 5)]),
        "row 0 .*NUL": parquet([("a\0", "b", 0)]),
        "holds no example": _emptied(good["rte/train.parquet"]),
        "cannot be read as a parquet file": good["rte/train.parquet"][:-20],
        "as a parquet file: .*": b"",
        "as a parquet file: days=": _rewritten(good["rte/train.parquet"], _with_dates_as_labels),
    }
    for number, (message, data) in enumerate(wrong.items()):
        root = write(tmp_path / str(number), good | {"rte/train.parquet": data})
        with pytest.raises(InputError, match=message) as caught:
            gathered(root)
        assert str(caught.value).startswith(str(root / "rte" / "train.parquet"))


def _without(data: bytes, column: str) -> bytes:
    return _rewritten(data, lambda table: table.drop_columns([column]))


def _emptied(data: bytes) -> bytes:
    return _rewritten(data, lambda table: table.slice(0, 0))


def _with_dates_as_labels(table):
    """Return the table with dates that Python does not have."""
    import pyarrow as pa

    dates = pa.array([2**31 - 1] * len(table), pa.date32())
    return table.drop_columns(["label"]).append_column("label", dates)


def _rewritten(data, change) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = pa.BufferOutputStream()
    pq.write_table(change(pq.read_table(pa.BufferReader(data))), out)
    return out.getvalue().to_pybytes()


def test_without_pyarrow_the_message_names_the_extra_and_the_archive_still_works(
    tmp_path, monkeypatch
):
    for kind in ("parquet", "archive"):
        write(tmp_path / kind, files_of(kind))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow .*pip install 'so-clip\[text\]'"):
        gathered(tmp_path / "parquet")
    assert len(gathered(tmp_path / "archive").test) == len(VALIDATION)


def test_the_real_file_as_tsv_has_the_fingerprint_of_its_parquet_form(shared, tmp_path):
    real = load_sentence_card("rte"), find_sentences(load_sentence_card("rte"), shared / "data")
    train, validation = read_sentences(real[1], real[0])
    write(tmp_path, files_of("tsv", *[[pair[:3] for pair in part] for part in (train, validation)]))
    options = {"shots": 32, "subset": "official", "seed": 42}
    one, other = (gathered(root, **options) for root in (shared / "data", tmp_path))
    assert one.contents_sha256 == other.contents_sha256
    assert one.train == other.train


def test_a_missing_part_or_split_is_named_with_the_command(tmp_path):
    hub = files_of("hub")
    part = hub.pop("rte/train-00001-of-00002.parquet")
    with pytest.raises(InputError, match=r"train-00001-of-00002.parquet: is missing"):
        gathered(write(tmp_path / "part", hub))
    with pytest.raises(InputError, match=r"rte/validation.parquet: is missing\. Run .*prepare"):
        gathered(write(tmp_path / "split", {"rte/train.parquet": part}))
    with pytest.raises(InputError, match=r"RTE/train.tsv: is missing"):
        gathered(write(tmp_path / "tsv", {"RTE/dev.tsv": b""}))
    with pytest.raises(InputError) as caught:
        gathered(tmp_path / "absent")
    message = str(caught.value)
    assert f"are not in {tmp_path / 'absent' / 'rte'}" in message
    assert f"python -m so_clip prepare dataset=rte data_root={tmp_path / 'absent'}" in message


def test_a_users_card_without_sources_says_where_to_put_the_files(tmp_path):
    cards = write_card(tmp_path / "cards")
    with pytest.raises(InputError, match=r"Put train.parquet and validation.parquet, or train.tsv"):
        gathered(tmp_path, "small", cards_dir=cards)


ZIPS = {
    "cannot be read as a zip archive": b"PK\3\4 damaged",
    "holds no file RTE/dev.tsv": zipped({"RTE/train.tsv": tsv(TRAIN)}),
    "is compressed in an unusual way": zipped(
        {"RTE/train.tsv": tsv(TRAIN), "RTE/dev.tsv": tsv(TRAIN)}, zipfile.ZIP_LZMA
    ),
    "RTE/dev.tsv: line 1: there is no column": zipped(
        {"RTE/train.tsv": tsv(TRAIN), "RTE/dev.tsv": b"a\tb\n"}
    ),
}


@pytest.mark.parametrize(("message", "data"), ZIPS.items(), ids=ZIPS)
def test_a_bad_archive_is_named(message, data, tmp_path):
    with pytest.raises(InputError, match=message):
        gathered(write(tmp_path, {"rte/RTE.zip": data}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["train.tsv", "train.parquet", "RTE.zip"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(name, tmp_path):
    write(tmp_path, {"rte/dev.tsv": tsv(VALIDATION), "rte/validation.parquet": b""})
    if name == "RTE.zip":
        (tmp_path / "rte" / "dev.tsv").unlink()
    os.mkfifo(tmp_path / "rte" / name)
    with pytest.raises(InputError, match=f"{name}: cannot be read.*not a plain file"):
        gathered(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    write(tmp_path, files_of("tsv"))
    os.truncate(tmp_path / "RTE" / "train.tsv", 129 * 2**20)
    with pytest.raises(InputError, match="larger than 128 MiB"):
        gathered(tmp_path)

"""Small datasets of sentence pairs in all formats that are read, made from one list."""

import io
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.helpers.archives import zipped

# First sentence, second sentence, label.
Row = tuple[str, str | None, int]
NAMES = ("entailment", "not_entailment")


def rows(count: int, start: int = 0) -> list[Row]:
    """Return pairs with quotes, blanks and letters beyond ASCII; labels alternate."""
    return [
        (f'"{number} cats" sit in the café. ', f"There are {number} cats.", number % 2)
        for number in range(start, start + count)
    ]


TRAIN, VALIDATION = rows(12), rows(5, start=100)


def tsv(examples: Sequence[Row]) -> bytes:
    """Return the examples as GLUE's RTE has them: a header, words as labels, no quotes."""
    lines = ["index\tsentence1\tsentence2\tlabel"]
    lines += [
        f"{index}\t{first}\t{second}\t{NAMES[label]}"
        for index, (first, second, label) in enumerate(examples)
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def parquet(examples: Sequence[Row]) -> bytes:
    """Return the examples as the hub has them: labels are numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, second, label = zip(*examples, strict=True)
    columns = {"sentence1": first, "sentence2": second, "label": label}
    table = pa.table({name: list(values) for name, values in columns.items()})
    data = io.BytesIO()
    pq.write_table(table.append_column("idx", [list(range(len(label)))]), data)
    return data.getvalue()


def archive(train: Sequence[Row] = TRAIN, validation: Sequence[Row] = VALIDATION) -> bytes:
    """Return GLUE's zip of the examples."""
    test = b"index\tsentence1\tsentence2\n0\ta\tb\n"
    files = {"RTE/train.tsv": tsv(train), "RTE/dev.tsv": tsv(validation), "RTE/test.tsv": test}
    return zipped(files)


def files_of(
    kind: str, train: Sequence[Row] = TRAIN, validation: Sequence[Row] = VALIDATION
) -> dict[str, bytes]:
    """Return the files of a dataset below the data root, by path: parquet, hub, tsv or archive."""
    if kind == "archive":
        return {"rte/RTE.zip": archive(train, validation)}
    if kind == "tsv":
        return {"RTE/train.tsv": tsv(train), "RTE/dev.tsv": tsv(validation)}
    if kind == "hub":
        return {
            "rte/train-00000-of-00002.parquet": parquet(train[:7]),
            "rte/train-00001-of-00002.parquet": parquet(train[7:]),
            "rte/validation-00000-of-00001.parquet": parquet(validation),
        }
    return {"rte/train.parquet": parquet(train), "rte/validation.parquet": parquet(validation)}


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder; return the folder."""
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def card(name: str = "small", **changes: object) -> dict[str, object]:
    """Return the content of a card of pairs; None removes a key."""
    content: dict[str, object] = {
        "name": name,
        "title": "Small pairs",
        "folder": name,
        "label_names": list(NAMES),
        "parquet": {"first": "sentence1", "second": "sentence2", "label": "label"},
        "tsv": {
            "first": "sentence1",
            "second": "sentence2",
            "label": "label",
            "archive": "RTE.zip",
            "folder": "RTE",
        },
        "sizes": {"train": len(TRAIN), "validation": len(VALIDATION)},
        "licence": "CC0",
        "homepage": "https://example.org/small",
        "citation": "nobody",
    } | changes
    return {key: value for key, value in content.items() if value is not None}


def write_card(folder: Path, **changes: object) -> Path:
    """Write a card into a folder of cards; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = card(**changes)  # type: ignore[arg-type]
    (folder / f"{content['name']}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder

"""CSV lists as spreadsheets write them, and bad ones."""

from pathlib import Path

import pytest

from so_clip.data.user.csv_list import find_csv, list_csv
from so_clip.errors import InputError


def write(folder: Path, content: str | bytes, name: str = "list.csv") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


PLAIN = "path,label,split\nx/a.jpg,ant,train\nx/b.jpg,big bee,test\n"
EXPECTED = [("x/a.jpg", "ant", "train"), ("x/b.jpg", "big bee", "test")]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip("\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", " | "),
        f"\ufeff{PLAIN}",
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\n\n,,\n", 1),
        "Label,FILENAME,Set,author\nant,x/a.jpg,TRAIN,me\nbig bee,x/b.jpg, Test ,you\n",
        'path,label,split\n"x/a.jpg","ant","train"\n"x/b.jpg","big\n bee",test\n',
    ],
    ids=["plain", "crlf", "cr", "no end", ";", "tab", "|", "bom", "utf-16", "blank", "more", "quo"],
)
def test_every_csv_dialect_is_read(content: str | bytes, tmp_path: Path):
    assert [tuple(image) for image in list_csv(write(tmp_path, content)).images] == EXPECTED


def test_commas_and_quotes_in_values(tmp_path: Path):
    file = write(tmp_path, 'path,label\n"a, b.jpg","the ""big"" one"\nc.jpg,été\n')
    images = [tuple(image) for image in list_csv(file).images]
    assert images == [("a, b.jpg", 'the "big" one', None), ("c.jpg", "été", None)]


def test_names_may_begin_and_end_with_blanks(tmp_path: Path):
    (tmp_path / " ant").mkdir()
    (tmp_path / " ant" / "a.jpg").touch()
    file = write(tmp_path, "path,label\n ant/a.jpg, ant\n bee/b.jpg ,bee\n")
    assert [image.path for image in list_csv(file).images] == [" ant/a.jpg", "bee/b.jpg"]
    elsewhere = list_csv(file, tmp_path / "elsewhere").images
    assert [image.path for image in elsewhere] == ["ant/a.jpg", "bee/b.jpg"]


HEAD = "path,label,split\na.jpg,ant,train\n"
BAD = {
    "no label": ("path,split\n", "line 1: there is no column label. The first line names the colu"),
    "empty": ("", "line 1: there is no column path"),
    "two labels": ("path,label,class\n", "line 1: label and class are both the column label"),
    "short": (f"{HEAD}b.jpg,bee\n", "line 3: holds 2 values, but line 1 names 3 columns"),
    "long": (f"{HEAD}b.jpg,bee, buzzing,test\n", "line 3: holds 4 values"),
    "no path": (f"{HEAD},bee,test\n", "line 3: the path '' is refused: it is empty"),
    "blank label": (f"{HEAD}b.jpg, ,test\n", "line 3: the label is empty"),
    "split": (f"{HEAD}b.jpg,bee,tset\n", "line 3: the split 'tset' is not one of train, val"),
    "half a split": (f"{HEAD}b.jpg,bee,\n", "line 3: has no split, but line 2 has one"),
    "half none": ("path,label,split\na.jpg,a,\nb.jpg,b,test\n", "line 3: has a split, but line 2"),
    "climbs": (f"{HEAD}../b.jpg,bee,test\n", "line 3: the path '../b.jpg' is refused: it climbs"),
    "absolute": (f"{HEAD}/etc/b.jpg,bee,test\n", "line 3: the path '/etc/b.jpg' is refused"),
    "windows": (f"{HEAD}x\\b.jpg,bee,test\n", "it holds a backslash"),
    "drive": (f"{HEAD}C:/b.jpg,bee,test\n", "it begins with a drive letter"),
    "twice": (f"{HEAD}./a.jpg,bee,test\n", "line 3: repeats the image './a.jpg' of line 2"),
    "quote": (f'{HEAD}"b.jpg,bee,test\n', "is not CSV (unexpected end of data)"),
    "latin": (b"path,label\na.jpg,\xe9t\xe9\n", "line 2: is not UTF-8 text. Save it as UTF-8"),
    "utf-16 without a mark": (HEAD.encode("utf-16-le"), "line 1: holds a NUL character. Save it"),
    "nul": ("path,label\na.jpg,b\0\n", "line 2: holds a NUL character"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_errors_name_file_and_line(content: str | bytes, message: str, tmp_path: Path):
    file = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        list_csv(file)
    assert str(caught.value).startswith(f"{file}: line ")
    assert message in str(caught.value)


def test_the_only_csv_file_is_the_list(tmp_path: Path):
    with pytest.raises(InputError, match=r"holds no CSV file\. Name the list with dataset\.csv_f"):
        find_csv(tmp_path, None)
    file = write(tmp_path, PLAIN, "Images.CSV")
    assert find_csv(tmp_path, None) == file
    other = write(tmp_path, PLAIN, "more.tsv")
    with pytest.raises(InputError, match=r"2 CSV files, the first is Images\.CSV"):
        find_csv(tmp_path, None)
    assert find_csv(tmp_path, Path("more.tsv")) == other
    with pytest.raises(InputError, match=r"csv_file=none\.csv: there is no such file\. Looked for"):
        find_csv(tmp_path, Path("none.csv"))


def test_a_list_may_be_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images").mkdir()
    file = write(tmp_path, PLAIN)
    assert find_csv(tmp_path / "images", file) == file
    monkeypatch.chdir(tmp_path)
    assert find_csv(tmp_path / "images", Path("list.csv")) == Path("list.csv")

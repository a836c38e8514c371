"""CSV lists as spreadsheets write them, and bad ones."""

import shutil
from pathlib import Path

import pytest

from so_clip.data.user.csv_list import CsvOptions, find_csv, list_csv
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
        f"sep=;\n{PLAIN.replace(',', ';')}",
        f"\ufeffsep=\t\r\n{PLAIN.replace(',', chr(9))}",
        PLAIN.replace("x/", "x\\"),
        f"\ufeff{PLAIN}",
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\n\n,,\n", 1),
        "Label,FILENAME,Set,author\nant,x/a.jpg,TRAIN,me\nbig bee,x/b.jpg, Test ,you\n",
        'path,label,split\n"x/a.jpg","ant","train"\n"x/b.jpg","big\n bee",test\n',
    ],
    ids=[
        "plain",
        "crlf",
        "cr",
        "no end",
        ";",
        "tab",
        "|",
        "sep",
        "sep tab",
        "back",
        "bom",
        "utf-16",
        "blank",
        "more",
        "quo",
    ],
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
    "drive": (f"{HEAD}C:\\b.jpg,bee,test\n", "it begins with a drive letter"),
    "climbs back": (f"{HEAD}..\\b.jpg,bee,test\n", "it climbs out"),
    "server": (f"{HEAD}\\\\server\\b.jpg,bee,test\n", "it is absolute"),
    "both ways": (f"{HEAD}x/b.jpg,bee,test\nx\\b.jpg,bee,test\n", "repeats the image 'x/b.jpg'"),
    "after sep": (f"sep=,\n{HEAD}b.jpg,bee\n", "line 4: holds 2 values"),
    "twice": (f"{HEAD}./a.jpg,bee,test\n", "line 3: repeats the image './a.jpg' of line 2"),
    "quote": (f'{HEAD}"b.jpg,bee,test\n', "is not CSV (unexpected end of data)"),
    "no text": (b"path,label\na.jpg,\xe9t\x81\n", "line 2: is not UTF-8 text. Save it as UTF-8"),
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


def test_absolute_paths_lead_into_the_folder_of_the_images(tmp_path: Path):
    root = tmp_path / "photos"
    (root / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    for base in (root, tmp_path / "link"):
        content = PLAIN.replace("x/", f"{base}/x/")
        file = write(tmp_path, content)
        assert [tuple(image) for image in list_csv(file, tmp_path / "link").images] == EXPECTED
    with pytest.raises(InputError, match=r"line 2: the path .* is refused: it is absolute"):
        list_csv(file, root / "x")


def test_text_of_spreadsheets_on_windows_is_read_and_said(tmp_path: Path):
    file = write(tmp_path, "path,label\ncafé.jpg,Bär\n".encode("cp1252"))
    listing = list_csv(file)
    assert [tuple(image) for image in listing.images] == [("café.jpg", "Bär", None)]
    assert "is not UTF-8 text (line 2), so it is read as Windows-1252" in listing.notes[0]


def options(**columns: str) -> CsvOptions:
    return CsvOptions(columns)


def test_columns_have_the_names_that_the_options_give(tmp_path: Path):
    file = write(tmp_path, "id,Bild Datei,class,species,part\n7,a.jpg,bird,owl,dev\n")
    with pytest.raises(InputError, match=r"no column path.*it names 'id', 'Bild Datei', .*path_co"):
        list_csv(file)
    found = list_csv(file, None, options(path="bild datei", label="species", split="part"))
    assert [tuple(image) for image in found.images] == [("a.jpg", "owl", "val")]
    assert found.notes == ["values of the split column are read as splits: dev is val"]
    with pytest.raises(
        InputError, match=r"label_column=specis: .*no such column\. Did you mean 'sp"
    ):
        list_csv(file, None, options(path="Bild Datei", label="specis"))
    two = write(tmp_path, "path,file,label\na.jpg,b.jpg,ant\n")
    with pytest.raises(InputError, match=r"path and file are both .*dataset\.path_column=NAME"):
        list_csv(two)
    assert list_csv(two, None, options(path="file")).images[0].path == "b.jpg"


@pytest.mark.parametrize(
    ("words", "splits"),
    [
        ("Training Testing", "train test"),
        ("TRAIN dev hold-out", "train val test"),
        ("train eval", "train test"),
        ("train Evaluation test", "train val test"),
    ],
)
def test_usual_words_for_splits_are_known(words: str, splits: str, tmp_path: Path):
    rows = [f"{word}.jpg,ant,{word}" for word in words.split()]
    found = list_csv(write(tmp_path, "\n".join(["path,label,split", *rows])))
    assert [image.split for image in found.images] == splits.split()


def test_paths_in_folders_of_splits_need_a_split_column(tmp_path: Path):
    rows = "path,label\nTraining/a.jpg,ant\nTest/b.jpg,ant\n"
    found = list_csv(write(tmp_path, rows))
    assert found.notes[0].startswith("the paths begin with Test and Training, but no column has")
    assert not list_csv(write(tmp_path, rows), None, CsvOptions(draw_split=True)).notes
    assert not list_csv(write(tmp_path, f"{rows}other/c.jpg,ant\n")).notes


def test_a_split_column_can_be_ignored(tmp_path: Path):
    file = write(tmp_path, "path,label,set\na.jpg,ant,A\n")
    with pytest.raises(InputError, match=r"split 'A' is not one of.*dataset\.split=drawn"):
        list_csv(file)
    assert list_csv(file, None, CsvOptions(draw_split=True)).images[0].split is None


@pytest.mark.parametrize("link", ["x/b.jpg", "x"])
def test_links_out_of_the_folder_are_refused_as_in_folders(link: str, tmp_path: Path):
    root, outside = tmp_path / "photos", tmp_path / "secret"
    for folder in (root, outside):
        (folder / "x").mkdir(parents=True)
        (folder / "x" / "a.jpg").touch()
        (folder / "x" / "b.jpg").touch()
    place = root / link
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(outside / link)
    file = write(root, PLAIN)
    with pytest.raises(InputError, match=r"line \d: .*outside the dataset.*follow_links=true"):
        list_csv(file)
    assert len(list_csv(file, None, CsvOptions(follow_links=True)).images) == 2


def test_links_that_put_one_file_into_two_splits_are_refused(tmp_path: Path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jpg").touch()
    (tmp_path / "x" / "b.jpg").symlink_to(tmp_path / "x" / "a.jpg")
    with pytest.raises(InputError, match=r"x/a\.jpg and x/b\.jpg are links to one file"):
        list_csv(write(tmp_path, PLAIN))

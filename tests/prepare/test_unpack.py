"""Hostile and broken archives are refused by name and write nothing outside the folder."""

import gzip
import io
import os
import tarfile
import zipfile

import pytest
from PIL import Image

from so_clip.prepare.sources import SourceFailed
from so_clip.prepare.unpack import (
    Budget,
    check_space,
    nested_archives,
    source_errors,
    unpack,
)
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
from tests.helpers.command import python

GIB = 2**30
MIB = 2**20


def _unpack(tmp_path, data, budget=GIB, name="a.zip"):
    file, target = tmp_path / name, tmp_path / "target"
    file.write_bytes(data)
    target.mkdir()
    unpack(file, target, Budget(budget))
    return target


def _tar(*members, compression="gz"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as opened:
        for member, content in members:
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return data.getvalue()


def _member(name, kind=tarfile.REGTYPE, link="", content=b""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, content


def _zip_member(name, mode, content=b"x"):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as opened:
        member = zipfile.ZipInfo(name)
        member.create_system, member.external_attr = 3, mode << 16
        opened.writestr(member, content)
    return data.getvalue()


CLIMBING = ["../out.txt", "a/../../out.txt", "/out.txt", "C:/out.txt", "a\\..\\..\\out.txt"]
HOSTILE = {
    **{f"zip {name}": (lambda name=name: zipped({name: b"x"}), "would leave") for name in CLIMBING},
    **{f"tar {name}": (lambda name=name: tarred({name: b"x"}), "would leave") for name in CLIMBING},
    "zip folder above": (lambda: zipped({"../dir/": b""}), "would leave"),
    "tar folder above": (lambda: _tar(_member("../dir", tarfile.DIRTYPE)), "would leave"),
    "symlink": (lambda: _tar(_member("a", tarfile.SYMTYPE, "/etc")), "'a' is a link"),
    "symlink, then through it": (
        lambda: _tar(_member("a", tarfile.SYMTYPE, ".."), _member("a/x", content=b"x")),
        "is a link",
    ),
    "hard link": (lambda: _tar(_member("a", tarfile.LNKTYPE, "../x")), "is a link"),
    "device": (lambda: _tar(_member("a", tarfile.CHRTYPE)), "neither a plain file"),
    "block device": (lambda: _tar(_member("a", tarfile.BLKTYPE)), "neither a plain file"),
    "pipe": (lambda: _tar(_member("a", tarfile.FIFOTYPE)), "neither a plain file"),
    "unknown type": (lambda: _tar(_member("a", b"Z")), "neither a plain file"),
    "zip symlink": (lambda: _zip_member("a", 0o120777, b"/etc"), "'a' is a link"),
    "zip device": (lambda: _zip_member("a", 0o020666), "neither a plain file"),
    "zip bomb": (lambda: _squeezed(zipfile.ZIP_DEFLATED), "would unpack to"),
    "bzip2 bomb": (lambda: _squeezed(zipfile.ZIP_BZIP2), "would unpack to"),
    "tar bomb": (lambda: tarred({"a": bytes(64 * MIB)}), "would unpack to"),
    "gzip bomb that is no tar": (lambda: gzip.compress(b"x" * 64 * MIB), "damaged|unpack to"),
    "long name": (lambda: _long_name(), "is a header of"),
    "file and folder of one name": (lambda: zipped({"a": b"x", "a/b": b"x"}), "damaged"),
    "rar": (lambda: b"Rar!\x1a\x07\x01\x00" + bytes(99), "it is a RAR archive, .*by hand"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(99), "it is a 7-Zip archive"),
}
SLOW = ("bzip2 bomb", "gzip bomb that is no tar")


def _squeezed(method):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as opened:
        opened.writestr("a", bytes(64 * MIB))
    return data.getvalue()


def _long_name():
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 * GIB
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, case in HOSTILE.items()
    ],
)
def test_hostile_archives_are_refused_by_name(made, message, tmp_path):
    with pytest.raises(SourceFailed, match=message) as caught:
        _unpack(tmp_path, made())
    assert caught.value.spoiled
    assert str(tmp_path / "a.zip") in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "target"]
    assert not [path for path in (tmp_path / "target").rglob("*") if path.is_symlink()]
    written = sum(path.stat().st_size for path in (tmp_path / "target").rglob("*"))
    assert written <= 17 * MIB


def test_a_sparse_file_is_refused(tmp_path):
    file = tmp_path / "hole"
    with file.open("wb") as opened:
        opened.truncate(GIB)
    made = tmp_path / "a.tar"
    if os.system(f"tar --sparse -C {tmp_path} -cf {made} hole 2>/dev/null"):
        pytest.skip("needs GNU tar")
    file.unlink()
    with pytest.raises(SourceFailed, match=r"neither a plain file|damaged"):
        _unpack(tmp_path, made.read_bytes())
    assert sum(path.stat().st_size for path in (tmp_path / "target").rglob("*")) < MIB


def test_the_unpacked_size_is_limited(tmp_path):
    with pytest.raises(SourceFailed, match=r"more than is allowed \(max_unpacked_gib\)"):
        _unpack(tmp_path, zipped({"a": bytes(600), "b": bytes(600)}), budget=1000)


def test_the_number_of_members_is_limited(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "a.zip").write_bytes(zipped({str(index): b"" for index in range(9)}))
    with pytest.raises(SourceFailed, match="members"):
        unpack(tmp_path / "a.zip", tmp_path / "target", Budget(GIB, members_left=8))


@pytest.mark.parametrize("length", [0, 1, 5, 300, 700])
@pytest.mark.parametrize("make", [zipped, tarred, lambda files: tarred(files, "xz")])
def test_a_truncated_archive_is_damaged(make, length, tmp_path):
    data = make({f"{index}.jpg": os.urandom(999) for index in range(4)})
    with pytest.raises(SourceFailed, match="damaged or cut short") as caught:
        _unpack(tmp_path, data[:length])
    assert caught.value.spoiled


def test_an_archive_with_a_flipped_byte_is_damaged(tmp_path):
    data = bytearray(zipped({"a": os.urandom(999)}))
    data[200] ^= 1
    with pytest.raises(SourceFailed, match="damaged"):
        _unpack(tmp_path, bytes(data))


def test_a_zip_with_a_wrong_offset_is_damaged(tmp_path):
    data = bytearray(zipped({"a": b"x"}))
    start = data.rindex(b"PK\x05\x06") + 16  # the offset of the directory
    data[start : start + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    with pytest.raises(SourceFailed, match="damaged") as caught:
        _unpack(tmp_path, bytes(data))
    assert caught.value.spoiled


def test_the_archives_name_does_not_matter_and_files_get_default_permissions(tmp_path):
    member, content = _member("run.sh", content=b"x")
    member.mode = 0o6777
    target = _unpack(tmp_path, _tar((member, content)), name="photo.jpg")
    assert (target / "run.sh").stat().st_mode & 0o7111 == 0


def test_a_full_disk_is_named_and_the_archive_is_kept(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "a.zip").write_bytes(zipped({"a": os.urandom(3 * MIB)}))
    code = """if True:
        import resource, sys
        from pathlib import Path
        from so_clip.prepare.sources import SourceFailed
        from so_clip.prepare.unpack import Budget, unpack
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            unpack(Path(sys.argv[1]), Path(sys.argv[2]), Budget(1 << 30))
        except SourceFailed as error:
            print(error.spoiled, error)
    """
    said = python(code, tmp_path / "a.zip", tmp_path / "target")
    assert said.startswith(f"False {tmp_path / 'a.zip'}: cannot be unpacked below")
    assert "data_root=FOLDER" in said


def test_an_archive_larger_than_the_free_disk_is_refused(tmp_path):
    with (
        pytest.raises(SourceFailed, match=r"below .*needs .* GiB are free\..*data_root=FOLDER"),
        source_errors(tmp_path / "a.zip", tmp_path),
    ):
        check_space(1 << 60, tmp_path)


def test_after_a_hostile_source_the_next_one_is_used(server, root):
    evil = server.serve("evil.zip", zipped(images() | {"../../../../evil.jpg": b"x"}))
    large = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(large, "PNG")
    too_large = server.serve("large.zip", zipped(images() | {"ant/ant_0.jpg": large.getvalue()}))
    split = split_source(server.serve("split_small.json", split_bytes()))
    write_card(root.parent / "cards", archive(evil), archive(too_large), split)
    done = prepare(root)
    assert done.code == 1
    assert "'../../../../evil.jpg' would leave the folder" in done.err
    assert "ant_0.jpg: the image is too large" in done.err
    assert laid_out(root) == {}
    assert sorted(path.name for path in root.parent.iterdir()) == ["cards", "data"]
    good = archive(server.serve("small.zip", zipped(images())))
    write_card(root.parent / "cards", archive(evil), archive(too_large), good, split)
    assert prepare(root).code == 0
    assert laid_out(root) == images()
    assert picture(0) == laid_out(root)["ant/ant_0.jpg"]


def _inner_bomb(levels: int) -> bytes:
    """Return an archive of a few KiB; each of its archives unpacks to nearly a hundred times."""
    data = bytes(15 * MIB)
    for level in range(levels):
        names = [f"{number}.zip" for number in range(40)] if level else ["image.jpg"]
        data = zipped(dict.fromkeys(names, data), zipfile.ZIP_DEFLATED)
    return data


def test_archives_in_archives_share_the_budget_of_the_outermost(root):
    data = _inner_bomb(2)
    assert len(data) < 100_000
    card = archive("http://127.0.0.1:9/never/small.zip")
    split = split_source("http://127.0.0.1:9/never/split.json")
    write_card(root.parent / "cards", card, split)
    given = root.parent / "given"
    given.mkdir()
    (given / "small.zip").write_bytes(data)
    (given / SPLIT_FILE).write_bytes(split_bytes())
    done = prepare(root, "--offline-from", given)
    assert done.code == 1
    assert "more than 100 times its size, together with the archives in it" in done.err
    assert not (root / ".prepare").exists()


def test_what_the_outermost_archive_allows_is_spent_at_all_levels(tmp_path):
    (tmp_path / "outer.zip").write_bytes(_inner_bomb(2))
    target, budget = tmp_path / "target", Budget(GIB)
    target.mkdir()
    unpack(tmp_path / "outer.zip", target, budget)
    first, second, *_ = nested_archives(target)
    unpack(first, target, budget, inside_another=True)
    with pytest.raises(SourceFailed, match="together with the archives in it"):
        unpack(second, target, budget, inside_another=True)

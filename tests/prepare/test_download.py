"""Downloads from a server that is slow, breaks off, has no ranges, or sends wrong headers."""

import hashlib
import json
import socket
from contextlib import suppress

import pytest

from so_clip.prepare.download import fetch
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.sources import RemoteFile, SourceFailed
from tests.helpers.command import python

QUICK = PrepareOptions(retries=3, retry_seconds=0.01, timeout_seconds=5)
# More than a chunk of a download, so that parts of it arrive.
DATA = bytes(range(256)) * 16_000
MIB = 2**20


def _fetch(url, folder, options=QUICK, **known):
    return fetch(RemoteFile(url=url, name="a.zip", **known), folder, options)


def _part(folder, url, data, version='"1"'):
    """Write the partial file of an earlier process."""
    folder.mkdir(exist_ok=True)
    (folder / "a.zip.part").write_bytes(data)
    notes = {"url": url, "total": len(DATA), "version": version}
    (folder / "a.zip.part.json").write_text(json.dumps(notes))


def test_a_file_arrives_whole_and_nothing_else_stays(server, tmp_path):
    file = _fetch(server.serve("a.zip", DATA), tmp_path)
    assert file.read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_an_existing_file_is_not_downloaded_again(server, tmp_path):
    url = server.serve("a.zip", DATA)
    _fetch(url, tmp_path)
    _fetch(url, tmp_path)
    assert len(server.asked) == 1


def test_a_slow_server_is_no_error(server, tmp_path):
    url = server.serve("a.zip", DATA[:100_000], seconds_a_chunk=0.05)
    assert _fetch(url, tmp_path).read_bytes() == DATA[:100_000]


def test_a_broken_download_is_resumed(server, tmp_path):
    url = server.serve("a.zip", DATA, break_after=[MIB + 7, MIB])
    digest = hashlib.sha256(DATA).hexdigest()
    assert _fetch(url, tmp_path, sha256=digest).read_bytes() == DATA
    assert server.ranges("a.zip") == ["", f"bytes={MIB + 7}-", f"bytes={2 * MIB + 7}-"]


def test_a_later_process_resumes_a_download(server, tmp_path):
    url = server.serve("a.zip", DATA)
    _part(tmp_path, url, DATA[:1234])
    assert _fetch(url, tmp_path).read_bytes() == DATA
    assert server.ranges("a.zip") == ["bytes=1234-"]


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    url = server.serve("a.zip", DATA, ranges=False, break_after=[MIB])
    assert _fetch(url, tmp_path).read_bytes() == DATA
    assert server.ranges("a.zip") == ["", f"bytes={MIB}-"]


def test_another_version_of_the_file_starts_the_download_again(server, tmp_path):
    url = server.serve("a.zip", DATA, etag='"2"')
    _part(tmp_path, url, b"old" * 99)
    assert _fetch(url, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("notes", ["another URL", "none", "no JSON"])
def test_a_partial_file_of_unknown_origin_is_not_used(notes, server, tmp_path):
    url = server.serve("a.zip", DATA)
    _part(tmp_path, "http://example.org/a.zip" if notes == "another URL" else url, b"x" * 99)
    if notes == "none":
        (tmp_path / "a.zip.part.json").unlink()
    if notes == "no JSON":
        (tmp_path / "a.zip.part.json").write_text("[")
    assert _fetch(url, tmp_path).read_bytes() == DATA
    assert server.ranges("a.zip") == [""]


def test_a_partial_file_that_is_complete_is_used(server, tmp_path):
    url = server.serve("a.zip", DATA)
    _part(tmp_path, url, DATA)
    assert _fetch(url, tmp_path).read_bytes() == DATA


def test_a_partial_file_longer_than_the_file_is_not_used(server, tmp_path):
    url = server.serve("a.zip", DATA)
    _part(tmp_path, url, DATA + b"x")
    assert _fetch(url, tmp_path).read_bytes() == DATA


def test_a_resumed_file_with_a_wrong_checksum_is_downloaded_again_once(server, tmp_path):
    url = server.serve("a.zip", DATA, etag="W/weak")
    _part(tmp_path, url, b"x" * MIB, version="")
    digest = hashlib.md5(DATA).hexdigest()
    assert _fetch(url, tmp_path, md5=digest).read_bytes() == DATA
    assert server.ranges("a.zip") == [f"bytes={MIB}-", ""]


def test_a_wrong_checksum_leaves_no_file(server, tmp_path):
    with pytest.raises(SourceFailed, match=r"a\.zip has the sha256 .*expected 000.*replaced"):
        _fetch(server.serve("a.zip", DATA), tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_temporary_failures_are_retried(server, tmp_path):
    url = server.serve("a.zip", DATA, statuses=[503, 429, 500])
    assert _fetch(url, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "asked", "said"),
    [
        (404, 1, "HTTP 404, the file does not exist"),
        (403, 1, "access is refused"),
        (503, 4, "HTTP 503.*4 times"),
    ],
)
def test_a_refusal_names_the_url_and_the_way_out(status, asked, said, server, tmp_path):
    url = server.serve("a.zip", status=status)
    with pytest.raises(SourceFailed, match=said) as caught:
        _fetch(url, tmp_path)
    assert str(caught.value).startswith(url)
    assert "a.zip" in str(caught.value)
    assert len(server.asked) == asked


def test_a_download_that_always_breaks_off_is_given_up_and_its_part_kept(server, tmp_path):
    url = server.serve("a.zip", DATA, ranges=False, break_after=[99] * 9)
    with pytest.raises(
        SourceFailed,
        match=r"broke off \(.*99 bytes.* more expected.*4 times\. 99 bytes of a\.zip are kept",
    ):
        _fetch(url, tmp_path)
    assert (tmp_path / "a.zip.part").stat().st_size == 99


def test_progress_resets_the_number_of_failures(server, tmp_path):
    long = DATA * 3
    url = server.serve("a.zip", long, break_after=[MIB + 1] * 9)
    assert _fetch(url, tmp_path).read_bytes() == long


def test_a_file_of_unknown_length_is_downloaded(server, tmp_path):
    assert _fetch(server.serve("a.zip", DATA, send_length=False), tmp_path).read_bytes() == DATA


def test_a_file_larger_than_the_free_disk_is_refused(server, tmp_path):
    url = server.serve("a.zip", DATA, declared=1 << 60)
    with pytest.raises(
        SourceFailed, match=r"a\.zip needs .* GiB below .* GiB are free.*data_root="
    ):
        _fetch(url, tmp_path)
    assert not (tmp_path / "a.zip.part").exists()


def test_a_full_disk_is_named(server, tmp_path):
    url = server.serve("a.zip", DATA)
    code = """if True:
        import resource, sys
        from pathlib import Path
        from so_clip.prepare.download import fetch
        from so_clip.prepare.options import PrepareOptions
        from so_clip.prepare.sources import RemoteFile, SourceFailed
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            remote = RemoteFile(url=sys.argv[1], name="a.zip")
            fetch(remote, Path(sys.argv[2]), PrepareOptions(retries=0))
        except SourceFailed as error:
            print(error)
    """
    said = python(code, url, tmp_path)
    assert said.startswith(f"{url}: cannot write {tmp_path / 'a.zip.part'}: ")
    assert "Free the disk" in said


def test_only_redirects_to_http_are_followed(server, tmp_path):
    server.serve("there/a.zip", DATA)
    url = server.serve("a.zip", location="/there/a.zip")
    assert _fetch(url, tmp_path / "1").read_bytes() == DATA
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/a.zip"):
        with pytest.raises(SourceFailed, match=r"is not (allowed|followed)"):
            _fetch(server.serve("b.zip", location=target), tmp_path / "2")
    with pytest.raises(SourceFailed):
        _fetch(server.serve("a.zip", location="/a.zip"), tmp_path / "3")


def test_a_web_page_in_place_of_an_archive_is_refused(server, tmp_path):
    url = server.serve("a.zip", b"<html>quota exceeded</html>", content_type="text/html")
    with pytest.raises(SourceFailed, match=r"answers with a web page.*browser.*--offline-from"):
        _fetch(url, tmp_path)


def test_an_unreachable_server_is_given_up_soon(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip"
        with pytest.raises(
            SourceFailed, match=r"cannot be reached \(Connection refused\), 2 times"
        ):
            _fetch(url, tmp_path)


def test_a_silent_server_times_out(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zip"
        with pytest.raises(SourceFailed, match=r"broke off .*timed out"):
            _fetch(url, tmp_path, PrepareOptions(retries=0, timeout_seconds=0.2))


@pytest.mark.parametrize("told", ["-1", "9" * 5000, "x", ""])
def test_an_invalid_length_is_ignored(told, server, tmp_path):
    url = server.serve("a.zip", DATA, declared=told)
    with suppress(SourceFailed):
        assert _fetch(url, tmp_path).read_bytes() == DATA

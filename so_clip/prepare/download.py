"""Downloads: resumed where they broke off, repeated with back-off, checked before they count."""

import hashlib
import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from so_clip.prepare.sources import RemoteFile, SourceFailed
from so_clip.system import atomic

CHUNK_BYTES = 1 << 20
# Answers that may be other the next time.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_MEANING = {
    401: "it wants a login",
    403: "access is refused",
    404: "it is not there any more",
    410: "it is gone for good",
    451: "it is blocked where you are",
}
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Patience:
    """How long a download is tried: tries in a row without progress, first wait, and silence."""

    retries: int = 5
    retry_seconds: float = 1.0
    timeout_seconds: float = 60.0


def fetch(remote: RemoteFile, folder: Path, patience: Patience) -> Path:
    """Download one file into `folder`, or return it if it is there already.

    What has arrived lies in NAME.part, and NAME.part.json says of which URL and version it is; so a
    download goes on where it broke off, in this process or in a later one, if the server allows
    ranges and still has the same version; otherwise it begins anew. NAME is made last, checked.

    Args:
        remote: what to download.
        folder: where to; it is made.
        patience: tries and waits.

    Raises:
        SourceFailed: no network, a refusal, too little space, a wrong checksum, or a file that
            breaks off again and again.
    """
    final, part = folder / remote.name, folder / f"{remote.name}.part"
    if final.is_file():
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        resumed = _until_whole(remote, part, patience)
        problem = wrong_checksum(part, remote)
        if problem and resumed:
            # Two versions may have been joined; a whole new one tells.
            _forget(part)
            _until_whole(remote, part, patience)
            problem = wrong_checksum(part, remote)
        if problem:
            _forget(part)
            raise SourceFailed(f"{remote.url}: {problem}. It is damaged or has been replaced.")
        part.replace(final)
        _notes(part).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(remote, part, error) from error
    return final


def wrong_checksum(file: Path, remote: RemoteFile) -> str:
    """Say how a file's checksum differs from the card's; "" where it does not, or none is known."""
    for kind, wanted in (("sha256", remote.sha256), ("md5", remote.md5)):
        if wanted is None:
            continue
        found = _digest(file, kind)
        if found != wanted:
            return f"{remote.name} has the {kind} {found}, expected {wanted}"
    return ""


def _digest(file: Path, kind: str) -> str:
    # Against damage, not against forgers: for most archives MD5 is all that was ever published.
    digest = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class _Passing(Exception):
    """A failure that may pass.

    `wait_seconds` is the server's wish; `hopeless` says that the host could not even be reached.
    """

    def __init__(self, reason: str, wait_seconds: float = 0.0, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        self.hopeless = hopeless


def _until_whole(remote: RemoteFile, part: Path, patience: Patience) -> bool:
    """Repeat transfers until the file is whole; return whether it was put together from several."""
    failures, transfers = 0, 0 if not part.exists() else 1
    while True:
        before = _size(part)
        transfers += 1
        try:
            _transfer(remote, part, patience)
            return transfers > 1
        except _Passing as error:
            gained = _size(part) - before >= CHUNK_BYTES
            failures = 1 if gained else failures + 1
            # A host that cannot be reached at all will hardly be a minute later.
            allowed = (
                min(1, patience.retries) if error.hopeless and not before else patience.retries
            )
            if failures > allowed:
                times = f", {failures} times" if failures > 1 else ""
                there = _size(part)
                kept = (
                    f" {there} bytes of {remote.name} are kept for a repetition." if there else ""
                )
                raise SourceFailed(f"{remote.url}: {error}{times}.{kept}") from error
            wait = max(patience.retry_seconds * 2 ** (failures - 1), error.wait_seconds)
            time.sleep(min(wait, _LONGEST_WAIT_SECONDS))


def _transfer(remote: RemoteFile, part: Path, patience: Patience) -> None:
    """Ask once for what is missing of the file and write it to `part`."""
    notes = _read_notes(part)
    if notes.get("url") != remote.url:
        _forget(part)
        notes = {}
    have = _size(part)
    headers = {"User-Agent": "so_clip", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if notes.get("version"):
            headers["If-Range"] = notes["version"]
    try:
        request = Request(remote.url, headers=headers)
        with _OPENER.open(request, timeout=patience.timeout_seconds) as response:
            _receive(remote, response, part, notes)
    except HTTPError as error:
        _on_refusal(remote, part, error, notes, have)
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Passing(f"the connection broke off ({_text(error)})") from error
    except URLError as error:
        raise _Passing(f"cannot be reached ({_text(error.reason)})", hopeless=True) from error


def _receive(remote: RemoteFile, response: Any, part: Path, notes: dict[str, Any]) -> None:
    have = _size(part)
    total = _count(response.headers.get("Content-Length", ""))
    if response.status == 206:
        total = _resumed_total(response.headers.get("Content-Range", ""), have)
        if total is None or notes.get("total") not in (None, total):
            _forget(part)
            raise _Passing("the server sent another range than was asked for")
    else:
        have = 0
    if response.headers.get_content_type() == "text/html" and not remote.name.endswith(".html"):
        raise SourceFailed(
            f"{remote.url}: answers with a web page where {remote.name} should be. Open it in a "
            f"browser, fetch the file by hand and repeat with --offline-from FOLDER."
        )
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise SourceFailed(
            f"{remote.url}: {remote.name} needs {_gib(total - have)} GiB below {part.parent}, but "
            f"{_gib(free)} GiB are free. Free the disk, or choose another folder with "
            "data_root=FOLDER."
        )
    headers = response.headers
    version = headers.get("ETag", "") if not headers.get("ETag", "W/").startswith("W/") else ""
    version = version or headers.get("Last-Modified", "")
    atomic.write_json(_notes(part), {"url": remote.url, "total": total, "version": version})
    with (
        part.open("ab" if have else "wb") as file,
        tqdm(
            desc=remote.name, total=total, initial=have, unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        for chunk in _chunks(response):
            file.write(chunk)
            # What a killed process leaves behind can be gone on from.
            file.flush()
            bar.update(len(chunk))
        have = file.tell()
    if total is not None and have < total:
        raise _Passing(f"{remote.name} broke off after {have} of {total} bytes")


def _chunks(response: Any) -> Iterator[bytes]:
    """Yield what comes; what goes wrong on the way here is the network's fault, not the disk's."""
    try:
        # read would wait for a whole chunk, and what has come of it be lost with the process.
        while chunk := response.read1(CHUNK_BYTES):
            yield chunk
    except (http.client.HTTPException, OSError) as error:
        raise _Passing(f"the connection broke off ({_text(error)})") from error


def _on_refusal(
    remote: RemoteFile, part: Path, error: HTTPError, notes: dict[str, Any], have: int
) -> None:
    error.close()
    if error.code == 416 and have:
        if have == notes.get("total"):
            return
        _forget(part)
        raise _Passing("the server does not have the rest that was asked for") from error
    meaning = _MEANING.get(error.code, str(error.reason))
    if error.code in _PASSING:
        after = _count(error.headers.get("Retry-After", ""))
        raise _Passing(f"HTTP {error.code}, {meaning}", after or 0.0)
    raise SourceFailed(
        f"{remote.url}: HTTP {error.code}, {meaning}. If you have {remote.name}, repeat with "
        "--offline-from FOLDER."
    ) from error


def _resumed_total(content_range: str, have: int) -> int | None:
    """Return the total of "bytes HAVE-LAST/TOTAL"; None if it is another range."""
    unit, _, rest = content_range.partition(" ")
    span, _, total = rest.partition("/")
    fits = unit == "bytes" and _count(span.partition("-")[0]) == have
    return _count(total) if fits else None


def _count(text: str) -> int | None:
    """Return a number of bytes or seconds that a server tells; None for anything else."""
    return int(text) if re.fullmatch("[0-9]{1,20}", text) else None


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https alone, and never from the latter to the former."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise SourceFailed(f"{req.full_url}: redirects to {newurl}, which is not followed.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = build_opener(_Redirects())


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path) -> dict[str, Any]:
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _forget(part: Path) -> None:
    for file in (part, _notes(part)):
        file.unlink(missing_ok=True)


def _size(file: Path) -> int:
    return os.path.getsize(file) if file.exists() else 0  # noqa: PTH202 - a race is no concern here


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _text(error: Any) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(reason).split())[:200]


def _cannot_write(remote: RemoteFile, part: Path, error: OSError) -> SourceFailed:
    return SourceFailed(
        f"{remote.url}: cannot write {part}: {_text(error)}. Free the disk, or choose another "
        "folder with data_root=FOLDER; the command goes on from what has arrived."
    )

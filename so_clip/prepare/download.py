"""Downloads: retried, resumed where they broke off, and checked before they count."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError
from urllib3.util import Retry

from so_clip.errors import reason_of
from so_clip.prepare.options import PrepareOptions
from so_clip.prepare.sources import RemoteFile, SourceFailed
from so_clip.system import atomic
from so_clip.system.safe_open import read_plain

CHUNK_BYTES = 1 << 20
# Refusals that may be temporary.
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_MEANING = {
    401: "it needs a login",
    403: "access is refused",
    404: "the file does not exist",
    410: "the file was removed",
    451: "the file is blocked for legal reasons",
}
_LONGEST_WAIT_SECONDS = 60


def fetch(remote: RemoteFile, folder: Path, options: PrepareOptions) -> Path:
    """Download one file into `folder`, or return it if it is there already.

    NAME.part holds what has arrived, and NAME.part.json the URL and version it belongs to. So this
    process or a later one resumes a download, if the server supports ranges and still has the same
    version. Otherwise the download starts again. NAME appears last, with its checksum verified.

    Args:
        remote: what to download.
        folder: the target folder, made if it does not exist.
        options: retries and waits.

    Raises:
        SourceFailed: no network, a refusal, too little disk space, a wrong checksum, or a file that
            breaks off again and again.
    """
    final, download = folder / remote.name, _Download(remote, folder, options)
    if final.is_file():
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        resumed = download.complete()
        problem = wrong_checksum(download.part, remote)
        if problem and resumed:
            # The parts may be of two versions of the file.
            download.forget()
            download.complete()
            problem = wrong_checksum(download.part, remote)
        if problem:
            download.forget()
            raise SourceFailed(f"{remote.url}: {problem}. It is damaged or has been replaced.")
        download.part.replace(final)
        download.forget()
    except OSError as error:
        raise SourceFailed(
            f"{remote.url}: cannot write {download.part}: {_cause(error)}. Free the disk, or "
            "choose another folder with data_root=FOLDER; the command resumes the download."
        ) from error
    return final


def wrong_checksum(file: Path, remote: RemoteFile) -> str:
    """Say how a file's checksum differs from the card's; "" if it is equal or unknown."""
    for kind, expected in (("sha256", remote.sha256), ("md5", remote.md5)):
        if expected is None:
            continue
        with file.open("rb") as stream:
            # MD5 finds damage, not forgery; many archives have no other published checksum.
            method = partial(hashlib.new, kind, usedforsecurity=False)
            found = hashlib.file_digest(stream, method).hexdigest()
        if found != expected:
            return f"{remote.name} has the {kind} {found}, expected {expected}"
    return ""


class _BrokenOff(Exception):
    """A transfer ended before the file was complete; the message is the reason."""


class _Download:
    def __init__(self, remote: RemoteFile, folder: Path, options: PrepareOptions) -> None:
        self.remote, self.options = remote, options
        self.part = folder / f"{remote.name}.part"
        self._notes_file = folder / f"{remote.name}.part.json"

    def complete(self) -> bool:
        """Repeat transfers until the file is complete; return whether there were several."""
        failures, resumed = 0, self.part.exists()
        while True:
            before = self._size()
            try:
                self._transfer()
                return resumed
            except _BrokenOff as error:
                resumed = True
                failures = 1 if self._size() - before >= CHUNK_BYTES else failures + 1
                if failures > self.options.retries:
                    raise self._failure(f"the download broke off ({error})", failures) from error
            wait = self.options.retry_seconds * 2 ** (failures - 1)
            time.sleep(min(wait, _LONGEST_WAIT_SECONDS))

    def forget(self) -> None:
        """Remove what has arrived."""
        for file in (self.part, self._notes_file):
            file.unlink(missing_ok=True)

    def _transfer(self) -> None:
        """Request the missing bytes of the file once and write them to `part`."""
        notes = self._read_notes()
        if notes.get("url") != self.remote.url:
            self.forget()
            notes = {}
        have, retries = self._size(), self.options.retries
        headers = {"User-Agent": "so_clip", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if notes.get("version"):
                headers["If-Range"] = notes["version"]
        # A server that cannot be reached at all will probably not be reachable a minute later.
        connects = retries if have else min(1, retries)
        seconds = self.options.timeout_seconds
        try:
            with (
                _session(retries, connects, self.options.retry_seconds) as session,
                session.get(
                    self.remote.url, headers=headers, timeout=seconds, stream=True
                ) as response,
            ):
                if response.ok:
                    self._receive(response, have if response.status_code == 206 else 0, notes)
                else:
                    self._check_refusal(response, have, notes)
        except requests.RequestException as error:
            reason = getattr(error.args[0], "reason", None) if error.args else None
            if isinstance(reason, (ReadTimeoutError, ProtocolError)):
                problem = f"the connection broke off ({_cause(error)})"
                raise self._failure(problem, retries + 1) from error
            attempts = connects + 1 if reason else 1
            raise self._failure(f"it cannot be reached ({_cause(error)})", attempts) from error

    def _receive(self, response: requests.Response, have: int, notes: dict[str, Any]) -> None:
        """Write the answer behind the first `have` bytes of `part`."""
        url, name, headers = self.remote.url, self.remote.name, response.headers
        if headers.get("Content-Type", "").startswith("text/html") and not name.endswith(".html"):
            raise SourceFailed(
                f"{url}: answers with a web page in place of {name}. Open it in a browser, "
                "download the file by hand and repeat with --offline-from FOLDER."
            )
        missing = response.raw.length_remaining
        total = None if missing is None else have + missing
        if have and (
            not headers.get("Content-Range", "").startswith(f"bytes {have}-")
            or notes.get("total") not in (None, total)
        ):
            self.forget()
            raise _BrokenOff("the server sent another range than requested")
        free = shutil.disk_usage(self.part.parent).free
        if missing is not None and missing > free:
            raise SourceFailed(
                f"{url}: {name} needs {missing / 2**30:.2f} GiB below {self.part.parent}, but "
                f"{free / 2**30:.2f} GiB are free. Free the disk, or choose another folder with "
                "data_root=FOLDER."
            )
        etag = headers.get("ETag", "W/")
        version = headers.get("Last-Modified", "") if etag.startswith("W/") else etag
        atomic.write_json(self._notes_file, {"url": url, "total": total, "version": version})
        with (
            self.part.open("ab" if have else "wb") as file,
            tqdm(None, name, total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for chunk in _chunks(response):
                file.write(chunk)
                file.flush()  # a later process resumes from here if this one is killed
                bar.update(len(chunk))

    def _check_refusal(self, response: requests.Response, have: int, notes: dict[str, Any]) -> None:
        """Raise an error, unless the server refuses because no byte is missing."""
        status = response.status_code
        if status == 416 and have:
            if have == notes.get("total"):
                return
            self.forget()
            raise _BrokenOff("the server does not have the requested range")
        meaning = _MEANING.get(status, response.reason)
        attempts = 1 + len(getattr(response.raw.retries, "history", ()))
        raise SourceFailed(
            f"{self.remote.url}: HTTP {status}, {meaning}{_times(attempts)}. If you have "
            f"{self.remote.name}, repeat with --offline-from FOLDER."
        )

    def _failure(self, problem: str, attempts: int) -> SourceFailed:
        size, name = self._size(), self.remote.name
        kept = f" {size} bytes of {name} are kept for the next attempt." if size else ""
        return SourceFailed(f"{self.remote.url}: {problem}{_times(attempts)}.{kept}")

    def _read_notes(self) -> dict[str, Any]:
        try:
            notes = json.loads(read_plain(self._notes_file))
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0


def _session(retries: int, connects: int, wait_seconds: float) -> requests.Session:
    """Return a session that repeats requests without an answer; Retry-After is respected."""
    policy = Retry(
        total=None,
        connect=connects,
        read=retries,
        status=retries,
        status_forcelist=_TEMPORARY,
        raise_on_status=False,
        backoff_factor=wait_seconds,
        backoff_max=_LONGEST_WAIT_SECONDS,
        retry_after_max=_LONGEST_WAIT_SECONDS,
    )
    session = requests.Session()
    session.hooks["response"] = [_check_redirect]
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=policy))
    return session


def _check_redirect(response: requests.Response, **_: Any) -> None:
    """Refuse redirects to other schemes than http and https, and from https to http."""
    if response.is_redirect:
        target = urljoin(response.url, response.headers["location"])
        old, new = urlsplit(response.url).scheme, urlsplit(target).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise SourceFailed(f"{response.url}: redirects to {target}, which is not followed.")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield bytes as they arrive. Network errors become _BrokenOff; disk errors stay OSError."""
    try:
        # read would wait for a whole chunk, and a killed process would lose what has arrived.
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            yield chunk
    except (HTTPError, OSError) as error:
        raise _BrokenOff(_cause(error)) from error


def _times(count: int) -> str:
    return f", {count} times" if count > 1 else ""


def _cause(error: BaseException) -> str:
    """Return the text of the error that caused the others."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return reason_of(error)

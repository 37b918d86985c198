"""Files of an OpenNeuro data set from its public bucket: listed, fetched, checked; a killed download goes on.

The first listing is kept beside the files and is what they are checked against ever after: MD5 where the
bucket tells it (the ETag of an object that was stored in one part), else the size.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json
from tfds_epilepsy.progress import count, stderr

# The bucket's name holds a dot, so it stands in the path: no certificate covers it as a host's name.
SERVER = "https://s3.amazonaws.com/openneuro.org"
LISTING = ".listing.json"
CONNECTIONS = 4
ATTEMPTS = 4
PATIENCE = 60  # seconds without a byte
PAUSE = 2.0  # seconds before the second attempt; twice as long before each next
CHUNK = 2**18


@dataclass(frozen=True)
class RemoteFile:
    """A file of the bucket.

    Attributes:
        path: in the data set, ``sub-01/anat/sub-01_T1w.nii.gz``.
        size: bytes.
        etag: as the bucket lists it, without quotes.
    """

    path: str
    size: int
    etag: str

    @property
    def md5(self) -> str:
        """Hexadecimal MD5 of the content; empty where the bucket does not tell it."""
        return self.etag if re.fullmatch(r"[0-9a-f]{32}", self.etag) else ""


def fetch(
    dataset: str,
    folder: str | Path,
    choose: Callable[[Sequence[RemoteFile]], Sequence[RemoteFile]],
    *,
    server: str = SERVER,
) -> list[RemoteFile]:
    """The chosen files of a data set, in ``folder``, each whole and equal to its checksum.

    What is there and sound is not fetched again; without anything to fetch the network is not touched.

    Args:
        dataset: accession number, ``ds004199``.
        folder: root of the local copy.
        choose: which files, of all those listed.
        server: address of the bucket.

    Returns:
        The chosen files.

    Raises:
        InputError: no connection; not enough room; files that came damaged or not at all, all of them.
    """
    folder = Path(folder)
    if not (folder / LISTING).is_file():
        write_json(folder / LISTING, [asdict(file) for file in list_files(dataset, server=server)])
    chosen = list(choose([RemoteFile(**row) for row in read_json(folder / LISTING)]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter's lock
        sound = list(pool.map(lambda file: not _trouble(file, folder / file.path), chosen))
    waiting = [file for file, whole in zip(chosen, sound, strict=True) if not whole]
    if waiting:
        _download(dataset, waiting, folder, server)
    return chosen


def list_files(dataset: str, *, server: str = SERVER) -> list[RemoteFile]:
    """All files of a data set, by the bucket's listing (S3's ListObjectsV2), sorted by path.

    Raises:
        InputError: no connection, no such data set, or an answer that is no listing.
    """
    files: list[RemoteFile] = []
    token = ""
    while True:
        query = {"list-type": "2", "prefix": f"{dataset}/"} | ({"continuation-token": token} if token else {})
        url = f"{server}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as response:
                root = ElementTree.fromstring(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"{url}: cannot be read ({error}); is there a network?") from error
        except ElementTree.ParseError as error:
            raise InputError(f"{url}: the answer is no listing ({error}).") from error
        for entry in root.iterfind("{*}Contents"):
            path = entry.findtext("{*}Key", "").removeprefix(f"{dataset}/")
            size, etag = entry.findtext("{*}Size", "0"), entry.findtext("{*}ETag", "").strip('"').lower()
            if path and not path.endswith("/") and ".." not in path.split("/"):
                files.append(RemoteFile(path, int(size), etag))
        token = root.findtext("{*}NextContinuationToken", "")
        if not token:
            break
    if not files:
        raise InputError(f"{server}: holds nothing of {dataset}.")
    return sorted(files, key=lambda file: file.path)


def _trouble(file: RemoteFile, path: Path) -> str:
    """What is wrong with a local copy, or nothing."""
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != file.size:
        return f"has {size} bytes, {file.size} are listed"
    if file.md5:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != file.md5:
            return f"has the MD5 {found}, {file.md5} is listed"
    return ""


def _download(dataset: str, files: Sequence[RemoteFile], folder: Path, server: str) -> None:
    for file in files:
        if (folder / file.path).exists():
            trouble = _trouble(file, folder / file.path)
            stderr.print(
                f"{folder / file.path}: {trouble}; it is fetched again.", markup=False, soft_wrap=True
            )
    have = {file: _partial(folder / file.path) for file in files}
    done = sum(path.stat().st_size for path in have.values() if path.exists())
    total = sum(file.size for file in files)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < total - done:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB are free, {dataset} needs {(total - done) / 1e9:.1f} GB more."
        )
    stop = threading.Event()
    name = f"{dataset}, {len(files)} files"
    with count(name, total, amount=_megabytes) as advance, ThreadPoolExecutor(CONNECTIONS) as pool:
        advance(done)

        def one(file: RemoteFile) -> str:
            url = f"{server}/{dataset}/{urllib.parse.quote(file.path)}"
            return _fetch_one(file, url, folder / file.path, advance, stop)

        try:
            problems = [problem for problem in pool.map(one, files) if problem]
        except BaseException:  # Ctrl-C: the partial files stay, for next time
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if problems:
        if len(problems) < len(files):
            problems.append(f"{len(files) - len(problems)} of {len(files)} files came whole and are kept.")
        raise InputError(problems)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _fetch_one(
    file: RemoteFile, url: str, path: Path, advance: Callable[[int], None], stop: threading.Event
) -> str:
    """Fetch a file, from where its partial copy ends; what went wrong in the end, or nothing."""
    partial = _partial(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    trouble = ""
    for attempt in range(ATTEMPTS):
        if attempt and stop.wait(PAUSE * 2 ** (attempt - 1)):
            break
        try:
            if not partial.exists() or partial.stat().st_size != file.size:
                _read(file, url, partial, advance, stop)
        except (OSError, http.client.HTTPException) as error:
            trouble = str(error)
        if stop.is_set():
            break
        wrong = _trouble(file, partial)
        if not wrong:
            os.replace(partial, path)
            return ""
        if partial.exists() and partial.stat().st_size >= file.size:  # whole, and not what was listed
            advance(-partial.stat().st_size)
            partial.unlink()
            trouble = (
                f"what came {wrong}; if the data set has been changed, remove {LISTING} in its folder to "
                "take it as it is now"
            )
        trouble = trouble or "the connection broke"
    return f"{url}: {trouble}. The same command goes on where this ended."


def _read(
    file: RemoteFile, url: str, partial: Path, advance: Callable[[int], None], stop: threading.Event
) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={start}-", "If-Range": f'"{file.etag}"'} if 0 < start < file.size else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if not resumed:
            advance(-start)
        with partial.open("ab" if resumed else "wb") as out:
            while not stop.is_set() and (chunk := response.read(CHUNK)):
                out.write(chunk)
                advance(len(chunk))


def _partial(path: Path) -> Path:
    return path.with_name(f".partial-{path.name}")

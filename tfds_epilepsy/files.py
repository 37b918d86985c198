"""Files that appear under their name once they are whole, in folders where processes may meet."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tfds_epilepsy.errors import InputError

LOCK = ".lock"
PARTIAL = ".partial-"
UNFOLDS = 10  # times, that an archive may be larger once it is read: what is written here is not compressed
JSON_BYTES = 2**24  # of a model's configuration


def hold(folder: str | Path, *, shared: bool = False, wait: float = 2) -> IO[bytes]:
    """Hold a folder for work in it, until the returned file is closed or the process ends.

    Who comes first removes what ended processes left half-written there. File systems without locks let
    everyone in.

    Args:
        folder: made where it is absent.
        shared: others may work there at the same time, if they say so too.
        wait: seconds to wait for another process, which may be ending, or clearing the folder.

    Raises:
        InputError: another process is at work there; the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+b")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}).") from error
    until = time.monotonic() + wait
    try:
        while not (alone := lock(file)) and not (shared and lock(file, shared=True)):
            if time.monotonic() >= until:
                file.close()
                raise InputError(
                    f"{folder}: another process is at work there: wait until it ends, or choose another "
                    "folder."
                )
            time.sleep(0.05)
        if alone:
            for path in list(folder.rglob(f"{PARTIAL}*")):
                remove(path)
        if alone and shared:
            lock(file, shared=True)
    except OSError:
        pass  # no locks here
    return file


def check_writable(folder: str | Path) -> None:
    """Try, before any work, whether a folder can be made, or be written to where it is there.

    Raises:
        InputError: it cannot.
    """
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=PARTIAL):
            pass
    except OSError as error:
        raise InputError(
            f"{folder}: {existing} cannot be written to ({error.strerror}); choose another folder."
        ) from error


def lock(file: IO[bytes], *, shared: bool = False) -> bool:
    """Try to lock an open file for this process; the lock goes when the file is closed.

    Returns:
        False where another process has it.

    Raises:
        OSError: there are no such locks: on Windows, and on some network file systems.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no locks of POSIX") from error
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def remove(path: Path) -> None:
    """Delete a file, or a folder with all in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """A name beside ``path`` to write under, of no other process."""
    return path.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{path.name}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A partial file or folder to write to, beside ``path``: it takes that name when the block ends well.

    Folders above are made. When the block fails the partial one is removed, and what stood there stays. A
    folder takes the place of an empty one alone.

    Raises:
        InputError: it cannot be written: a full disk, no permission.
    """
    path = Path(path)
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)) in (partial, path, *path.parents):
            raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from error
        raise
    finally:
        with suppress(OSError):
            remove(partial)


def write_text(path: str | Path, text: str) -> Path:
    """Write text, atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON, atomically; arrays become lists, NaN and infinity become null."""
    return write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}).") from error


def read_keras_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a ``.keras`` file, read without Keras.

    Raises:
        InputError: the file is missing, damaged, or none of Keras.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("config.json") as file:
            text = file.read(JSON_BYTES + 1)
        if len(text) > JSON_BYTES:
            raise ValueError(f"its configuration has more than {JSON_BYTES >> 20} MiB")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("its configuration is no JSON object")
    except (OSError, KeyError, ValueError, RecursionError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a saved model ({error}).") from error
    return content


def zip_problem(archive: zipfile.ZipFile, names: Collection[str] | None = None) -> str:
    """Why an archive is not read: entries that have no business in it, or unfold to much more than they take.

    Args:
        archive: opened to read.
        names: the entries that it may hold; any if None.

    Returns:
        A clause, empty where nothing is wrong.
    """
    entries = archive.infolist()
    found = [entry.filename for entry in entries]
    if odd := sorted({name for name in found if (names is not None and name not in names)}):
        return f"it holds {', '.join(map(repr, odd[:3]))}, which nothing here writes"
    if len(set(found)) < len(found):
        return "two of its entries have one name"
    if any(entry.file_size > UNFOLDS * entry.compress_size + 2**16 for entry in entries):
        return f"its entries unfold to more than {UNFOLDS} times what they take"
    return ""


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a BIDS TSV, atomically; what is empty or NaN becomes ``n/a``."""
    lines = ["\t".join(rows[0]) if rows else "participant_id"]
    lines += ["\t".join(cell(value) for value in row.values()) for row in rows]
    return write_text(path, "\n".join(lines) + "\n")


def cell(value: Any) -> str:
    """A value as it stands in a BIDS TSV."""
    if value in ("", None) or value != value:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """The same in plain Python types that JSON holds; NaN and infinity as None.

    What has a method ``to_json`` is what that returns.
    """
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

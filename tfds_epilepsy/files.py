"""Files that appear under their name once they are whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfds_epilepsy.errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A partial file to write to, beside ``path``: it takes that name when the block ends well.

    Folders above are made. When the block fails the partial file is removed, and what stood there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a BIDS TSV, atomically; what is empty or NaN becomes ``n/a``."""

    def text(value: Any) -> str:
        if value in ("", None) or value != value:
            return "n/a"
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    lines = ["\t".join(rows[0]) if rows else "participant_id"]
    lines += ["\t".join(text(value) for value in row.values()) for row in rows]
    return write_text(path, "\n".join(lines) + "\n")


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

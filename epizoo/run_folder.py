"""The folder of a run: the same names each time, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfds_epilepsy.errors import InputError


@dataclass(frozen=True)
class RunFolder:
    """Names inside a run. Score maps and clusters are BIDS derivatives of the scored subjects."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metadata(self) -> Path:
        return self.path / "metadata.json"

    @property
    def model(self) -> Path:
        return self.path / "model.keras"

    @property
    def training(self) -> Path:
        return self.path / "training"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def detector(self) -> Path:
        return self.path / "detector"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def score_map(self, subject: str, space: str) -> Path:
        return self._anat(subject) / f"sub-{subject}_space-{space}_desc-abnormality_statmap.nii.gz"

    def clusters(self, subject: str, space: str) -> Path:
        return self._anat(subject) / f"sub-{subject}_space-{space}_desc-clusters.tsv"

    def labels(self, subject: str, space: str) -> Path:
        return self._anat(subject) / f"sub-{subject}_space-{space}_desc-clusters_dseg.nii.gz"

    def _anat(self, subject: str) -> Path:
        return self.path / f"sub-{subject}" / "anat"

    def clear(self) -> None:
        """Delete the run, and nothing that a run did not write."""
        if not self.path.exists():
            return
        if any(self.path.iterdir()) and not self.config.is_file():
            raise InputError(f"{self.path}: not empty and not a run (no config.json); choose another folder.")
        shutil.rmtree(self.path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        partial.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} the folder of a run?") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}).") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

"""The folder of a run: the same names each time, written whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

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

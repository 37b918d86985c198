"""The folder of a run: the same names each time, written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import remove

# All else that a run writes.
WRITTEN = (
    *("config.json", "metadata.json", "metrics.json", "report.html"),
    *("model.keras", "checkpoint.keras", "best.keras", "history.csv", "pictures", "detector", "sub-*"),
    *("dataset_description.json", "README", ".bidsignore", ".partial-*"),
)


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
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def detector(self) -> Path:
        return self.path / "detector"

    @property
    def manifest(self) -> Path:
        """What the fitted detector says of itself; written last of its files."""
        return self.detector / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def of(self, subject: str) -> Path:
        """The folder of a subject.

        Raises:
            InputError: a label that would lead out of the run.
        """
        return self.path / f"sub-{_one_name(subject)}"

    def score_map(self, subject: str, space: str) -> Path:
        return self._anat(subject) / f"sub-{subject}_space-{_one_name(space)}_desc-abnormality_statmap.nii.gz"

    def clusters(self, subject: str, space: str) -> Path:
        return self._anat(subject) / f"sub-{subject}_space-{_one_name(space)}_desc-clusters.tsv"

    def labels(self, subject: str, space: str) -> Path:
        return self._anat(subject) / f"sub-{subject}_space-{_one_name(space)}_desc-clusters_dseg.nii.gz"

    def _anat(self, subject: str) -> Path:
        return self.of(subject) / "anat"

    def forget(self, subject: str) -> None:
        """Delete the maps and clusters of a subject; the tables, which stand for a whole subject, first."""
        anat, stem = self._anat(subject), f"sub-{subject}_space-*_desc"
        for pattern in (f"{stem}-clusters.tsv", f"{stem}-clusters*", f"{stem}-abnormality_statmap.*"):
            for path in anat.glob(pattern):
                path.unlink()

    def clear(self) -> None:
        """Delete what a run writes, and nothing else that lies in the folder."""
        for pattern in WRITTEN:
            for path in self.path.glob(pattern):
                remove(path)


def _one_name(text: str) -> str:
    """A label of a run's own tables, which a stranger may have written, as a part of a file's name."""
    if {"/", "\\", "\0"} & set(text):
        raise InputError(f"{text!r} is no label of a subject or a space: it holds a path.")
    return text

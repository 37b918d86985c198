"""A run's folder, read: the one place that knows what lies in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from epizoo.method import Scorer, method_of
from epizoo.run_config import RunConfig
from epizoo.run_folder import RunFolder
from epizoo.run_metadata import Metadata
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, read_keras_config
from tfds_epilepsy.volumes import Subject, read_nifti

if TYPE_CHECKING:
    from epizoo.detection.clusters import Cluster
    from epizoo.evaluation import Metrics
    from epizoo.models.patch_model import PatchModel
    from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder

DETECTOR, METRICS = "detector", "metrics"


def open_run(
    folder: str | Path, *, needs: Sequence[str] = (DETECTOR, METRICS), data_dir: str | Path | None = None
) -> FinishedRun:
    """Open the folder of a run.

    Example:
        >>> done = open_run(run_folder, data_dir=data_folder)
        >>> subject = next(done.read("test"))
        >>> done.detector.score(subject).shape
        (24, 26, 10)

    Args:
        folder: in which ``Run`` worked.
        needs: what must be there: the fitted ``detector`` (with its model), the ``metrics``; both of a
            finished run.
        data_dir: where prepared data sets live; TFDS's default if None.

    Raises:
        InputError: not a run, not finished, damaged; all problems at once.
    """
    run = RunFolder(Path(folder))
    if not run.config.is_file():
        raise InputError(f"{run.path}: not a run (no config.json).")
    problems: list[str] = []
    config = metadata = None
    try:
        config = RunConfig.read(run.config)
    except InputError as error:
        problems += error.problems
    needed = [run.metadata]
    if METRICS in needs:
        needed.append(run.metrics)
    if DETECTOR in needs:
        needed.append(run.manifest)
        if config is None or config.has_encoder:
            needed.append(run.model)
    missing = [path for path in needed if not path.is_file()]
    problems += [
        f"{run.path}: not finished (no {path.relative_to(run.path)}); 'epizoo run' with the same arguments "
        "goes on where it was."
        for path in missing
    ]
    try:
        metadata = None if run.metadata in missing else Metadata.read(run.metadata)
    except InputError as error:
        problems += error.problems
    if config is None or metadata is None or problems:
        raise InputError(problems)
    return FinishedRun(run, config, metadata, data_dir)


class FinishedRun:
    """A run that is there: what it was made of and what it found. ``open_run`` makes one.

    A file is read when its content is first asked for.

    Example:
        >>> done.name, done.modalities, done.subjects
        ('first', ['T1w', 'FLAIR'], ['v0', 'v1', 'h1', 'p1'])
        >>> done.score_map("p1").shape, done.clusters("p1")[0].rank
        ((24, 26, 10), 1)

    Attributes:
        folder: the names of its files.
        config: its settings.
        metadata: how it was made.
    """

    def __init__(
        self, folder: RunFolder, config: RunConfig, metadata: Metadata, data_dir: str | Path | None = None
    ):
        self.folder, self.config, self.metadata = folder, config, metadata
        self._data_dir = data_dir

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.path.absolute().name

    @property
    def modalities(self) -> list[str]:
        """Names of the image's channels, in their order."""
        return self.metadata.modalities

    @property
    def patch_shape(self) -> list[int] | None:
        """What its encoder sees, in voxels, read without TensorFlow; None where there is no encoder."""
        if not self.folder.model.is_file():
            return None
        shape: list[int] = read_keras_config(self.folder.model)["config"]["patch_shape"]
        return shape

    @property
    def space(self) -> str:
        """The template space of its maps."""
        return self.metadata.space

    @property
    def splits(self) -> dict[str, list[str]]:
        """Labels of the subjects of each split."""
        return self.metadata.splits

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each step."""
        return {name: step.seconds for name, step in self.metadata.steps.items()}

    @property
    def peak_gib(self) -> float:
        """Most memory of all steps; NaN before the first."""
        return max((step.peak_gib for step in self.metadata.steps.values()), default=np.nan)

    def describe(self) -> dict[str, str]:
        """Its settings, subjects, steps and files, a line each, for people."""
        lines = {name: str(value) for name, value in self.config.to_json().items()}
        if self.config.origin:
            lines["weights"] = self.config.origin
        if self.metadata.supervised:
            lines["supervised"] = f"fitted on {self.metadata.fitted_on}"
        lines["modalities"] = ", ".join(self.modalities)
        lines["space"] = self.space
        lines |= {f"{split} subjects": str(len(names)) for split, names in self.splits.items()}
        steps = self.metadata.steps.items()
        lines |= {f"{name} took": f"{step.seconds} s, {step.peak_gib} GiB" for name, step in steps}
        sizes = {"model size": self.folder.model, "detector size": self.folder.detector}
        lines |= {name: f"{_bytes(path) / 2**20:.1f} MiB" for name, path in sizes.items() if path.exists()}
        return lines

    @property
    def has_metrics(self) -> bool:
        """Whether the run has been evaluated."""
        return self.folder.metrics.is_file()

    @cached_property
    def metrics(self) -> Metrics:
        """The figures of its test subjects.

        Raises:
            InputError: the run is not evaluated, or its figures are damaged.
        """
        from epizoo.evaluation import Metrics

        return Metrics.read(self.folder.metrics)

    @cached_property
    def model(self) -> PatchModel | None:
        """Its trained model; None where the detector reads images by itself.

        Raises:
            InputError: the file is damaged.
        """
        from epizoo import models

        return models.load_model(self.folder.model) if self.folder.model.is_file() else None

    @cached_property
    def detector(self) -> Scorer:
        """The fitted detector: ``score(subject)`` gives the score map ``(x, y, z)``.

        Raises:
            InputError: no fitted detector, damaged files.
        """
        return method_of(self.config.method).load(self.folder)

    @cached_property
    def fitted_on(self) -> list[str]:
        """Labels of the subjects that the detector was fitted on."""
        return list(self._manifest["subjects"])

    @property
    def voxel_size(self) -> float:
        """Millimetres between the voxels of the grid."""
        return float(self._manifest["affine"][0][0])

    @property
    def normalisation(self) -> str:
        """How its images were normalised; see ``normalisation_of``."""
        return normalisation_of(self.config.data, self.modalities)

    @cached_property
    def history(self) -> dict[str, list[float]]:
        """The figures of each epoch by name; empty where nothing was trained."""
        if not self.folder.history.is_file():
            return {}
        with self.folder.history.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}

    @property
    def subjects(self) -> list[str]:
        """Labels of the subjects that are scored, in the order of their splits."""
        everyone = (one for split in ("validation", "test") for one in self.splits[split])
        return [one for one in everyone if self.folder.clusters(one, self.space).is_file()]

    def read(self, split: str, subjects: Iterable[str] | None = None) -> Iterator[Subject]:
        """The subjects of a split of its data, one at a time.

        Args:
            split: ``train``, ``validation`` or ``test``.
            subjects: only these; all by default.

        Raises:
            InputError: the data are gone, or have changed.
        """
        import tfds_epilepsy

        return tfds_epilepsy.read(self._builder, split, None if subjects is None else list(subjects))

    def score_map(self, subject: str) -> NDArray[np.float32]:
        """The score map of a scored subject, ``(x, y, z)``; higher is more abnormal."""
        return read_nifti(self.folder.score_map(subject, self.space))[0]

    def labels(self, subject: str) -> NDArray[np.int32]:
        """``(x, y, z)`` the rank of the cluster that each voxel belongs to; 0: none."""
        labels: NDArray[np.int32] = read_nifti(self.folder.labels(subject, self.space), dtype=np.int32)[0]
        return labels

    def clusters(self, subject: str) -> list[Cluster]:
        """The ranked clusters of a scored subject."""
        from epizoo.detection.clusters import read_clusters_tsv

        return read_clusters_tsv(self.folder.clusters(subject, self.space))

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        """What the folder of the detector says of itself."""
        content: dict[str, Any] = read_json(self.folder.manifest)
        return content

    @cached_property
    def _builder(self) -> Builder:
        import tfds_epilepsy

        config = self.config
        builder = tfds_epilepsy.load(config.data, self._data_dir, config.modalities, **config.reading)
        if builder.fingerprint != self.metadata.data_hash:
            raise InputError(
                f"{self.folder.path} was made from other data: {self.config.data} is {builder.fingerprint} "
                f"now, and was {self.metadata.data_hash}."
            )
        return builder


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(one.stat().st_size for one in files if one.is_file())


def normalisation_of(data: str, modalities: Sequence[str]) -> str:
    """How the images of some data were normalised: ``unit``, ``zscore``, or ``none`` for what needs a cohort.

    Raises:
        InputError: a folder that is not there any more, or modalities that differ.
    """
    folder = Path(data)
    if "/" not in data and not folder.exists():
        return "unit"  # a config of the builder
    found = set()
    for modality in modalities:
        image = next(iter(sorted(folder.glob(f"sub-*/**/*_{modality}.nii*"))), None)
        if image is None:
            raise InputError(
                f"{folder}: no {modality} image there, so how the run's data were normalised is not known: "
                "say it (--normalisation unit, zscore or none)."
            )
        sidecar = image.with_name(image.name.split(".nii")[0] + ".json")
        stored = json.loads(sidecar.read_text(encoding="utf-8-sig")) if sidecar.is_file() else {}
        found.add(stored.get("Normalisation", {"method": "unit"}).get("method"))
    if len(found) > 1:
        raise InputError(
            f"{folder}: modalities normalised by {', '.join(sorted(map(str, found)))}: one is needed."
        )
    method = str(found.pop())
    return method if method in ("unit", "zscore") else "none"

"""TFDS builder: subjects in template space, from the phantom, a BIDS derivative, or a public data set."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.constants import INCOMPLETE_PREFIX

from tfds_epilepsy import bids, lesions, phantom, tissue, volumes
from tfds_epilepsy.bonn import BonnConfig
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import hold, partial_of, remove
from tfds_epilepsy.ideas import IdeasConfig
from tfds_epilepsy.progress import track
from tfds_epilepsy.public_cohort import PublicCohort
from tfds_epilepsy.reached import reached_code
from tfds_epilepsy.volumes import TEMPLATE_SPACE, Subject

ZLIB = tfds.features.Encoding.ZLIB


@dataclasses.dataclass(kw_only=True)
class EpilepsyConfig(tfds.core.BuilderConfig):
    """Where the subjects come from: a phantom, a download, or a folder.

    Attributes:
        phantom: the cohort to generate, or None.
        cohort: the public data set to download, or None.
        folder: a template-space derivative; without any of the three, ``manual_dir``.
        modalities: channels of a folder; all that it has by default.
        space: of a folder that holds several.
        group_column: of its participants.tsv.
        groups: further words for ``control`` and ``patient`` in that column.
    """

    phantom: phantom.PhantomConfig | None = None
    cohort: PublicCohort | None = None
    folder: Path | None = None
    modalities: tuple[str, ...] | None = None
    space: str | None = None
    group_column: str | None = None
    groups: Mapping[str, str] | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """How a folder is read, in the words of ``bids.template_subjects``."""
        names = ("modalities", "space", "group_column", "groups")
        return {name: getattr(self, name) for name in names}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Healthy controls and epilepsy patients on one grid, one subject an example."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First form."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Config bids: a template-space BIDS derivative ('epizoo preprocess' makes one) in manual_dir."
    )
    BUILDER_CONFIGS: ClassVar = [
        EpilepsyConfig(
            name="phantom_2mm",
            description="Synthetic cohort with subtle lesions, 2 mm.",
            phantom=phantom.PhantomConfig(voxel_size=2),
        ),
        EpilepsyConfig(
            name="phantom_1mm",
            description="Synthetic cohort with subtle lesions, 1 mm.",
            phantom=phantom.PhantomConfig(voxel_size=1),
        ),
        EpilepsyConfig(name="bids", description="A template-space BIDS derivative from manual_dir."),
        EpilepsyConfig(
            name="bonn",
            description="OpenNeuro ds004199 (Schuch et al. 2023), downloaded and brought to 2 mm.",
            cohort=BonnConfig(),
        ),
        EpilepsyConfig(
            name="bonn_matched",
            description="Those subjects of bonn who were scanned with the controls' protocol.",
            cohort=BonnConfig(matched=True),
        ),
        EpilepsyConfig(
            name="ideas",
            description="OpenNeuro ds005602 (Taylor et al. 2025), downloaded and brought to 2 mm.",
            cohort=IdeasConfig(),
        ),
    ]

    def __init__(self, **kwargs: Any):
        self._derivative: bids.Derivative | None = None
        self._on_beam = False
        super().__init__(**kwargs)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the image's channels."""
        return tuple(self.info.metadata["modalities"])

    @property
    def voxel_size(self) -> tuple[float, ...]:
        """Of the grid, millimetres, an axis each."""
        return tuple(self.info.metadata["voxel_size"])

    @property
    def fingerprint(self) -> str:
        """Hash of the source that was prepared."""
        return str(self.info.metadata["fingerprint"])

    def prepare(
        self, *, require_controls: bool = False, beam_options: Sequence[str] | None = None
    ) -> Builder:
        """Prepare the data set, or find it prepared from the same source, by another process meanwhile too.

        Args:
            require_controls: fewer than 3 training controls are a problem of the source too.
            beam_options: prepare on Apache Beam, with these pipeline options; in this process if None.

        Raises:
            InputError: problems of the source; Beam is asked for and not installed; the data directory
                cannot be written to.
        """
        options = None if beam_options is None else _pipeline_options(beam_options)
        if not self._is_prepared(require_controls):
            place = Path(self.data_dir).parent
            with _place_of(place):
                for half in place.glob(f"{INCOMPLETE_PREFIX}*"):  # of a process that was ended
                    remove(half)
                if Path(self.data_dir).exists():
                    self.info.read_from_directory(self.data_dir)
                if not self._is_prepared(require_controls):
                    self._prepare(require_controls, options)
        return self

    def _is_prepared(self, require_controls: bool) -> bool:
        """Whether the data are there, of this very source."""
        if "fingerprint" not in self.info.metadata or self.fingerprint != self._source_fingerprint():
            return False
        if require_controls:
            self._check_controls(self.info.metadata)
        return True

    def _prepare(self, require_controls: bool, beam_options: Any) -> None:
        # Problems come before any work.
        downloads = Path(self.data_dir_root) / "downloads"
        source = self._source(downloads, self.builder_config.folder, require_controls)
        if require_controls:
            self._check_controls(source)
        if (there := Path(self.data_dir)).exists():  # of another source; it goes at once, or not at all
            os.rename(there, gone := partial_of(there))
            remove(gone)
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        config.beam_options = beam_options
        with redirect_stdout(io.StringIO()):  # TFDS speaks of downloads, also where there are none
            self.download_and_prepare(download_config=config)

    @property
    def reference(self) -> str:
        """What the lesion masks mark: ``lesion``, or ``resection`` where nothing else is known."""
        return str(self.info.metadata.get("reference", "lesion"))

    def lesions(self) -> dict[str, dict[str, str]]:
        """What is known of patients' lesions, by subject: ``type`` and ``contrast``, for strata."""
        return dict(self.info.metadata["lesions"])

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "subject": tfds.features.Text(doc="label without sub-"),
                    "group": tfds.features.Text(doc="control or patient"),
                    "image": tfds.features.Tensor(
                        shape=(None, None, None, None),
                        dtype=np.float32,
                        encoding=ZLIB,
                        doc="(x, y, z, m), RAS+, in [0, 1] inside the brain mask, 0 outside",
                    ),
                    "brain_mask": tfds.features.Tensor(
                        shape=(None, None, None), dtype=np.uint8, encoding=ZLIB, doc="0 or 1"
                    ),
                    "lesion_mask": tfds.features.Tensor(
                        shape=(None, None, None), dtype=np.uint8, encoding=ZLIB, doc="0 or 1; all 0 without"
                    ),
                    "affine": tfds.features.Tensor(shape=(4, 4), dtype=np.float64, doc="voxel to world, mm"),
                    "age": tfds.features.Scalar(np.float32, doc="years, NaN unknown"),
                    "sex": tfds.features.Text(doc="f, m or empty"),
                    "site": tfds.features.Text(doc="scanner or centre, or empty"),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        self._on_beam = (download_config.beam_runner or download_config.beam_options) is not None
        super()._download_and_prepare(dl_manager, download_config)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config, folder = self.builder_config, self.builder_config.folder
        if folder is None and config.phantom is None and config.cohort is None:
            folder = Path(dl_manager.manual_dir)
        source = self._source(Path(dl_manager.download_dir), folder)
        self.info.metadata.update(source)
        return {
            split: self._generate_examples(split, labels)
            for split, labels in source["subjects"].items()
            if labels
        }

    def _generate_examples(self, split: str, labels: Sequence[str]) -> Any:
        """Examples by their number, so that they lie in the order of the labels, however they were made."""
        if self._on_beam:
            import apache_beam as beam

            return (
                f"Labels of {split}" >> beam.Create(list(enumerate(labels)))
                | f"Spread {split}" >> beam.Reshuffle()  # else one worker would make them all
                | f"Make {split}" >> beam.Map(_numbered_record, reader=self._reader())
            )
        return self._in_process(split, labels)

    def _in_process(self, split: str, labels: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        made = map(self._reader(), labels) if config.phantom is None else generate(config.phantom, labels)
        name = f"{config.folder.name if config.folder else config.name}, {split}"
        for number, subject in enumerate(track(made, name, len(labels))):
            yield number, record_of(subject)

    def _reader(self) -> Callable[[str], Subject]:
        """A function from label to subject that can be sent to another process."""
        if self.builder_config.phantom is not None:
            return partial(phantom.subject, self.builder_config.phantom)
        assert self._derivative is not None
        return partial(_read_labelled, dict(self._derivative.subjects), self._derivative.modalities)

    def _source_fingerprint(self) -> str:
        """The fingerprint of the source as it is now; nothing of a folder is checked beyond its names."""
        config, labels = self.builder_config, None
        if config.phantom is not None:
            return phantom_fingerprint(config.phantom)
        folder = config.folder
        if config.cohort is not None:
            folder = config.cohort.derivative_of(Path(self.data_dir_root) / "downloads")
            if not folder.is_dir():
                return self.fingerprint  # removed once it was prepared: it cannot have changed
            labels = [label for labels in self.info.metadata["subjects"].values() for label in labels]
        subjects, problems = bids.template_subjects(folder, labels, **config.reading)
        if problems:
            raise InputError(problems)
        return bids.fingerprint(subjects, tuple(subjects[0].images), folder)

    def _check_controls(self, source: Mapping[str, Any]) -> None:
        where = self.builder_config.folder or self.builder_config.name
        if problems := bids.control_problems(where, len(source["subjects"].get("train", []))):
            raise InputError(problems)

    def _source(
        self, download_dir: Path, folder: Path | None, require_controls: bool = False
    ) -> dict[str, Any]:
        """What the source is, for the metadata: cheap for a phantom; reads every file of a folder."""
        config, cohort = self.builder_config.phantom, self.builder_config.cohort
        if config is not None:
            table = phantom.lesion_table(config)
            return {
                "fingerprint": phantom_fingerprint(config),
                "modalities": list(config.modalities),
                "space": TEMPLATE_SPACE,
                "voxel_size": [float(config.voxel_size)] * 3,
                "subjects": phantom.cohort(config),
                "lesions": {row["subject"]: _stratum(row) for row in table},
            }
        if self._derivative is None:
            from rich.console import Console

            labels = None
            if cohort is not None:
                folder, labels = cohort.prepare(download_dir)
            assert folder is not None  # a folder's config has one, and manual_dir is one
            self._derivative = bids.read_derivative(
                folder,
                participant_labels=labels,
                require_controls=require_controls,
                **self.builder_config.reading,
            )
            for note in self._derivative.notes:
                Console(stderr=True).print(note, markup=False, soft_wrap=True, highlight=False)
        found = self._derivative
        subjects = {
            split: sorted(label for label, where in found.splits.items() if where == split)
            for split in bids.SPLITS
        }
        return {
            "fingerprint": found.fingerprint,
            "modalities": list(found.modalities),
            "space": found.space,
            "voxel_size": list(found.voxel_size),
            "subjects": subjects,
            "lesions": _read_lesions(found.folder / "lesions.tsv")
            | (cohort.strata(download_dir) if cohort is not None else {}),
            "reference": bids.reference_of(found.folder),
        }


def config_for(
    data: str | Path,
    modalities: Sequence[str] | None = None,
    *,
    space: str | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
) -> str | EpilepsyConfig:
    """The builder config of a name or a folder.

    Args:
        data: a config's name, or a folder.
        modalities, space, group_column, groups: how a folder is read, as in ``bids.template_subjects``.

    Raises:
        InputError: neither a config's name nor a folder; an option of a folder with a config's name.
    """
    named = [config.name for config in Builder.BUILDER_CONFIGS if config.name != "bids"]
    told: dict[str, Any] = {"space": space, "group_column": group_column, "groups": groups}
    given = {name: value for name, value in told.items() if value}
    if str(data) in named:
        if given:
            raise InputError(f"{', '.join(given)}: without effect on {data}; they are of a folder of scans.")
        return str(data)
    folder = Path(data)
    if not folder.is_dir():
        raise InputError(f"{data}: neither a folder nor one of the configs {', '.join(named)}.")
    key = f"{folder.resolve()}{modalities}" + (json.dumps(given, sort_keys=True) if given else "")
    return EpilepsyConfig(
        name=f"bids-{hashlib.sha256(key.encode()).hexdigest()[:8]}",
        description=f"The template-space BIDS derivative {folder.name}.",
        folder=folder,
        modalities=None if modalities is None else tuple(modalities),
        space=space,
        group_column=group_column,
        groups=dict(groups) if groups else None,
    )


def generate(config: phantom.PhantomConfig, labels: Sequence[str]) -> Iterator[Subject]:
    """Phantom subjects in the given order, made on all cores."""
    import joblib

    jobs = (joblib.delayed(phantom.subject)(config, label) for label in labels)
    yield from joblib.Parallel(n_jobs=-1, return_as="generator", pre_dispatch="2*n_jobs")(jobs)


def phantom_fingerprint(config: phantom.PhantomConfig) -> str:
    """A hash of the cohort's settings and of the code that makes its subjects."""
    return hashlib.sha256(f"{config!r}\n{_phantom_code()}".encode()).hexdigest()[:16]


@cache
def _phantom_code() -> str:
    return reached_code(("subject", "cohort", "lesion_table"), (phantom, lesions, tissue, volumes))


def record_of(subject: Subject) -> dict[str, Any]:
    """The TFDS example of a subject."""
    record = dataclasses.asdict(subject)
    for name in ("brain_mask", "lesion_mask"):
        record[name] = record[name].astype(np.uint8)
    return record


def subject_of(record: dict[str, Any]) -> Subject:
    """The subject of a TFDS example that went through ``tfds.as_numpy``."""
    return Subject(
        subject=record["subject"].decode(),
        group=record["group"].decode(),
        image=record["image"],
        brain_mask=record["brain_mask"].astype(bool),
        lesion_mask=record["lesion_mask"].astype(bool),
        affine=record["affine"],
        age=float(record["age"]),
        sex=record["sex"].decode(),
        site=record["site"].decode(),
    )


def _place_of(folder: Path) -> IO[bytes]:
    """Where a config is prepared, once no other process prepares it."""
    try:
        return hold(folder, wait=math.inf)
    except InputError as error:
        raise InputError(f"{error} Prepared data sets live there; say where else: data_dir.") from error


def _read_labelled(
    subjects: Mapping[str, bids.TemplateSubject], modalities: Sequence[str], label: str
) -> Subject:
    return bids.read_subject(subjects[label], modalities)


def _numbered_record(
    numbered: tuple[int, str], reader: Callable[[str], Subject]
) -> tuple[int, dict[str, Any]]:
    return numbered[0], record_of(reader(numbered[1]))


def _pipeline_options(options: Sequence[str]) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(f"Apache Beam cannot be imported ({error}): pip install 'epizoo[beam]'.") from error
    return PipelineOptions(list(options))


def _read_lesions(path: Path) -> dict[str, dict[str, str]]:
    """``lesions.tsv`` of a phantom or of implanted lesions, by subject; none from other columns."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        if not rows or not {"participant_id", "kind", "contrast"} <= set(rows[0]):
            return {}
        return {row["participant_id"].removeprefix("sub-"): _stratum(row) for row in rows}
    except (
        ValueError,
        TypeError,
        AttributeError,
        csv.Error,
    ) as error:  # binary, short rows, words for numbers
        raise InputError(f"{path}: cannot be read as a table of lesions ({error}).") from error


def _stratum(row: Mapping[str, Any]) -> dict[str, str]:
    return {"type": str(row["kind"]), "contrast": f"{float(row['contrast']):g}"}

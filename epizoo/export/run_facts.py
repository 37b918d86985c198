"""What an export needs to know of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epizoo.evaluation.figures import Metrics, Sensitivity
from epizoo.evaluation.statistics import Interval
from epizoo.run_folder import RunFolder
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import plain, read_json

if TYPE_CHECKING:
    from epizoo.detection import NormativeModel
    from epizoo.models.patch_model import PatchModel


@dataclass(frozen=True)
class RunFacts:
    """A finished run, read.

    Attributes:
        modalities, voxel_size (mm), normalisation: of its data.
        facts: for card and metadata: what it was made of and, as ``metrics``, what it found.
    """

    folder: RunFolder
    modalities: list[str]
    voxel_size: float
    normalisation: str
    facts: Mapping[str, Any]

    def model(self) -> PatchModel:
        """Its model.

        Raises:
            InputError: it has none (a baseline on intensities), or its file is damaged.
        """
        from epizoo import models

        if self.facts["model"] == "none":
            raise InputError(
                f"{self.folder.path}: a baseline on intensities has no encoder to export; "
                "export its pipeline (--what pipeline)."
            )
        return models.load_model(self.folder.model)

    def normative(self) -> NormativeModel:
        """Its detector, with the encoder whose codes it reads."""
        from epizoo.detection import NormativeModel

        model = None if self.facts["model"] == "none" else self.model()
        return NormativeModel.load(self.folder.detector, model)


@dataclass(frozen=True)
class ExportedFigures:
    """The figures of a run that travel with its exports.

    Attributes:
        patients, controls: how many were tested.
        threshold: calibrated on validation controls; None without them.
        voxel: ``auroc``, ``auprc`` and ``prevalence``, means over patients.
        sensitivity: at each rank; a hit is one voxel of overlap.
    """

    patients: int
    controls: int
    threshold: float | None
    voxel: Mapping[str, Interval]
    sensitivity: Mapping[int, Sensitivity]

    @classmethod
    def of(cls, metrics: Metrics) -> ExportedFigures:
        voxel = metrics.voxel
        return cls(
            metrics.patients,
            metrics.controls,
            metrics.threshold,
            {"auroc": voxel.auroc, "auprc": voxel.auprc, "prevalence": voxel.prevalence},
            metrics.lesion["overlap"].sensitivity,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: plain(value) for name, value in vars(self).items()}


def read_run(run_dir: str | Path, normalisation: str | None = None) -> RunFacts:
    """Read what a finished run says of itself.

    Raises:
        InputError: not a run, not finished, damaged; all problems at once.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.config.is_file():
        raise InputError(f"{folder.path}: not a run (no config.json).")
    problems: list[str] = []
    content: dict[str, Any] = {}
    for name, path, read in (
        ("config", folder.config, read_json),
        ("metadata", folder.metadata, read_json),
        ("metrics", folder.metrics, Metrics.read),
        ("manifest", folder.detector / "manifest.json", read_json),
    ):
        try:
            content[name] = read(path)
        except InputError as error:
            problems.append(_unfinished(folder, path) if not path.is_file() else str(error))
    if content.get("config", {}).get("model") != "none" and not folder.model.is_file():
        problems.append(_unfinished(folder, folder.model))
    if problems:
        raise InputError(problems)
    config, metadata, metrics, manifest = content.values()
    try:
        facts = {
            "name": folder.path.absolute().name,
            "data": Path(config["data"]).name,  # where a folder lies is nobody else's concern
            **{key: config[key] for key in ("model", "detector", "seed", "model_config")},
            **{key: config[key] for key in ("epochs", "steps_per_epoch", "batch_size")},
            **{key: metadata[key] for key in ("data_hash", "split_hash", "space", "versions")},
            "subjects": {split: len(subjects) for split, subjects in metadata["splits"].items()},
            "fitted_on": len(manifest["subjects"]),
            "metrics": ExportedFigures.of(metrics),
        }
        voxel_size = float(manifest["affine"][0][0])
        modalities = list(metadata["modalities"])
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{folder.path}: damaged, or made by another version ({error!r} is missing)."
        ) from error
    return RunFacts(
        folder, modalities, voxel_size, normalisation or normalisation_of(config["data"], modalities), facts
    )


def normalisation_of(data: str, modalities: list[str]) -> str:
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
    method = found.pop()
    return method if method in ("unit", "zscore") else "none"


def _unfinished(folder: RunFolder, path: Path) -> str:
    return (
        f"{folder.path}: not finished (no {path.relative_to(folder.path)}); "
        "'epizoo run' with the same arguments goes on where it was."
    )

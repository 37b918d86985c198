"""What an export tells of the run that it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epizoo.evaluation.figures import Metrics, Sensitivity
from epizoo.evaluation.statistics import Interval
from epizoo.finished_run import FinishedRun
from tfds_epilepsy.files import plain


def facts_of(run: FinishedRun) -> dict[str, Any]:
    """For card and metadata: what a finished run was made of and, as ``metrics``, what it found."""
    config = run.config.to_json()
    return {
        "name": run.name,
        "data": Path(run.config.data).name,  # where a folder lies is nobody else's concern
        **{key: config[key] for key in ("model", "detector", "seed", "model_config")},
        **{key: config[key] for key in ("epochs", "steps_per_epoch", "batch_size")},
        "origin": run.config.origin,
        "data_hash": run.metadata.data_hash,
        "split_hash": run.metadata.split_hash,
        "space": run.space,
        "versions": run.metadata.versions,
        "subjects": {split: len(subjects) for split, subjects in run.splits.items()},
        "fitted_on": len(run.fitted_on),
        "metrics": ExportedFigures.of(run.metrics),
    }


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

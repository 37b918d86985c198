"""A run of the supervised reference: it learns from annotated patients, and is marked so everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from epizoo.evaluation.supervised import (
    SupervisedReference,
    annotated_controls,
    annotated_phantoms,
    fit_supervised,
)
from epizoo.run import SUPERVISED, Run
from epizoo.run_config import RunConfig, data_name
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json

PATIENTS = 60  # annotated ones, of its own
TRAINING: dict[str, Any] = {"epochs": 20, "steps_per_epoch": 50, "batch_size": 16}


def supervised_config(data: str, *, patients: int = PATIENTS, seed: int = 0) -> RunConfig:
    """The settings of a run of the supervised reference.

    Args:
        data: as of every run.
        patients: annotated ones that it is trained on.
        seed: of weights and segments; the patients are the same for every seed.

    Raises:
        InputError: no patient.
    """
    if patients < 1:
        raise InputError(f"{patients} annotated patients: the supervised reference needs at least 1.")
    return RunConfig(
        data=data_name(data),
        model="two_pathways",
        detector=SUPERVISED,
        model_config={"patients": patients},
        seed=seed,
        fwhm=0.0,
        **TRAINING,
    )


class SupervisedRun(Run):
    """A run whose maps are those of the supervised reference: an upper bound, never a method of its own.

    Its annotated patients are in no split of the cohort. For a phantom they are of another cohort with the
    same settings; for a folder they are its training controls with implanted lesions. ``metadata.json`` says
    ``supervised`` and ``fitted_on``.

    Raises:
        InputError: as ``Run``; no annotated patient.
    """

    def train(self) -> None:
        """Nothing: the network is fitted as a whole."""

    def fit(self) -> SupervisedReference:
        """Train the network, or go on after the last whole epoch."""
        if (self.folder.detector / "manifest.json").is_file():
            return SupervisedReference.load(self.folder.detector)
        with self._step("fit"):
            n, console = self.config.model_config["patients"], self.console
            subjects = list(self._progress(self._annotated(n), n, "annotated patients"))
            reference = fit_supervised(
                subjects,
                epochs=self.config.epochs,
                steps_per_epoch=self.config.steps_per_epoch,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                folder=self.folder.path,
                console=console,
            )
            reference.save(self.folder.detector)
            (self.folder.path / "checkpoint.keras").unlink()
        return reference

    def _annotated(self, n: int) -> Any:
        config = self.builder.builder_config.phantom
        if config is not None:
            prepared = Path(self.builder.data_dir).parents[2]  # <prepared>/tfds_epilepsy/<config>/<version>
            return annotated_phantoms(config, n, data_dir=prepared)
        return annotated_controls(self.read("train"), self.builder.modalities, n)

    def _check_method(self) -> None:
        """Nothing: model and detector are one."""

    def _write_metadata(self) -> None:
        super()._write_metadata()
        n = self.config.model_config["patients"]
        phantom = self.builder.builder_config.phantom is not None
        source = "patients of another phantom cohort" if phantom else "lesions implanted in training controls"
        metadata = read_json(self.folder.metadata)
        write_json(
            self.folder.metadata, {**metadata, "supervised": True, "fitted_on": f"{n} annotated {source}"}
        )

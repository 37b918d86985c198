"""The normative method: an encoder of healthy tissue, and a detector on its codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from epizoo.method import Work
from epizoo.presets import Preset, advice
from epizoo.registry import MODELS
from epizoo.run_config import FINE_TUNED, NO_MODEL
from epizoo.run_folder import RunFolder
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json
from tfds_epilepsy.phantom import seed_of
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import tensorflow as tf

    from epizoo.detection import Detector, FittedDetector
    from epizoo.models.patch_model import PatchModel


class Normative:
    """Learns from training controls alone. Its parts are ``model``, ``detector`` and their options."""

    def check(self, run: Work) -> None:
        """Whether the detector takes its options and reads what the model gives, of enough controls."""
        if run.config.preset is not None:
            _check_preset(Preset.read(run.config.preset), run)
        detector = _detector(run)
        model = None if run.config.model == NO_MODEL else _new_model(run)
        detector.told(detector.codes(model, run.builder.modalities))
        controls = len(run.subjects("train"))
        if model is not None and controls < model.view.fewest_controls:
            raise InputError(
                f"{run.config.data}: {controls} training controls; {run.config.model!r} reads what differs "
                f"from them, and needs at least {model.view.fewest_controls}: add some, or choose another "
                "model."
            )

    def learnt_from(self, run: Work) -> dict[str, Any]:
        return {}

    def train(self, run: Work) -> PatchModel | None:
        """The encoder: a preset, adapted to the training controls, or trained on them.

        The figures of a training see validation controls too.
        """
        config, folder = run.config, run.folder
        if config.model == NO_MODEL:
            return None
        from epizoo import models
        from epizoo.models import callbacks, training
        from tfds_epilepsy.patches import patch_dataset

        if folder.model.is_file():
            return models.load_model(folder.model)
        if config.preset is not None and config.weights != FINE_TUNED:
            with run.step("adapt"):
                model = _adapted(run)
                callbacks.save(model, folder.model)
            return model
        with run.step("train"):
            model = _adapted(run)
            if config.weights == FINE_TUNED:
                training.fine_tune(model)
            controls = list(run.read("train"))
            controls = [model.view.seen(subject) for subject in controls]
            held_out = [model.view.seen(s) for s in run.read("validation") if s.group == "control"]

            def patches(subjects: list[Subject], seed: int, start_step: int = 0) -> tf.data.Dataset:
                return patch_dataset(
                    subjects,
                    model.patch_shape,
                    sampling=model.sampling,
                    batch_size=config.batch_size,
                    seed=seed,
                    start_step=start_step,
                )

            enough = len(held_out) >= (2 if model.sampling == "pair" else 1)
            callbacks.train(
                model,
                lambda step: patches(controls, config.seed, step),
                epochs=config.epochs,
                steps_per_epoch=config.steps_per_epoch,
                folder=folder.path,
                validation_data=patches(held_out, config.seed + 1) if enough else None,
                validation_steps=20 if enough else None,
                console=run.console,
            )
        return model

    def fit(self, run: Work) -> FittedDetector:
        """Fit the detector on the training controls' codes."""
        from epizoo.detection import fit_detector

        model = self.train(run)
        with run.step("fit"):
            return fit_detector(
                model,
                lambda: run.read("train"),
                run.folder.detector,
                detector=_detector(run),
                modalities=run.builder.modalities,
                fwhm=run.config.fwhm,
                seed=run.config.seed,
                console=run.console,
            )

    def load(self, folder: RunFolder) -> FittedDetector:
        from epizoo import models
        from epizoo.detection import FittedDetector

        model = models.load_model(folder.model) if folder.model.is_file() else None
        return FittedDetector.load(folder.detector, model)

    def saw(self, run: Work) -> list[str]:
        """The controls of the fit, and the subjects that a preset says it was trained on."""
        seen = list(read_json(run.folder.manifest)["subjects"])
        if run.config.preset is not None:
            preset = Preset.read(run.config.preset)
            beside = preset.folder / "detector.json"  # where earlier versions said it
            earlier = read_json(beside).get("trained_on", []) if beside.is_file() else []
            seen += [*preset.subjects, *earlier]
        return seen


def _adapted(run: Work) -> PatchModel:
    """The model, its view adapted to the training controls."""
    model = _new_model(run)
    if model.view.fewest_controls:
        controls = run.progress(run.read("train"), len(run.subjects("train")), "adapt to controls")
        model.view.adapt(controls)
    if run.config.preset is not None:
        adapted = f", its {model.view.name} adapted to {len(run.subjects('train'))} controls"
        run.console.print(
            f"preset {run.config.preset}{adapted if model.view.fewest_controls else ''}: "
            + ("trained further on them" if run.config.weights == FINE_TUNED else "nothing is trained"),
            markup=False,
        )
    return model


def _check_preset(preset: Preset, run: Work) -> None:
    """Whether a preset can be adapted to the data of a run.

    Raises:
        InputError: it is for other scans, or has seen subjects of theirs.
    """
    builder = run.builder
    data = builder.modalities, builder.voxel_size
    problems = preset.problems(*data, len(run.subjects("train")))
    if preset.problems(*data):
        problems[-1] += f": {advice(run.config.model, *data)}"
    source = builder.builder_config
    seed = source.phantom.seed if source.phantom else source.folder and seed_of(source.folder)
    if seed in preset.phantoms:
        problems.append(
            f"preset {preset.name} was trained on subjects of this very phantom (seed {seed}): test on "
            "another one"
        )
    if problems:
        raise InputError([f"{problem}." for problem in problems])


def _new_model(run: Work) -> PatchModel:
    """The preset's, or one that is not trained."""
    from epizoo import models

    config = run.config
    if config.preset is not None:
        return models.from_preset(config.preset)
    own = MODELS.get(config.model).config_for(run.builder.modalities, config.model_config.get("view"))
    return models.create(config.model, **{**own, "seed": config.seed, **config.model_config})


def _detector(run: Work) -> Detector:
    from epizoo.detection import create_detector

    return create_detector(run.config.detector, **run.config.detector_config)

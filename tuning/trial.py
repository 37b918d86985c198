"""One trial: train on controls, fit the detector, score validation subjects.

``python -m tuning.trial SPEC FOLDER`` does what ``SPEC`` says and leaves ``result.json`` in ``FOLDER``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import plain, read_json, replacing, write_json, write_text
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from .cases import Visible

# What a trial can be judged by: higher is better. The first two are voxel figures.
OBJECTIVES = ("detection_auc", "detection_auprc", "froc_auc", "sensitivity_5")
VALIDATION_STEPS = 10
SLICES = 2  # voxel figures are taken, and detectors fitted, in every second axial slice: half the time
SLAB_BYTES = 2**28  # of codes at a time, so that trials fit side by side


class SearchFailed(RuntimeError):
    """A search that ended because its trials fail; their reasons are in the message.

    Example:
        >>> str(SearchFailed("3 trials of 3 failed"))
        '3 trials of 3 failed'
    """


@dataclass(frozen=True)
class Spec:
    """What one trial does; stored as ``spec.json``, with which it can be repeated.

    Attributes:
        data, data_dir, fingerprint: the cohort, and what it must still be.
        reading: how a folder is read, as in ``tfds_epilepsy.load``.
        cases: folder of the validation subjects to score.
        model: its name; None if ``build`` makes it.
        build: file with a build function and the classes that the user registered (``builds.pack``).
        values: of the search space.
        objective: one of ``OBJECTIVES``.
        epochs, steps_per_epoch, batch_size, seed: of the training.
        limits: by epoch, the share of its first label-free figure above which a trial is given up.
        begun: folder of the trial whose training this one goes on with, or None.
    """

    data: str
    data_dir: str | None
    fingerprint: str
    cases: str
    model: str | None = None
    build: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    objective: str = "detection_auc"
    epochs: int = 4
    steps_per_epoch: int = 250
    batch_size: int = 256
    seed: int = 0
    limits: dict[str, float] = field(default_factory=dict)
    begun: str | None = None
    reading: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Spec:
        """Of a ``spec.json``; what earlier versions wrote beside these fields is left out.

        Raises:
            InputError: no such file, or no spec.
        """
        content = read_json(path)
        try:
            return cls(**{one.name: content[one.name] for one in fields(cls) if one.name in content})
        except TypeError as error:
            raise InputError(f"{path}: not the spec of a trial ({error}).") from error

    def same_as(self, other: Spec) -> bool:
        """Whether two trials do the same, wherever their files are and whatever other trials have shown."""
        elsewhere = replace(
            self, data=other.data, data_dir=other.data_dir, cases=other.cases, build=other.build
        )
        elsewhere = replace(elsewhere, begun=other.begun, limits=other.limits)
        return bool(plain(asdict(elsewhere)) == plain(asdict(other)))


Result = dict[str, Any]


def run(spec: Spec, folder: Path) -> Result:
    """Do a trial in this process; its training goes on where it was killed."""
    import keras

    from epizoo.models.patch_model import PatchModel

    from .cases import Visible, read_cases

    keras.config.disable_interactive_logging()
    steps = _Steps(folder)
    cohort = Visible(spec.data, spec.data_dir, **spec.reading)
    if cohort.fingerprint != spec.fingerprint:
        raise InputError(f"{spec.data} has changed since the search began: {cohort.fingerprint} now.")
    model = build_model(spec, cohort.modalities)
    with steps("train"):
        train = _train if isinstance(model, PatchModel) else _train_plain
        history, first = train(model, spec, folder, cohort, steps)
    result = {"history": history, "first": first, "parameters": model.count_params()}
    if history and _learns_too_little(spec, history, first):
        return {"status": "pruned", "reason": f"given up after epoch {len(history)}", **result}
    figures = _detect(model, spec, folder, cohort, read_cases(Path(spec.cases)), steps)
    return {"status": "completed", "reason": "", **figures, **result, "steps": steps.seconds}


def build_model(spec: Spec, modalities: Sequence[str]) -> Any:
    """The compiled model of a trial.

    Raises:
        InputError: a user's model that no trial can use.
    """
    import keras

    from . import spaces

    hypermodel = None
    if spec.build is not None:
        from . import builds

        hypermodel = builds.load(Path(spec.build))
    if hypermodel is None:
        assert spec.model is not None  # a spec has one of the two
        return spaces.create(spec.model, spec.values, modalities=modalities, seed=spec.seed)
    keras.utils.set_random_seed(spec.seed)
    model, _ = builds.make(hypermodel, spec.values)
    builds.check(model, len(modalities))
    return model


def score(values: Sequence[Mapping[str, Any]], objective: str) -> float:
    """The mean of an objective over the cases that have it."""
    known = [row[objective] for row in values if row[objective] is not None and np.isfinite(row[objective])]
    return float(np.mean(known)) if known else float("nan")


# === Training ===


class _Steps:
    """Measures the wall time of each step; a file in the trial's folder names the step at work."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.now(name)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)

    def now(self, name: str) -> None:
        write_text(self.folder / "stage", name)


def _train(
    model: Any, spec: Spec, folder: Path, cohort: Visible, steps: _Steps
) -> tuple[list[dict[str, float]], float | None]:
    """Train a model of the zoo, or one with its interface, resumably."""
    from rich.console import Console

    from epizoo.models import callbacks

    model.view.adapt(cohort.controls("train"))
    train, validation = _patches(spec, cohort, model.patch_shape, model.sampling, model.view.seen)
    first = None
    if validation is not None:
        figures = model.evaluate(validation, verbose=0, return_dict=True)
        first = float(figures[model.monitor.removeprefix("val_")])
    if spec.begun is not None and not (folder / "checkpoint.keras").is_file():
        for name in ("model.keras", "history.csv"):
            if not (folder / name).is_file():
                with replacing(folder / name) as partial:
                    shutil.copyfile(Path(spec.begun) / name, partial)
    try:
        history = callbacks.train(
            model,
            train,
            epochs=spec.epochs,
            steps_per_epoch=spec.steps_per_epoch,
            folder=folder,
            validation_data=validation,
            callbacks=[_watcher(spec, steps, model.monitor, first)],
            console=Console(file=sys.stdout),
        )
    except _GivenUp as end:
        history = callbacks.History(folder / "history.csv", end.epoch).rows
    monitored = model.monitor if first is not None else None
    return [_row(row, monitored) for row in history], first


def _train_plain(
    model: keras.Model, spec: Spec, folder: Path, cohort: Visible, steps: _Steps
) -> tuple[list[dict[str, float]], float | None]:
    """Train any compiled Keras model to give back its patches."""
    shape = tuple(model.encoder.input_shape[1:-1])
    train, validation = _patches(spec, cohort, shape, "patch")

    def pairs(batches: tf.data.Dataset) -> tf.data.Dataset:
        return batches.map(lambda batch: (batch["patch"], batch["patch"]))

    held_out = None if validation is None else pairs(validation)
    first = None
    if held_out is not None:
        first = float(model.evaluate(held_out, verbose=0, return_dict=True)["loss"])
    watcher = _watcher(spec, steps, "val_loss", first)
    with contextlib.suppress(_GivenUp):
        model.fit(
            pairs(train(0)),
            epochs=spec.epochs,
            steps_per_epoch=spec.steps_per_epoch,
            validation_data=held_out,
            callbacks=[watcher],
            shuffle=False,
            verbose=0,
        )
    model.encoder.save(folder / "encoder.keras")
    return watcher.rows, first


def _patches(
    spec: Spec,
    cohort: Visible,
    shape: Sequence[int],
    sampling: str,
    view: Callable[[Subject], Subject] = lambda subject: subject,
) -> tuple[Callable[[int], tf.data.Dataset], tf.data.Dataset | None]:
    from tfds_epilepsy.patches import patch_dataset

    def patches(subjects: list[Subject], seed: int, step: int = 0) -> tf.data.Dataset:
        return patch_dataset(
            subjects, shape, sampling=sampling, batch_size=spec.batch_size, seed=seed, start_step=step
        )

    controls, held_out = ([view(s) for s in cohort.controls(split)] for split in ("train", "validation"))
    enough = len(held_out) >= (2 if sampling == "pair" else 1)
    validation = patches(held_out, spec.seed + 1).take(VALIDATION_STEPS) if enough else None
    return lambda step: patches(controls, spec.seed, step), validation


class _GivenUp(Exception):
    """A trial that is given up after ``epoch`` epochs."""

    def __init__(self, epoch: int):
        super().__init__(epoch)
        self.epoch = epoch


def _watcher(spec: Spec, steps: _Steps, monitor: str, first: float | None) -> Any:
    """A callback that says how far training is, and ends one that diverges or learns too little."""
    import keras

    class Watcher(keras.callbacks.Callback):
        rows: list[dict[str, float]]

        def on_train_begin(self, logs: Any = None) -> None:
            self.rows = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            steps.now(f"train {epoch + 1}/{spec.epochs}")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs = {name: float(value) for name, value in (logs or {}).items()}
            bad = [f"{name} {value}" for name, value in logs.items() if not np.isfinite(value)]
            if bad:
                raise FloatingPointError(f"training diverged in epoch {epoch + 1}: {', '.join(bad)}.")
            self.rows.append(_row({"epoch": epoch + 1.0, **logs}, monitor if first is not None else None))
            if _learns_too_little(spec, self.rows, first):
                raise _GivenUp(epoch + 1)

    return Watcher()


def _row(row: Mapping[str, float], monitor: str | None) -> dict[str, float]:
    """The epoch and its label-free figure."""
    return {"epoch": row["epoch"], **({} if monitor is None else {"figure": row[monitor]})}


def _learns_too_little(spec: Spec, rows: Sequence[Mapping[str, float]], first: float | None) -> bool:
    """Whether more is left of the first figure than the limit for the last epoch allows."""
    if first is None or first <= 0:
        return False
    last = rows[-1]
    return last["figure"] / first > spec.limits.get(f"{last['epoch']:g}", float("inf"))


# === Detection ===


def _detect(
    model: Any, spec: Spec, folder: Path, cohort: Visible, cases: Iterable[Subject], steps: _Steps
) -> Result:
    """Fit the detector on training controls, score the cases: the figures of each, and their means."""
    from rich.console import Console

    from epizoo.detection import create_detector, fit_detector

    from .spaces import detector_config

    name, options, fwhm = detector_config(spec.values)
    detector = create_detector(name, **options)
    whole = detector.codes(model, cohort.modalities).whole_brain
    thin = 1 if whole or spec.objective not in OBJECTIVES[:2] else SLICES
    with steps("fit"):
        normative = fit_detector(
            model,
            lambda: (_thinned(control, thin) for control in cohort.controls("train")),
            folder / "detector",
            detector,
            modalities=cohort.modalities,
            fwhm=fwhm,
            seed=spec.seed,
            slab_bytes=SLAB_BYTES,
            overwrite=True,
            console=Console(file=sys.stdout),
        )
    with steps("score"):
        rows: list[dict[str, Any]] = []
        for case in cases:
            scored = _thinned(case, thin)
            rows.append({"case": case.subject, **_figures(scored, normative.score(scored), thin == 1)})
    names = OBJECTIVES[: 2 if thin > 1 else None]
    figures = {name: score(rows, name) for name in names}
    if not np.isfinite(figures[spec.objective]):
        raise InputError(f"{spec.objective} cannot be computed: no case has a lesion inside its brain mask.")
    return {"figures": figures, "cases": rows}


def _figures(case: Subject, score_map: np.ndarray, whole: bool) -> dict[str, float]:
    """The figures of one case; those of clusters need the whole volume."""
    from epizoo import evaluation
    from epizoo.detection import find_clusters

    voxels = evaluation.voxel_metrics(score_map, case.lesion_mask & case.brain_mask, case.brain_mask)
    figures = {"detection_auc": voxels.auroc, "detection_auprc": voxels.auprc}
    if whole:
        _, labels = find_clusters(score_map, case.affine, case.brain_mask)
        hits = evaluation.match_clusters(labels, case.lesion_mask & case.brain_mask)["overlap"]
        figures["froc_auc"] = evaluation.froc([hits]).area
        figures["sensitivity_5"] = float(evaluation.first_hit(hits) <= 5)
    return figures


def _thinned(subject: Subject, every: int) -> Subject:
    """A subject whose brain is looked at in every so many axial slices."""
    if every == 1:
        return subject
    mask = np.zeros_like(subject.brain_mask)
    mask[:, :, ::every] = subject.brain_mask[:, :, ::every]
    return replace(subject, brain_mask=mask)


# === The process ===


def main(spec: str, folder: str, parent: str | None = None) -> None:
    """The process of a trial: what goes wrong in it is its result.

    Args:
        spec: file of what to do.
        folder: of the trial.
        parent: number of the process that waits for this one, and with which it ends.
    """
    from epizoo.run import peak_gib
    from epizoo.screen import silence_tensorflow

    silence_tensorflow()
    if parent is not None:
        _end_with(int(parent))
    try:
        result = run(Spec.read(Path(spec)), Path(folder))
    except MemoryError as error:
        result = {"status": "failed", "reason": f"out of memory ({error})"}
    except Exception as error:  # a trial fails, a search goes on
        import traceback

        traceback.print_exc()
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    seconds = time.time() - psutil.Process().create_time()
    write_json(Path(folder) / "result.json", {**result, **cost(seconds, peak_gib())})


def cost(seconds: float, gib: float) -> Result:
    """What a trial took, as its result tells it."""
    return {"seconds": round(seconds, 1), "peak_gib": round(gib, 2)}


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])

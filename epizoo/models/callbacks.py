"""Training that can be killed: history, checkpoints, pictures and progress in a folder; one call for all."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from epizoo.models.generator_quality import PATCHES, GeneratorQuality
from epizoo.models.patch_model import PatchModel
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing

Row = dict[str, float]

SHOWN = 12  # patches in a picture
FEWEST = 16  # held-out patches that a generator is judged by


def train(
    model: PatchModel,
    train_data: tf.data.Dataset | Callable[[int], tf.data.Dataset],
    *,
    epochs: int,
    steps_per_epoch: int,
    folder: str | Path,
    validation_data: tf.data.Dataset | None = None,
    validation_steps: int | None = None,
    patience: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    console: Console | None = None,
) -> list[Row]:
    """Train a model in a folder; called again after a kill it goes on after the last whole epoch.

    A run that was killed and resumed equals an uninterrupted one bit by bit: weights, optimisers' states
    and the number of batches seen are saved together after each epoch (``checkpoint.keras``), batch k is a
    function of k, and noise is one of the step. At the end the checkpoint becomes ``model.keras``. The
    folder also gets ``history.csv`` and ``pictures/``. Models that generate are judged on held-out patches
    (:class:`GeneratorQuality`).

    >>> train(model, patch_dataset(controls), epochs=10, steps_per_epoch=500, folder="run")  # doctest: +SKIP

    Args:
        model: compiled here, with its paper's optimisers, where it is not yet.
        train_data: endless data set whose batch k is always the same, or a function that makes it from batch
            k on: ``lambda k: patch_dataset(..., start_step=k)`` resumes without drawing the first k again.
        epochs: in total, those of earlier calls included.
        steps_per_epoch: batches per epoch.
        folder: made if missing.
        validation_data: held-out controls; every epoch sees its first ``validation_steps`` batches.
        validation_steps: all of a finite data set if None.
        patience: stop when ``model.monitor``, which needs no labels, has had no new minimum for so many
            epochs, and keep the model of the epoch with the minimum. Without it, the last epoch's is kept.
        callbacks: further Keras callbacks, such as ``keras.callbacks.TensorBoard``.
        console: where progress is shown; stderr if None.

    Returns:
        The rows of ``history.csv``.

    Raises:
        InputError: data that the model cannot train on; a folder that holds the training of another model;
            ``patience`` without validation data.
        FloatingPointError: a figure became NaN or infinite; the checkpoint of the epoch before remains.
    """
    folder = Path(folder)
    first = train_data if isinstance(train_data, tf.data.Dataset) else train_data(0)
    model.check_batch(first.element_spec)
    if patience is not None and validation_data is None:
        raise InputError("patience needs validation_data: early stopping watches held-out controls.")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, best, final = (folder / f"{name}.keras" for name in ("checkpoint", "best", "model"))
    if not model.compiled:
        model.compile()
    for saved in (checkpoint, final):
        if saved.is_file():
            restore(model, saved)
            break
    # The history of a finished training goes on past the epoch that it kept.
    finished = final.is_file() and not checkpoint.is_file()
    history = History(folder / "history.csv", math.inf if finished else model.epochs)
    if validation_data is not None and validation_steps is not None:
        validation_data = validation_data.take(validation_steps)

    done = max(model.epochs, len(history.rows))
    if done < epochs and not history.stalled(model.monitor, patience):
        history.forget_after(model.epochs)
        if patience is not None and history.since_best(model.monitor) == 0:
            save(model, best)
        start = first if model.steps == 0 else _from_step(train_data, model.steps)
        held_out = None if validation_data is None else _first(validation_data, PATCHES)
        shown = _first(first, SHOWN) if held_out is None else held_out[:SHOWN]
        judges = []
        if model.generates and held_out is not None and len(held_out) >= FEWEST:
            judges.append(GeneratorQuality(held_out))
        progress = ProgressBar(console or Console(stderr=True))
        try:
            model.fit(
                start,
                epochs=epochs,
                initial_epoch=model.epochs,
                steps_per_epoch=steps_per_epoch,
                validation_data=validation_data,
                verbose=0,
                callbacks=[
                    *judges,
                    history,
                    EarlyStopping(history, patience),
                    Pictures(folder / "pictures", shown),
                    *callbacks,
                    Checkpoint(checkpoint) if patience is None else Checkpoint(checkpoint, best, history),
                    progress,
                ],
            )
        finally:
            progress.bar.stop()  # Keras tells callbacks of a normal end only
    if checkpoint.is_file():
        if patience is not None and best.is_file():
            # A copy: killed here, the training goes on from the best epoch, to the same end.
            with replacing(checkpoint) as partial:
                shutil.copyfile(best, partial)
            restore(model, checkpoint)
        os.replace(checkpoint, final)
    elif not final.is_file():
        save(model, final)
    best.unlink(missing_ok=True)
    return history.rows


def save(model: PatchModel, path: Path) -> None:
    """``model.save``, atomically: the name appears once the file is whole."""
    with replacing(path) as partial:
        model.save(partial)


def restore(model: PatchModel, path: Path) -> None:
    """Load weights, optimisers' states and counters into a compiled model.

    Raises:
        InputError: the file is damaged or holds a model of another class or configuration.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a saved model ({error}).") from error
    mine = {"model": type(model).__name__, **model.get_config()}
    other = {"model": stored["class_name"], **stored["config"]}
    changed = [f"{k} {other.get(k)!r}, not {v!r}" for k, v in mine.items() if other.get(k) != v]
    if changed:
        raise InputError(
            f"{path} is the training of another model ({'; '.join(changed)}): choose another folder."
        )
    model.load_weights(path)


class History(keras.callbacks.Callback):
    """``history.csv``: one row per epoch, rewritten whole, never two of one epoch.

    Args:
        path: of the file. Rows past ``epochs`` are dropped: the process ended before their checkpoint was
            written.
        epochs: trained so far.
    """

    def __init__(self, path: Path, epochs: float = 0):
        super().__init__()
        self.path = path
        self.rows: list[Row] = []
        if path.is_file():
            with path.open(newline="") as file:
                self.rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
            self.forget_after(epochs)

    def forget_after(self, epochs: float) -> None:
        """Drop the rows of later epochs."""
        self.rows = [row for row in self.rows if row["epoch"] <= epochs]

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        row = {"epoch": float(epoch + 1), **{k: float(v) for k, v in (logs or {}).items()}}
        bad = [f"{k} {v}" for k, v in row.items() if not math.isfinite(v)]
        if bad:
            raise FloatingPointError(
                f"training diverged in epoch {epoch + 1}: {', '.join(bad)}. Lower the learning rate, or look "
                "for values outside [0, 1] in the images."
            )
        self.rows.append(row)
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            # An earlier version's rows may lack a figure.
            writer = csv.DictWriter(file, list(row), restval=math.nan)
            writer.writeheader()
            writer.writerows({**row, "epoch": int(row["epoch"])} for row in self.rows)

    def stalled(self, monitor: str, patience: int | None) -> bool:
        """Whether a figure has had no new minimum in the last ``patience`` epochs."""
        if patience is None:
            return False
        since = self.since_best(monitor)
        return since is not None and since >= patience

    def since_best(self, monitor: str) -> int | None:
        """Epochs since the first minimum of a figure; None before the first epoch."""
        if not self.rows:
            return None
        return len(self.rows) - 1 - int(np.argmin([row[monitor] for row in self.rows]))


class EarlyStopping(keras.callbacks.Callback):
    """Stop when ``model.monitor`` stalls. All it knows is in the history, so that it resumes with it."""

    def __init__(self, history: History, patience: int | None):
        super().__init__()
        self.history = history
        self.patience = patience

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.history.stalled(self.model.monitor, self.patience):
            self.model.stop_training = True


class Checkpoint(keras.callbacks.Callback):
    """Save the model after each epoch: weights, optimisers' states, epochs and steps trained, in one file.

    Args:
        path: of the file.
        best: another one, of the epoch in which ``model.monitor`` was least.
        history: where that is seen.
    """

    def __init__(self, path: Path, best: Path | None = None, history: History | None = None):
        super().__init__()
        self.path = path
        self.best = best
        self.history = history

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.model.epochs = epoch + 1
        self.model.steps += self.params["steps"]
        if self.best and self.history and self.history.since_best(self.model.monitor) == 0:
            # The first to be written: killed after it, the epoch is trained again and writes the same.
            save(self.model, self.best)
        save(self.model, self.path)


class Pictures(keras.callbacks.Callback):
    """Patches, their reconstructions and generated patches as a PNG after each epoch.

    Of a model that completes patches, the surround of what is made is the patch's own.

    ``latest.png`` is overwritten; ``epoch-0001.png`` and so on are kept after epochs 1, 2, 4, 8, ...

    Args:
        folder: made if missing.
        patches: ``(n, *patch_shape, m)`` held-out patches; of 3-D ones the central axial slice is shown.
    """

    def __init__(self, folder: Path, patches: Any):
        super().__init__()
        self.folder = folder
        self.patches = np.asarray(patches)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        rows: dict[str, NDArray[np.float32]] = {}
        if self.model.reconstructs:
            rows["reconstructed"] = self.model.reconstruct(self.patches)
        if self.model.generates:
            rows["generated"] = self.model.imagine(self.patches)
        if not rows:
            return
        names = [f"epoch-{epoch + 1:04}.png"] if (epoch + 1) & epoch == 0 else []
        draw_patches({"patch": self.patches, **rows}, [self.folder / name for name in (*names, "latest.png")])


class ProgressBar(keras.callbacks.Callback):
    """A rich progress bar over the whole training; one line per epoch."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        steps, epochs = self.params["steps"], self.params["epochs"]
        self.task = self.bar.add_task(
            self.model.name, total=epochs * steps, completed=self.model.epochs * steps
        )
        self.bar.start()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.bar.advance(self.task)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        figures = "  ".join(f"{k} {float(v):.4g}" for k, v in (logs or {}).items())
        self.console.print(
            f"epoch {epoch + 1}/{self.params['epochs']}  {figures}", highlight=False, soft_wrap=True
        )

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.bar.stop()


def draw_patches(rows: Mapping[str, NDArray[np.float32]], paths: Sequence[Path]) -> None:
    """Draw named rows of patches ``(n, *patch_shape, m)``, one strip a modality, as PNG files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    channels = next(iter(rows.values())).shape[-1]
    strips = [(name, c, patches) for c in range(channels) for name, patches in rows.items()]
    n = max(len(patches) for patches in rows.values())
    figure = Figure(figsize=(1.2 + 0.6 * n, 0.66 * len(strips)), layout="constrained")
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for axis, (name, channel, patches) in zip(axes, strips, strict=True):
        axis.imshow(_strip(patches[..., channel]), cmap="gray", vmin=0, vmax=1)
        axis.set_ylabel(f"{name}\nmodality {channel + 1}", rotation=0, ha="right", va="center", fontsize=7)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for path in paths:
        with replacing(path) as partial:
            FigureCanvasAgg(figure).print_png(partial)


def _strip(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(n, x, y[, z])`` patches side by side, anterior up."""
    if patches.ndim == 4:
        patches = patches[..., patches.shape[-1] // 2]
    turned = np.pad(patches.transpose(0, 2, 1)[:, ::-1], ((0, 0), (1, 1), (1, 1)), constant_values=1)
    return np.concatenate(list(turned), axis=1)


def _first(data: tf.data.Dataset, n: int) -> NDArray[np.float32]:
    """The first n patches of a data set, or all of a shorter one."""
    taken: list[NDArray[np.float32]] = []
    for batch in data:
        taken.append(batch["patch"].numpy())
        if sum(map(len, taken)) >= n:
            break
    return np.concatenate(taken)[:n]


def _from_step(data: tf.data.Dataset | Callable[[int], tf.data.Dataset], step: int) -> tf.data.Dataset:
    return data.skip(step) if isinstance(data, tf.data.Dataset) else data(step)

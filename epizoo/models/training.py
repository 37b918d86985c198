"""Train a model of the zoo: history, checkpoints, and a resume that equals an uninterrupted training."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from epizoo.models.patch_model import PatchModel


def train(
    model: PatchModel,
    data: Callable[[int], tf.data.Dataset],
    folder: str | Path,
    *,
    epochs: int,
    steps_per_epoch: int,
    validation: tf.data.Dataset | None = None,
    patience: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    console: Console | None = None,
) -> PatchModel:
    """Fit a compiled model, or go on where a killed training stopped.

    In ``folder``: ``history.csv`` (a row an epoch), ``checkpoint.keras`` (weights, optimisers and step count
    after the last whole epoch) and, at the end, ``model.keras``. A resumed training gives the bits of an
    uninterrupted one, given that batch k of the data is a function of k alone.

    Args:
        model: compiled; a checkpoint in the folder takes its place.
        data: from the number of the first step to endless batches (``patch_dataset(..., start_step=step)``).
        folder: where it is kept.
        epochs: rows of the history.
        steps_per_epoch: batches an epoch.
        validation: a finite data set, the same in every epoch.
        patience: stop after so many epochs without a better ``val_loss``, and keep the best epoch's model. By
            default every epoch is trained and the last is kept.
        callbacks: more Keras callbacks.

    Returns:
        The trained model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, best = folder / "checkpoint.keras", folder / "best.keras"
    if checkpoint.is_file():
        model = keras.saving.load_model(checkpoint)
    done = model.steps // steps_per_epoch
    history = History(folder / "history.csv", done)
    stopper = Stop(history, patience, best)
    if done < epochs and not stopper.reached:
        model.fit(
            data(done * steps_per_epoch),
            epochs=epochs,
            initial_epoch=done,
            steps_per_epoch=steps_per_epoch,
            validation_data=validation,
            shuffle=False,
            verbose=0,
            callbacks=[history, *callbacks, stopper, Checkpoint(checkpoint), Bar(epochs, done, console)],
        )
    if best.is_file():
        model = keras.saving.load_model(best)
    save(model, folder / "model.keras")
    for path in (checkpoint, best):
        path.unlink(missing_ok=True)
    return model


def save(model: keras.Model, path: Path) -> None:
    """Save a model atomically."""
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        model.save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class History(keras.callbacks.Callback):
    """``history.csv``: one row an epoch, ``epoch`` first; rows after the checkpoint are dropped on resume."""

    def __init__(self, path: Path, done: int):
        super().__init__()
        self.path = path
        self.rows = read_history(path)[:done]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.rows.append({"epoch": epoch + 1, **{name: float(value) for name, value in (logs or {}).items()}})
        partial = self.path.with_name(f".partial-{os.getpid()}-{self.path.name}")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)


class Stop(keras.callbacks.Callback):
    """Early stopping on ``val_loss``; what it knows is the history, so a resume knows it too."""

    def __init__(self, history: History, patience: int | None, best: Path):
        super().__init__()
        self.history, self.patience, self.best = history, patience, best

    @property
    def reached(self) -> bool:
        losses = self._losses()
        return (
            bool(losses) and self.patience is not None and len(losses) - 1 - _argmin(losses) >= self.patience
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        losses = self._losses()
        if self.patience is None or not losses:
            return
        if _argmin(losses) == len(losses) - 1:
            save(self.model, self.best)
        self.model.stop_training = self.reached

    def _losses(self) -> list[float]:
        return [row["val_loss"] for row in self.history.rows if "val_loss" in row]


class Checkpoint(keras.callbacks.Callback):
    """The model with its optimisers after every epoch."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        save(self.model, self.path)


class Bar(keras.callbacks.Callback):
    """A progress bar over epochs and steps, with the figures of the last epoch."""

    def __init__(self, epochs: int, done: int, console: Console | None):
        super().__init__()
        self.epochs, self.done = epochs, done
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console or Console(stderr=True))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        steps = self.params["steps"]
        self.task = self.progress.add_task("train", total=self.epochs * steps, completed=self.done * steps)
        self.progress.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.progress.advance(self.task)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        figures = "  ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
        self.progress.console.print(f"epoch {epoch + 1}/{self.epochs}  {figures}", highlight=False)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.progress.stop()


def read_history(path: Path) -> list[dict[str, float]]:
    """Rows of a ``history.csv``; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _argmin(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)

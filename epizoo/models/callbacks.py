"""Training that can be killed: history, checkpoints, pictures and progress in a folder; one call for all."""

from __future__ import annotations

import csv
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from epizoo.models.generator_quality import PATCHES, GeneratorQuality
from epizoo.models.patch_model import PatchModel
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_keras_config, replacing
from tfds_epilepsy.progress import stderr

Row = dict[str, float]
Data: TypeAlias = tf.data.Dataset | Mapping[str, ArrayLike]
FromStep: TypeAlias = Callable[[int], tf.data.Dataset]  # batches from a number on

SHOWN = 12  # patches in a picture
FEWEST_TO_JUDGE_BY = 16  # held-out patches; with fewer a generator is not judged
BATCH = 32  # of arrays: Keras' own default


def train(
    model: PatchModel,
    train_data: Data | FromStep,
    *,
    epochs: int,
    steps_per_epoch: int,
    folder: str | Path,
    validation_data: Data | None = None,
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

    Example:
        >>> from epizoo.models import create
        >>> from tfds_epilepsy.patches import patch_dataset
        >>> patches = patch_dataset(controls, batch_size=8)
        >>> model = create("autoencoder")
        >>> rows = train(model, patches, epochs=1, steps_per_epoch=2, folder=folder / "training")
        >>> (folder / "training" / "model.keras").is_file()
        True

    Args:
        model: compiled here, with its paper's optimisers, where it is not yet.
        train_data: data set whose batch k is always the same, or a function that makes it from batch k on:
            ``lambda k: patch_dataset(..., start_step=k)`` resumes without drawing the first k again. One that
            ends is begun again. Or a dict of arrays, of which batches of 32 are drawn, shuffled.
        epochs: in total, those of earlier calls included.
        steps_per_epoch: batches per epoch.
        folder: made if missing.
        validation_data: held-out controls, as a data set or a dict of arrays; every epoch sees its first
            ``validation_steps`` batches.
        validation_steps: all of a data set that ends if None.
        patience: stop when ``model.monitor``, which needs no labels, has had no new minimum for so many
            epochs, and keep the model of the epoch with the minimum. Without it, the last epoch's is kept.
        callbacks: further Keras callbacks, such as ``keras.callbacks.TensorBoard``.
        console: where progress is shown; stderr if None.

    Returns:
        The rows of ``history.csv``.

    Raises:
        InputError: data that the model cannot train on; a folder that holds the training of another model;
            ``patience`` without validation data; an endless one without ``validation_steps``.
        FloatingPointError: a figure became NaN or infinite; the checkpoint of the epoch before remains.
    """
    folder = Path(folder)
    batches_from = _endless(train_data, model.seed)
    first = batches_from(0)
    held_out_batches = None if validation_data is None else _held_out(validation_data, validation_steps)
    for batches in (first, held_out_batches):
        if batches is not None:
            model.check_batch(batches.element_spec)
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

    done = max(model.epochs, len(history.rows))
    if done < epochs and not history.stalled(model.monitor, patience):
        history.forget_after(model.epochs)
        if patience is not None and history.since_best(model.monitor) == 0:
            save(model, best)
        start = first if model.steps == 0 else batches_from(model.steps)
        held_out = None if held_out_batches is None else _first(held_out_batches, PATCHES)
        shown = _first(first, SHOWN) if held_out is None else held_out[:SHOWN]
        judges: list[keras.callbacks.Callback] = []
        if model.generates and held_out is not None and len(held_out) >= FEWEST_TO_JUDGE_BY:
            judges.append(GeneratorQuality(held_out))
        progress = ProgressBar(console or stderr)
        try:
            model.fit(
                start,
                epochs=epochs,
                initial_epoch=model.epochs,
                steps_per_epoch=steps_per_epoch,
                validation_data=held_out_batches,
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
            progress.close()  # Keras tells callbacks of a normal end only
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
    stored = read_keras_config(path)
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
            raise FloatingPointError(diverged(epoch, ", ".join(bad)))
        self.rows.append(row)
        with replacing(self.path) as partial, partial.open("w", newline="") as file:
            # Rows of an earlier version, or of other callbacks, may have other figures.
            names = dict.fromkeys(name for row in self.rows for name in row)
            writer = csv.DictWriter(file, list(names), restval=math.nan)
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


def diverged(epoch: int, what: str) -> str:
    """Why training ends."""
    return (
        f"training diverged in epoch {epoch + 1}: {what}. Lower the learning rate, or look for NaN and for "
        "values outside [0, 1] in the images."
    )


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
        if not all(np.isfinite(weight).all() for weight in self.model.get_weights()):
            raise FloatingPointError(diverged(epoch, "weights are NaN or infinite"))
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
        if self.console.is_terminal:
            self.bar.start()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.before = epoch * self.params["steps"]

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.bar.update(self.task, completed=self.before + batch + 1)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        figures = "  ".join(f"{k} {float(v):.4g}" for k, v in (logs or {}).items())
        self.console.print(
            f"epoch {epoch + 1}/{self.params['epochs']}  {figures}", highlight=False, soft_wrap=True
        )

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, however the training ended."""
        if self.console.is_terminal:  # rich before 15 leaves an empty line in a log file
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
    if not taken:
        raise InputError("the data set holds no batch.")
    return np.concatenate(taken)[:n]


def _endless(data: Data | FromStep, seed: int) -> FromStep:
    """A function that makes the data set from batch k on, without an end."""
    if isinstance(data, Mapping):
        return _shuffled(data, seed)
    made = data(0) if callable(data) else data
    if not isinstance(made, tf.data.Dataset):
        received = type(data).__name__ if made is data else f"function that makes a {type(made).__name__}"
        raise InputError(
            f"train_data is a {received}: a tf.data.Dataset is needed, a function that makes one from batch k"
            " on, or a dict of arrays; only these can be resumed."
        )
    if callable(data) and made.cardinality() == tf.data.INFINITE_CARDINALITY:
        return data
    from_step: FromStep = made.repeat().skip
    return from_step


def _shuffled(arrays: Mapping[str, ArrayLike], seed: int) -> FromStep:
    """Batches of arrays, all elements in random order, then all again; batch k is a function of k."""
    tensors, n = _tensors(arrays)

    def index(k: tf.Tensor) -> tf.Tensor:
        order = tf.stack([tf.constant(seed, tf.int64), k // n])
        return tf.random.experimental.index_shuffle(k % n, order, n - 1)

    def batches_from(step: int) -> tf.data.Dataset:
        chosen = tf.data.Dataset.counter(step * BATCH).map(index).batch(BATCH)
        return chosen.map(lambda at: {name: tf.gather(tensor, at) for name, tensor in tensors.items()})

    return batches_from


def _held_out(data: Data, steps: int | None) -> tf.data.Dataset:
    """The batches that every epoch sees."""
    if isinstance(data, Mapping):
        data = tf.data.Dataset.from_tensor_slices(_tensors(data)[0]).batch(BATCH)
    if not isinstance(data, tf.data.Dataset):
        raise InputError(
            f"validation_data is a {type(data).__name__}: a tf.data.Dataset or a dict of arrays is needed."
        )
    if steps is None and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise InputError("validation_data has no end: say how many batches of it, validation_steps.")
    return data if steps is None else data.take(steps)


def _tensors(arrays: Mapping[str, ArrayLike]) -> tuple[dict[str, tf.Tensor], int]:
    """Arrays of equal length, and the length."""
    tensors = {name: tf.convert_to_tensor(np.asarray(array)) for name, array in arrays.items()}
    lengths = {name: int(tensor.shape[0]) if tensor.shape.rank else 0 for name, tensor in tensors.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise InputError(f"arrays of one length, and not empty, are needed; received {lengths or 'none'}.")
    return tensors, next(iter(lengths.values()))

import io

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

import epizoo
from epizoo.models import callbacks
from epizoo.testing.models import Case, Killed
from tfds_epilepsy.errors import InputError

CASE = Case("autoencoder", (5, 5), 1)


def history(tmp_path, values, epochs=None):
    path = tmp_path / "history.csv"
    path.write_text("epoch,val_loss\n" + "".join(f"{i + 1},{v}\n" for i, v in enumerate(values)))
    return callbacks.History(path, len(values) if epochs is None else epochs)


def test_history_never_holds_an_epoch_twice(tmp_path):
    kept = history(tmp_path, [3, 2, 1], epochs=2)
    kept.on_epoch_end(2, {"val_loss": 0.1})
    kept.on_epoch_end(3, {"val_loss": 1 / 3})
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines == ["epoch,val_loss", "1,3.0", "2,2.0", "3,0.1", "4,0.3333333333333333"]
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


def test_training_stalls_after_so_many_epochs_without_a_new_minimum(tmp_path):
    kept = history(tmp_path, [3, 1, 2, 2, 1])
    assert kept.stalled("val_loss", 3)
    assert not kept.stalled("val_loss", 4)
    assert not kept.stalled("val_loss", None)


def test_early_stopping_survives_a_restart(tmp_path):
    class Worse(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.set_weights([w + 0.5 for w in self.model.get_weights()])

    options = {"epochs": 6, "patience": 2, "callbacks": [Worse()]}
    rows = CASE.train(CASE.create(), tmp_path, **options)
    assert len(rows) < 6
    before = (tmp_path / "model.keras").read_bytes()
    assert CASE.train(CASE.create(), tmp_path, **options) == rows
    assert (tmp_path / "model.keras").read_bytes() == before


def train_along(values, folder, monkeypatch, *watchers, **options):
    """Train where the monitored figure takes given values, an epoch each, the last one from then on."""

    class Told(callbacks.History):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, {**logs, "val_loss": values[min(epoch, len(values) - 1)]})

    monkeypatch.setattr(callbacks, "History", Told)
    model = CASE.create()
    return model, CASE.train(model, folder, callbacks=watchers, **options)


def same_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_early_stopping_keeps_the_best_epoch(tmp_path, monkeypatch):
    values = (3, 1, 2)
    stopped, rows = train_along(values, tmp_path / "a", monkeypatch, epochs=9, patience=2)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["history.csv", "model.keras", "pictures"]
    best, _ = train_along(values, tmp_path / "b", monkeypatch, epochs=2)
    assert same_state(stopped, best)
    assert stopped.epochs == 2
    assert same_weights(epizoo.load_model(tmp_path / "a" / "model.keras"), best)
    ended, rows = train_along(values, tmp_path / "c", monkeypatch, epochs=3, patience=9)
    assert len(rows) == 3
    assert same_state(ended, best)
    last, _ = train_along(values, tmp_path / "d", monkeypatch, epochs=3)
    assert last.epochs == 3
    assert not same_weights(last, best)


@pytest.mark.parametrize("epoch", [1, 2, 3], ids="killed in epoch {}".format)
def test_killed_training_keeps_the_same_best_epoch(tmp_path, monkeypatch, epoch):
    values, options = (3, 1, 2), {"epochs": 9, "patience": 2}
    whole, rows = train_along(values, tmp_path / "whole", monkeypatch, **options)
    with pytest.raises(KeyboardInterrupt):
        train_along(values, tmp_path / "killed", monkeypatch, Killed(epoch), **options)
    resumed, again = train_along(values, tmp_path / "killed", monkeypatch, **options)
    assert again == rows
    assert same_state(resumed, whole)


@pytest.mark.slow
def test_training_that_was_killed_as_it_ended_ends_alike(tmp_path, monkeypatch):
    values, options = (3, 1, 2), {"epochs": 9, "patience": 2}
    whole, rows = train_along(values, tmp_path / "whole", monkeypatch, **options)

    def killed(model, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks, "restore", killed)
    with pytest.raises(KeyboardInterrupt):
        train_along(values, tmp_path / "killed", monkeypatch, **options)
    monkeypatch.undo()
    resumed, again = train_along(values, tmp_path / "killed", monkeypatch, **options)
    assert again == rows
    assert same_state(resumed, whole)


@pytest.mark.slow
def test_more_patience_goes_on_from_the_best_epoch(tmp_path, monkeypatch):
    values = (3, 1, 2)
    train_along(values, tmp_path / "a", monkeypatch, epochs=9, patience=1)
    longer, rows = train_along(values, tmp_path / "a", monkeypatch, epochs=9, patience=3)
    at_once, expected = train_along(values, tmp_path / "b", monkeypatch, epochs=9, patience=3)
    assert rows == expected
    assert same_state(longer, at_once)


def same_state(a, b):
    """Equal weights, optimiser's state and counters."""
    states = [[v.numpy() for v in model.optimizer.variables] for model in (a, b)]
    equal = all(np.array_equal(x, y) for x, y in zip(*states, strict=True))
    return same_weights(a, b) and equal and (a.epochs, a.steps) == (b.epochs, b.steps)


def test_more_epochs_go_on_where_a_finished_training_ended(tmp_path):
    first = CASE.create()
    CASE.train(first, tmp_path / "a", epochs=1)
    longer = CASE.create()
    rows = CASE.train(longer, tmp_path / "a", epochs=3)
    at_once = CASE.create()
    assert CASE.train(at_once, tmp_path / "b", epochs=3) == rows
    assert all(np.array_equal(a, b) for a, b in zip(longer.get_weights(), at_once.get_weights(), strict=True))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["history.csv", "model.keras", "pictures"]


def test_plain_data_set_resumes_like_a_function_of_the_step(tmp_path):
    runs = {}
    for name, data in {"dataset": CASE.dataset(), "function": CASE.dataset}.items():
        for epochs in (1, 2):
            runs[name] = callbacks.train(
                CASE.create(), data, epochs=epochs, steps_per_epoch=2, folder=tmp_path / name
            )
    assert runs["dataset"] == runs["function"]


def test_nan_ends_the_training_and_leaves_the_last_good_checkpoint(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights([w * np.nan for w in self.model.get_weights()])

    with pytest.raises(FloatingPointError, match="diverged in epoch 2: loss nan"):
        CASE.train(CASE.create(), tmp_path, callbacks=[Poison()])
    assert epizoo.load_model(tmp_path / "checkpoint.keras").epochs == 1
    assert not (tmp_path / "model.keras").exists()
    assert len(callbacks.History(tmp_path / "history.csv", 1).rows) == 1


def test_folder_of_another_training_is_refused(tmp_path):
    CASE.train(CASE.create(), tmp_path, epochs=1)
    with pytest.raises(InputError, match="latent_dim 64, not 32"):
        CASE.train(CASE.create(latent_dim=32), tmp_path)
    (tmp_path / "model.keras").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read as a saved model"):
        CASE.train(CASE.create(), tmp_path)


def test_bad_input_is_found_before_anything_is_written(tmp_path):
    wrong = Case("autoencoder", (7, 7), 1)
    with pytest.raises(InputError, match="patch of shape"):
        callbacks.train(CASE.create(), wrong.dataset(), epochs=1, steps_per_epoch=1, folder=tmp_path / "a")
    with pytest.raises(InputError, match="patience needs validation_data"):
        CASE.train(CASE.create(), tmp_path / "a", validation_data=None, patience=1)
    assert not (tmp_path / "a").exists()


def test_pictures_are_kept_after_powers_of_two(tmp_path):
    CASE.train(CASE.create(), tmp_path, epochs=3)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        "epoch-0001.png",
        "epoch-0002.png",
        "latest.png",
    ]


def test_picture_shows_anterior_up_and_every_row(tmp_path):
    patch = np.zeros((1, 5, 5, 1), np.float32)
    patch[0, :, -1] = 1  # the most anterior line
    strip = callbacks._strip(patch[..., 0])
    assert np.array_equal(strip[1, 1:-1], np.ones(5))
    assert not strip[2:-1, 1:-1].any()
    path = tmp_path / "a.png"
    callbacks.draw_patches({"patch": patch, "generated": np.ones((1, 5, 5, 1), np.float32)}, [path])
    image = matplotlib.image.imread(path)
    assert image[..., :3].min() < 0.1
    assert image.shape[1] > 100


def test_progress_shows_every_epoch_and_its_figures(tmp_path):
    text = io.StringIO()
    CASE.train(CASE.create(), tmp_path, console=Console(file=text, width=200))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert "val_loss" in lines[0]


def test_tensorboard_is_an_ordinary_callback(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    CASE.train(CASE.create(), tmp_path, epochs=1, callbacks=[keras.callbacks.TensorBoard(tmp_path / "tb")])
    assert list((tmp_path / "tb").rglob("events*"))


def test_trained_autoencoder_reconstructs_better():
    model = CASE.create(eager=False)
    data = CASE.dataset()
    before = model.evaluate(CASE.dataset(100), steps=4, verbose=0)
    model.fit(data, steps_per_epoch=150, verbose=0)
    assert model.evaluate(CASE.dataset(100), steps=4, verbose=0) < before / 2


def test_picture_of_a_model_that_completes_patches_keeps_their_surround(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(callbacks, "draw_patches", lambda rows, paths: drawn.append(rows))
    case = Case("context_gan", (15, 15), 1)
    case.train(case.create(), tmp_path, epochs=1)
    rows = drawn[0]
    assert list(rows) == ["patch", "reconstructed", "generated"]
    surround = np.ones((15, 15), bool)
    surround[5:10, 5:10] = False
    for name in ("reconstructed", "generated"):
        assert np.array_equal(rows[name][:, surround], rows["patch"][:, surround])
        assert not np.allclose(rows[name][:, ~surround], rows["patch"][:, ~surround], atol=1e-3)


def test_history_of_an_earlier_version_goes_on_with_new_figures(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,loss\n1,3.0\n")
    callbacks.History(path, 1).on_epoch_end(1, {"loss": 2.0, "val_coverage": 0.5})
    rows = callbacks.History(path, 2).rows
    assert np.isnan(rows[0].pop("val_coverage"))
    assert rows == [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0, "val_coverage": 0.5}]


@pytest.mark.parametrize("kind", ["data set", "function", "arrays"])
def test_training_on_data_that_end_counts_its_steps_and_resumes(tmp_path, kind):
    """5 steps per epoch of 3 batches (2 of arrays): the data are begun again, a killed run goes on there."""
    patches = np.random.default_rng(0).random((40, 5, 5, 1))
    finite = tf.data.Dataset.from_tensor_slices({"patch": patches}).batch(16)
    data = {"data set": finite, "function": lambda k: finite, "arrays": {"patch": patches}}[kind]
    options = {
        "steps_per_epoch": 5,
        "console": Console(quiet=True),
        "validation_data": {"patch": patches[:9]},
    }
    whole, resumed = CASE.create(), CASE.create()
    rows = callbacks.train(whole, data, epochs=3, folder=tmp_path / "whole", **options)
    assert (whole.epochs, whole.steps, int(whole.optimizer.iterations)) == (3, 15, 15)
    callbacks.train(CASE.create(), data, epochs=1, folder=tmp_path / "killed", **options)
    assert callbacks.train(resumed, data, epochs=3, folder=tmp_path / "killed", **options) == rows
    assert same_state(resumed, whole)


def test_arrays_are_shuffled_and_each_pass_holds_all():
    order = callbacks._endless({"patch": np.arange(40.0)}, seed=3)
    drawn = np.concatenate([batch["patch"] for batch in order(0).take(5).as_numpy_iterator()])
    assert len(drawn) == 160
    passes = drawn.reshape(4, 40)
    assert np.array_equal(np.sort(passes, 1), np.tile(np.arange(40), (4, 1)))
    assert len(np.unique(passes, axis=0)) == 4
    later = next(order(2).as_numpy_iterator())["patch"]
    assert np.array_equal(later, drawn[64:96])


def test_data_that_cannot_be_resumed_are_refused(tmp_path):
    options = {"epochs": 1, "steps_per_epoch": 1, "folder": tmp_path / "a"}
    batches = CASE.dataset()
    for data in (iter(batches), [CASE.batch(2)], lambda k: CASE.batch(2)):
        with pytest.raises(InputError, match=r"tf\.data\.Dataset is needed"):
            callbacks.train(CASE.create(), data, **options)
    with pytest.raises(InputError, match="validation_steps"):
        callbacks.train(CASE.create(), batches, validation_data=batches, **options)
    with pytest.raises(InputError, match="validation_data is a list"):
        callbacks.train(CASE.create(), batches, validation_data=[], **options)
    with pytest.raises(InputError, match="of one length"):
        callbacks.train(CASE.create(), {"patch": np.zeros((0, 5, 5, 1))}, **options)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="holds no batch"):
        callbacks.train(CASE.create(), batches.take(0), **options)


def test_weights_that_became_nan_in_the_last_batch_are_not_saved(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights([w * np.nan for w in self.model.get_weights()])

    with pytest.raises(FloatingPointError, match="diverged in epoch 2: weights are NaN"):
        CASE.train(CASE.create(), tmp_path, callbacks=[Poison()])
    assert epizoo.load_model(tmp_path / "checkpoint.keras").epochs == 1


def test_history_goes_on_without_a_figure_that_it_had(tmp_path):
    CASE.train(CASE.create(), tmp_path, epochs=1)
    rows = CASE.train(CASE.create(), tmp_path, epochs=2, validation_data=None)
    assert [sorted(row) for row in rows] == [["epoch", "loss", "val_loss"], ["epoch", "loss"]]
    assert (tmp_path / "history.csv").read_text().splitlines()[0] == "epoch,loss,val_loss"


def test_steps_are_those_made_where_a_call_makes_several(tmp_path):
    model = CASE.create()
    model.compile(steps_per_execution=4)
    CASE.train(model, tmp_path, epochs=1, steps_per_epoch=6)
    assert model.steps == int(model.optimizer.iterations)

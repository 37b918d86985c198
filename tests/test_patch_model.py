from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

import epizoo
from epizoo.models import blocks, losses
from epizoo.models.patch_model import PatchModel, register_model
from tfds_epilepsy.errors import InputError

SHAPE = (5, 5, 1)
PATCHES = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)
DATA = tf.data.Dataset.from_tensors({"patch": PATCHES}).repeat()


@register_model("small_of_tests")
class Adversarial(PatchModel):
    """The smallest model with two optimisers and averages."""

    tracked = ("d_loss", "g_loss", "loss")
    trains: ClassVar = {"d_optimizer": ("discriminator",), "g_optimizer": ("live_encoder", "live_decoder")}
    averages: ClassVar = {"encoder": "live_encoder", "decoder": "live_decoder"}
    average_decay = 0.9
    generates = True

    def __init__(self, patch_shape=(5, 5), channels=1, latent_dim=3, **kwargs):
        super().__init__(patch_shape, channels, latent_dim, **kwargs)
        with self.building():
            self.live_encoder = blocks.conv_encoder(patch_shape, channels, latent_dim, norm="batch")
            self.live_decoder = blocks.conv_decoder(patch_shape, channels, latent_dim)
            self.discriminator = blocks.conv_encoder(patch_shape, channels, 1, spectral=True, linear=True)

    def default_optimizers(self):
        return {"d_optimizer": keras.optimizers.Adam(4e-4, 0.0), "g_optimizer": keras.optimizers.SGD(0.01)}

    def train_step(self, data):
        batch = self.check_batch(data)
        x = batch["patch"]
        z = self.noise("prior", (tf.shape(x)[0], self.latent_dim))
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.live_decoder(z), training=True)
            real = self.discriminator(x, training=True)
            d_loss = tf.reduce_mean(losses.hinge_discriminator(real, fake))
        self.minimise(d_loss, tape, "d_optimizer")
        with tf.GradientTape() as tape:
            x_hat = self.live_decoder(self.live_encoder(x, training=True))
            g_loss = tf.reduce_mean(losses.squared_error(x, x_hat))
            g_loss += tf.reduce_mean(losses.hinge_generator(self.discriminator(self.live_decoder(z))))
        self.minimise(g_loss, tape, "g_optimizer")
        return self.track(batch, d_loss=d_loss, g_loss=g_loss)

    def compute_losses(self, batch, training):
        return {
            "loss": tf.reduce_mean(losses.squared_error(batch["patch"], self.reconstruction(batch["patch"])))
        }


def test_each_optimizer_trains_its_networks_alone():
    model = Adversarial()
    model.compile(d_optimizer="sgd")
    assert isinstance(model.d_optimizer, keras.optimizers.SGD)
    assert isinstance(model.g_optimizer, keras.optimizers.SGD)
    d_trained = {id(v) for v in model.trained_by("d_optimizer")}
    assert d_trained == {id(v) for v in model.discriminator.trainable_variables}
    assert not d_trained & {id(v) for v in model.trained_by("g_optimizer")}
    with pytest.raises(InputError, match="its optimisers are d_optimizer, g_optimizer"):
        model.compile("adam")


def test_averages_follow_the_trained_networks():
    model = Adversarial()
    model.compile(run_eagerly=True)
    expected = model.live_encoder.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(expected, model.encoder.get_weights(), strict=True))
    learnt = [v.trainable for v in model.live_encoder.variables]
    assert not all(learnt)  # batch normalisation's statistics are copied, not averaged
    for step in range(1, 4):
        model.train_step({"patch": tf.constant(PATCHES)})
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * old + (1 - decay) * live if average else live
            for old, live, average in zip(expected, model.live_encoder.get_weights(), learnt, strict=True)
        ]
    assert all(
        np.allclose(a, b, atol=1e-6) for a, b in zip(expected, model.encoder.get_weights(), strict=True)
    )
    assert not np.allclose(model.encode(PATCHES), model.live_encoder(PATCHES))
    assert np.allclose(model.encode(PATCHES), model.encoder(PATCHES), atol=1e-6)


def test_two_optimizers_and_their_states_are_saved_and_resume_to_the_bit(tmp_path):
    model = Adversarial()
    model.compile()
    model.fit(DATA, steps_per_epoch=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = epizoo.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.g_optimizer, keras.optimizers.SGD)
    assert loaded.d_optimizer.learning_rate.numpy() == np.float32(4e-4)
    for m in (model, loaded):
        m.fit(DATA, steps_per_epoch=3, verbose=0)
        assert m.d_optimizer.iterations.numpy() == 6
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True))
    for name in model.trains:
        pairs = zip(getattr(model, name).variables, getattr(loaded, name).variables, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_noise_is_a_function_of_seed_name_and_step():
    model, other = Adversarial(), Adversarial(seed=1)
    for m in (model, other):
        m.compile()
    first = model.noise("z", (4, 3))
    assert np.array_equal(first, model.noise("z", (4, 3)))
    assert not np.allclose(first, model.noise("w", (4, 3)))
    assert not np.allclose(first, other.noise("z", (4, 3)))
    held_out = model.noise("z", (4, 3), training=False)
    model.d_optimizer.iterations.assign(1)
    assert not np.allclose(first, model.noise("z", (4, 3)))
    assert np.array_equal(held_out, model.noise("z", (4, 3), training=False))
    many = model.noise("z", (20_000,))
    assert np.mean(many) == pytest.approx(0, abs=0.03)
    assert np.std(many) == pytest.approx(1, abs=0.03)
    uniform = model.uniform("z", (20_000,))
    assert (np.min(uniform), np.max(uniform)) == pytest.approx((0, 1), abs=1e-3)


def test_building_leaves_the_global_state_alone():
    import random

    random.seed(5)
    expected = random.random()
    random.seed(5)
    Adversarial(dtype="mixed_bfloat16")
    assert random.random() == expected
    assert keras.config.dtype_policy().name == "float32"


def test_metrics_are_means_over_the_epoch():
    model = epizoo.create("autoencoder", patch_shape=(5, 5), channels=1)
    model.compile()
    halves = tf.data.Dataset.from_tensor_slices({"patch": PATCHES}).batch(4)  # batches of 4 and 2
    loss = model.evaluate(halves, verbose=0, return_dict=True)["loss"]
    error = (PATCHES - model.reconstruct(PATCHES)) ** 2
    assert loss == pytest.approx(error.sum((1, 2, 3)).mean(), rel=1e-5)


def test_all_wrong_arguments_are_named_at_once():
    with pytest.raises(InputError) as error:
        epizoo.create("siamese", patch_shape=(4, 15), channels=0, latent_dim=0)
    assert len(error.value.problems) == 3
    with pytest.raises(InputError, match="alhpa"):
        epizoo.create("siamese", alhpa=1)
    with pytest.raises(InputError, match="choose one of autoencoder"):
        epizoo.create("transformer")
    with pytest.raises(InputError, match="mixed_bfloat16"):
        epizoo.create("siamese", dtype="float16")


def test_what_a_model_cannot_do_is_said():
    model = Adversarial()
    model.decoder = None
    with pytest.raises(InputError, match="no decoder"):
        model.reconstruct(PATCHES)
    with pytest.raises(InputError, match="no prior"):
        epizoo.create("siamese").generate(2)
    with pytest.raises(InputError, match="sampling='pair'"):
        epizoo.create("siamese", patch_shape=(5, 5), channels=1).fit(DATA)


def test_files_that_are_no_models_are_named(tmp_path):
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"broken\.keras: cannot be read"):
        epizoo.load_model(broken)
    with pytest.raises(InputError, match="no such file"):
        epizoo.load_model(tmp_path / "none.keras")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="Sequential, not a model of the zoo"):
        epizoo.load_model(tmp_path / "other.keras")
    with pytest.raises(InputError, match="not a preset"):
        epizoo.from_preset(tmp_path)
    with pytest.raises(InputError, match="not empty"):
        Adversarial().save_preset(tmp_path)


def test_zoo_is_described_by_what_its_encoders_cost():
    rows = {row["model"]: row for row in epizoo.models.describe()}
    assert list(rows) == epizoo.list_models()
    siamese = rows["siamese"]
    assert siamese["encoder parameters"] == "4,944"
    # The last of 13 voxels is dropped by the pool of 2, so 14 of 15 are seen.
    assert siamese["receptive field"] == "14x14"
    assert siamese["FLOPs per voxel"] == f"{2 * (9 * 2 * 16 + 2 * 9 * 16 * 16):,}"
    assert all(row["FLOPs per voxel"] != "0" for row in rows.values())

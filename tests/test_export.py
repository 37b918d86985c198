"""Exports load without epizoo and give the same codes."""

import json
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

from epizoo.dense import DenseEncoder
from epizoo.export import METADATA, export_encoder, export_onnx
from tfds_epilepsy.errors import InputError

# What another team runs: TensorFlow and NumPy, epizoo out of reach.
CONSUMER = """
import sys
for name in ("epizoo", "tfds_epilepsy"):
    sys.modules[name] = None
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
codes = loaded.signatures["serve"](patch=tf.constant(given["patch"]))["latent"]
dense = loaded.signatures["dense"](volume=tf.constant(given["volume"]))["latent"]
default = loaded.signatures["serving_default"](patch=tf.constant(given["patch"]))["latent"]
np.savez(sys.argv[3], codes=codes, dense=dense, default=default)
"""


def encoder_2d():
    patch = keras.Input((7, 9, 2), name="patch")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, activation="relu")(patch))
    return keras.Model(patch, layers.Dense(5, name="latent")(layers.Flatten()(x)), name="small")


def encoder_3d():
    patch = keras.Input((5, 5, 3, 1), name="patch")
    x = layers.MaxPooling3D((2, 2, 1))(layers.Conv3D(4, 2, activation="relu")(patch))
    return keras.Model(patch, layers.Dense(3, name="latent")(layers.Flatten()(x)), name="small_3d")


@pytest.mark.parametrize(("build", "shape"), [(encoder_2d, (6, 11, 3)), (encoder_3d, (7, 5, 6))])
def test_loads_with_tensorflow_alone_and_gives_the_same_codes(build, shape, tmp_path):
    encoder = build()
    model = SimpleNamespace(name="model", encoder=encoder)  # as a PatchModel carries its encoder
    rng = np.random.default_rng(0)
    patch = rng.random((4, *encoder.input_shape[1:]), np.float32)
    volume = rng.random((*shape, encoder.input_shape[-1]), np.float32)
    folder = export_encoder(model, tmp_path / "deep" / "exported")
    np.savez(tmp_path / "given.npz", patch=patch, volume=volume)
    arguments = [folder, tmp_path / "given.npz", tmp_path / "got.npz"]
    subprocess.run([sys.executable, "-c", CONSUMER, *map(str, arguments)], check=True, cwd=tmp_path)
    got = np.load(tmp_path / "got.npz")
    np.testing.assert_allclose(got["codes"], encoder(patch), atol=1e-5)
    np.testing.assert_array_equal(got["default"], got["codes"])
    np.testing.assert_allclose(got["dense"], DenseEncoder(encoder)(volume), atol=1e-5)


def test_metadata_says_what_to_feed(tmp_path):
    folder = export_encoder(encoder_2d(), tmp_path / "e", modalities=("T1w", "FLAIR"), voxel_size=1.0)
    metadata = json.loads((folder / METADATA).read_text())
    assert metadata["patch_shape"] == [7, 9]
    assert metadata["latent_dim"] == 5
    assert metadata["modalities"] == ["T1w", "FLAIR"]
    assert metadata["normalisation"] == "unit"
    assert metadata["voxel_size"] == 1.0
    assert metadata["versions"]["keras"] == keras.__version__
    assert list(tmp_path.iterdir()) == [folder]


def test_an_export_is_not_overwritten_unless_asked(tmp_path):
    folder = export_encoder(encoder_2d(), tmp_path / "e")
    with pytest.raises(InputError, match="exists already"):
        export_encoder(encoder_2d(), folder)
    (folder / "stale").touch()
    export_encoder(encoder_2d(), folder, overwrite=True)
    assert not (folder / "stale").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(json, "dumps", broken)
    with pytest.raises(OSError, match="disk full"):
        export_encoder(encoder_2d(), tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_before_writing(tmp_path):
    with pytest.raises(InputError, match="takes 2 channels"):
        export_encoder(encoder_2d(), tmp_path / "e", modalities=("T1w",))
    patch = keras.Input((7, 7, 1), name="patch")
    padded = keras.Model(patch, layers.Flatten()(layers.Conv2D(2, 3, padding="same", name="culprit")(patch)))
    with pytest.raises(InputError, match="'culprit'"):
        export_encoder(padded, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_onnx_gives_the_same_codes(tmp_path):
    pytest.importorskip("tf2onnx", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    encoder = encoder_2d()
    session = runtime.InferenceSession(export_onnx(encoder, tmp_path / "e.onnx"))
    patch = np.random.default_rng(0).random((4, 7, 9, 2), np.float32)
    (codes,) = session.run(["latent"], {"patch": patch})
    np.testing.assert_allclose(codes, encoder(patch), atol=1e-5)
    with pytest.raises(InputError, match="exists already"):
        export_onnx(encoder, tmp_path / "e.onnx")


def test_onnx_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(InputError, match=r"epizoo\[onnx\]"):
        export_onnx(encoder_2d(), tmp_path / "e.onnx")

"""ONNX and TFLite give what the encoder gives, for every model of the zoo."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import epizoo
from epizoo.dense import DenseEncoder
from epizoo.export import export_encoder, formats, verify
from epizoo.export.signature import Signature
from epizoo.registry import MODELS
from tests.encoders import encoder_2d, encoder_3d
from tests.raw_scans import normalised, raw_volume
from tfds_epilepsy.errors import InputError

SHAPES = [(15, 15), (9, 9, 9)]
# Pools of three axes are not among TFLite's operations.
NO_TFLITE = {
    ("dcgan", 3): "MaxPool3D",
    ("original_dcgan", 3): "MaxPool3D",
    ("context_gan", 3): "AvgPool3D",
    ("synthetic", 3): "AvgPool3D",
    ("deviation", 3): "AvgPool3D",
}


def encode_of(name, shape):
    """A model's ``encode`` alone, patches and their codes."""
    encoder = epizoo.create(name, patch_shape=shape).encoder
    patch = np.random.default_rng(0).random((3, *shape, 2), np.float32)
    spec = tf.TensorSpec((None, *shape, 2), tf.float32)
    signature = Signature(
        lambda patch: {"latent": encoder(patch, training=False)}, {"patch": spec}, {}, {}, about=""
    )
    kept = [variable.value for variable in encoder.variables]
    return SimpleNamespace(signatures={"encode": signature}, kept=kept, patch=patch, codes=encoder(patch))


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
@pytest.mark.parametrize("name", list(MODELS.own))
def test_every_model_gives_the_same_codes_in_onnx_and_tflite(name, shape, tmp_path):
    case = encode_of(name, shape)
    formats.onnx(case.signatures, case.kept, tmp_path)
    codes = verify.onnx(tmp_path)("encode", {"patch": case.patch})["latent"]
    np.testing.assert_allclose(codes, case.codes, atol=1e-4)
    if (name, len(shape)) in NO_TFLITE:
        with pytest.raises(InputError, match=NO_TFLITE[name, len(shape)]):
            formats.tflite(case.signatures, case.kept, tmp_path)
        return
    formats.tflite(case.signatures, case.kept, tmp_path)
    codes = verify.tflite(tmp_path)("encode", {"patch": case.patch})["latent"]
    np.testing.assert_allclose(codes, case.codes, atol=1e-4)


@pytest.mark.parametrize(("build", "shape"), [(encoder_2d, (13, 11, 6)), (encoder_3d, (7, 9, 8))])
def test_whole_volumes_in_onnx(build, shape, tmp_path):
    encoder = build()
    channels = encoder.input_shape[-1]
    names = ["T1w", "FLAIR"][:channels]
    folder = export_encoder(encoder, tmp_path / "onnx", modalities=names, format="onnx")
    volume, mask = raw_volume(shape, channels)
    given = {name: volume[..., c] for c, name in enumerate(names)} | {"mask": mask}
    codes = verify.onnx(folder)("encode_volume", given)["latent"]
    np.testing.assert_allclose(codes, DenseEncoder(encoder)(normalised(volume, mask)), atol=1e-4)
    assert verify.verify(folder, names)
    assert "onnxruntime" in (folder / "use_it.py").read_text()


def test_what_is_not_finite_gets_nan_for_a_code_where_nothing_can_be_refused(tmp_path):
    """ONNX and TFLite have no assertion; max pooling would make a code of NaN that looks like any other."""
    model = epizoo.create("siamese", patch_shape=(9, 9))
    patch = np.random.default_rng(0).random((3, 9, 9, 2), np.float32)
    expected = model.encode(patch)
    for format, load in (("onnx", verify.onnx), ("tflite", verify.tflite)):
        model.export(tmp_path / format, format={"tflite": "litert"}.get(format, format))
        for value in (np.nan, np.inf, -np.inf):
            spoilt = patch.copy()
            spoilt[1, 4, 4, 0] = value
            codes = load(tmp_path / format)("encode", {"patch": spoilt})["latent"]
            assert np.isnan(codes[1]).all()
            np.testing.assert_allclose(codes[::2], expected[::2], atol=1e-4)
        for low, high in ((1, 0), (0.5, 0.5), (-3e38, 3e38), (np.nan, 1)):
            ends = {"low": np.zeros((3, 2), np.float32), "high": np.ones((3, 2), np.float32)}
            ends["low"][1, 0], ends["high"][1, 0] = low, high
            codes = load(tmp_path / format)("encode_raw", {"patch": patch, **ends})["latent"]
            assert np.isnan(codes[1]).all()
            np.testing.assert_allclose(codes[::2], expected[::2], atol=1e-4)
    volume, mask = raw_volume((12, 11, 5), 2)
    volume[tuple(np.argwhere(mask)[0])] = np.inf
    given = {"channel_0": volume[..., 0], "channel_1": volume[..., 1], "mask": mask}
    assert np.isnan(verify.onnx(tmp_path / "onnx")("encode_volume", given)["latent"]).all()
    for wrong in ({"format": "openvino"}, {"input_signature": []}):
        with pytest.raises(InputError):
            model.export(tmp_path / "a", **wrong)


def test_patches_in_tflite_with_their_card(tmp_path):
    folder = export_encoder(encoder_2d(), tmp_path / "lite", format="tflite")
    assert {row[0] for row in verify.verify(folder)} == {"encode", "encode_raw"}
    assert "encode patches, or take a SavedModel or ONNX" in (folder / "model_card.md").read_text()
    assert not list(folder.glob("saved_model.pb"))


def test_nothing_is_left_of_a_format_that_has_no_form(tmp_path):
    model = epizoo.create("dcgan", patch_shape=(9, 9, 9))
    with pytest.raises(InputError, match=r"encode: no TFLite form for the operations MaxPool3D"):
        export_encoder(model, tmp_path / "lite", format="tflite")
    with pytest.raises(InputError, match="SavedModel's alone"):
        export_encoder(model, tmp_path / "lite", format="onnx", precision="bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(InputError, match=r"epizoo\[onnx\]"):
        export_encoder(encoder_2d(), tmp_path / "e", format="onnx")
    assert list(tmp_path.iterdir()) == []

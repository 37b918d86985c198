"""Exported encoders load without epizoo, give the same codes, and say what to feed."""

import gc
import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import epizoo
from epizoo.dense import DenseEncoder
from epizoo.export import export_encoder, verify
from epizoo.export.encoder import _signatures, by_name, in_precision
from tests.consumer import run_consumer
from tests.encoders import encoder_2d, encoder_3d
from tests.raw_scans import normalised, raw_volume
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import normalise


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A 2-D and a 3-D encoder, exported."""
    folder = tmp_path_factory.mktemp("exports")
    keras.utils.set_random_seed(1)
    model = SimpleNamespace(name="model", encoder=encoder_2d())  # as a PatchModel carries its encoder
    solid = encoder_3d()
    export_encoder(model, folder / "deep" / "flat", modalities=("T1w", "FLAIR"), voxel_size=2.0)
    export_encoder(solid, folder / "solid", modalities=("T1w",), normalisation="zscore")
    return SimpleNamespace(
        flat=folder / "deep" / "flat", solid=folder / "solid", model=model, encoder_3d=solid
    )


@pytest.mark.slow
def test_a_consumer_with_tensorflow_alone_verifies_and_uses_them(exports):
    scripts = [exports.flat / "verify.py", exports.solid / "verify.py", exports.flat / "use_it.py"]
    done = run_consumer(*scripts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gives here what it gave where it was made") == 2
    assert "(12, 14, 6, 5)" in done.stdout  # use_it: the code at every voxel of the vector's volume


def test_codes_of_patches_and_volumes_are_those_of_the_encoder(exports):
    flat, encoder = tf.saved_model.load(exports.flat).signatures, exports.model.encoder
    patch = np.random.default_rng(0).random((4, 7, 9, 2), np.float32)
    np.testing.assert_allclose(flat["encode"](patch=patch)["latent"], encoder(patch), atol=1e-5)
    np.testing.assert_array_equal(
        flat["serving_default"](patch=patch)["latent"], flat["encode"](patch=patch)["latent"]
    )
    volume, mask = raw_volume((13, 11, 6), 2)
    codes = flat["encode_volume"](T1w=volume[..., 0], FLAIR=volume[..., 1], mask=mask)["latent"]
    np.testing.assert_allclose(codes, DenseEncoder(encoder)(normalised(volume, mask)), atol=1e-5)


def test_any_size_of_batch_and_volume(exports):
    encode = tf.saved_model.load(exports.solid).signatures
    for n in (1, 3, 17):
        assert encode["encode"](patch=np.zeros((n, 5, 5, 3, 1), np.float32))["latent"].shape == (n, 3)
    for shape in ((4, 5, 3), (9, 4, 17)):
        volume, mask = raw_volume(shape, 1)
        codes = encode["encode_volume"](T1w=volume[..., 0], mask=mask)["latent"]
        scaled = normalise(volume[..., 0], mask, "zscore")[0][..., None]
        np.testing.assert_allclose(codes, DenseEncoder(exports.encoder_3d)(scaled), atol=1e-5)


def test_normalisation_inside_is_that_of_the_data_and_leaves_alone_what_is_normalised(exports):
    signatures = tf.saved_model.load(exports.flat).signatures
    volume, mask = raw_volume((30, 21, 8), 2)
    volume[..., 1] = np.round(volume[..., 1] / 50)  # ties
    got = signatures["normalise"](T1w=volume[..., 0], FLAIR=volume[..., 1], mask=mask)
    for c in range(2):
        expected, fitted = normalise(volume[..., c], mask)
        np.testing.assert_allclose(got["volume"][..., c], expected, atol=1e-6)
        ends = [got["low"][c].numpy(), got["high"][c].numpy()]
        np.testing.assert_allclose(ends, [fitted["low"], fitted["high"]], rtol=1e-5)
    once = got["volume"].numpy()
    twice = signatures["normalise"](T1w=once[..., 0], FLAIR=once[..., 1], mask=mask)
    np.testing.assert_array_equal(twice["volume"], once)


def test_raw_patches_take_the_scale_of_their_volume(exports):
    signatures = tf.saved_model.load(exports.flat).signatures
    volume, mask = raw_volume((13, 11, 6), 2)
    found = signatures["normalise"](T1w=volume[..., 0], FLAIR=volume[..., 1], mask=mask)
    patch = volume[None, 2:9, 1:10, 3]
    codes = signatures["encode_raw"](patch=patch, low=found["low"][None], high=found["high"][None])["latent"]
    expected = exports.model.encoder(normalised(volume, mask)[None, 2:9, 1:10, 3])
    np.testing.assert_allclose(codes, expected, atol=1e-5)


def test_the_serving_contract(exports):
    """What TensorFlow Serving reads: tag, method, named inputs and outputs of known type; JSON both ways."""
    from tensorflow.python.saved_model import loader_impl

    graph = loader_impl.parse_saved_model(str(exports.flat)).meta_graphs[0]
    assert list(graph.meta_info_def.tags) == ["serve"]
    for name in ("serving_default", "encode", "encode_raw", "encode_volume", "normalise"):
        assert graph.signature_def[name].method_name == "tensorflow/serving/predict"
    contract = graph.signature_def["encode_volume"]
    forms = {n: (i.dtype, [d.size for d in i.tensor_shape.dim]) for n, i in contract.inputs.items()}
    free = [-1, -1, -1]
    assert forms == {"T1w": (1, free), "FLAIR": (1, free), "mask": (10, free)}  # DT_FLOAT, DT_BOOL
    assert [d.size for d in contract.outputs["latent"].tensor_shape.dim] == [*free, 5]

    volume, mask = raw_volume((5, 4, 3), 2)
    request = {"T1w": volume[..., 0], "FLAIR": volume[..., 1], "mask": mask}
    body = json.loads(json.dumps({"inputs": {name: array.tolist() for name, array in request.items()}}))
    inputs = {
        name: tf.constant(body["inputs"][name], contract.inputs[name].dtype) for name in contract.inputs
    }
    answer = json.dumps(
        tf.saved_model.load(exports.flat).signatures["encode_volume"](**inputs)["latent"].numpy().tolist()
    )
    dense = DenseEncoder(exports.model.encoder)(normalised(volume, mask))
    np.testing.assert_allclose(json.loads(answer), dense, atol=1e-5)


def test_convolutions_are_of_a_form_that_every_build_of_tensorflow_has(exports):
    """Plain Eigen kernels do not dilate in 3-D; here the dense form would ask for it."""
    from tensorflow.python.saved_model import loader_impl

    graph = loader_impl.parse_saved_model(str(exports.solid)).meta_graphs[0].graph_def
    nodes = [node for function in graph.library.function for node in function.node_def]
    convolutions = [node for node in nodes if node.op == "Conv3D"]
    assert len(convolutions) >= 4
    assert {max(node.attr["dilations"].list.i, default=1) for node in convolutions} == {1}
    assert any(node.op == "SpaceToBatchND" for node in nodes)


def test_as_a_keras_layer(exports):
    layer = keras.layers.TFSMLayer(exports.flat, call_endpoint="encode")
    patch = keras.Input((7, 9, 2))
    model = keras.Model(patch, layers.Dense(1)(layer(patch)["latent"]))
    assert model(np.zeros((3, 7, 9, 2), np.float32)).shape == (3, 1)
    patches = np.random.default_rng(0).random((3, 7, 9, 2), np.float32)
    np.testing.assert_allclose(layer(patches)["latent"], exports.model.encoder(patches), atol=1e-5)


def test_metadata_say_what_to_feed(exports):
    metadata = json.loads((exports.flat / "metadata.json").read_text())
    assert metadata["patch_shape"] == [7, 9]
    assert metadata["latent_dim"] == 5
    assert metadata["modalities"] == ["T1w", "FLAIR"]
    assert metadata["normalisation"] == "unit"
    assert metadata["voxel_size"] == 2.0
    assert metadata["versions"]["keras"] == keras.__version__
    outputs = metadata["signatures"]["encode"]["outputs"]
    assert outputs == {"latent": {"dtype": "float32", "shape": [None, 5], "tolerance": 1e-4}}
    for name, checksum in metadata["sha256"].items():
        assert hashlib.sha256((exports.flat / name).read_bytes()).hexdigest() == checksum
    files = {str(path.relative_to(exports.flat)) for path in exports.flat.rglob("*") if path.is_file()}
    assert files == {*metadata["sha256"], "metadata.json"}
    card = (exports.flat / "model_card.md").read_text()
    for words in ("Research only", "T1w, FLAIR", "0.5th percentile", "2 mm", "without a run"):
        assert words in card


def test_bfloat16_halves_the_weights_and_moves_codes_little(tmp_path):
    encoder = epizoo.create("siamese").encoder
    folder = export_encoder(encoder, tmp_path / "half", precision="bfloat16")
    loaded = tf.saved_model.load(folder)
    assert {v.dtype for v in loaded.kept} == {tf.bfloat16}
    patch = np.random.default_rng(0).random((16, 15, 15, 2), np.float32)
    codes = loaded.signatures["encode"](patch=patch)["latent"]
    assert codes.dtype == tf.float32
    expected = encoder(patch).numpy()
    assert 0 < np.abs(codes - expected).max() < 0.03 * np.abs(expected).max()
    trained_in_mixed = epizoo.create("siamese", dtype="mixed_bfloat16").encoder
    assert {layer.compute_dtype for layer in in_precision(trained_in_mixed, "float32").layers} == {"float32"}


def test_other_channels_or_their_order_are_refused_with_a_message(exports):
    signatures = tf.saved_model.load(exports.flat).signatures
    volume, mask = raw_volume((8, 9, 5), 3)
    with pytest.raises(ValueError, match="takes T1w, FLAIR, in this order"):
        verify.verify(exports.flat, ["FLAIR", "T1w"])
    with pytest.raises(ValueError, match="3 channels"):
        verify.verify(exports.flat, ["T1w", "FLAIR", "pet"])
    assert verify.verify(exports.flat, ["T1w", "FLAIR"])
    with pytest.raises(TypeError, match="FLAIR"):
        signatures["encode_volume"](T1w=volume[..., 0], T2w=volume[..., 1], mask=mask)
    with pytest.raises(TypeError, match=r"shape=\(None, 7, 9, 2\)"):
        signatures["encode"](patch=np.zeros((2, 7, 9, 3), np.float32))
    with pytest.raises(TypeError, match=r"shape=\(None, 7, 9, 2\)"):
        signatures["encode"](patch=np.zeros((7, 9, 2), np.float32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda volume, mask: mask.fill(False), "mask: no voxel is True"),
        (lambda volume, mask: volume.fill(3), "constant inside the brain mask"),
        (lambda volume, mask: volume.__setitem__((3, 3, 3, 0), np.nan), "NaN or infinite"),
    ],
)
def test_volumes_that_cannot_be_normalised_are_refused(exports, spoil, message):
    volume, mask = raw_volume((8, 9, 6), 2)
    spoil(volume, mask)
    encode = tf.saved_model.load(exports.flat).signatures["encode_volume"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        encode(T1w=volume[..., 0], FLAIR=volume[..., 1], mask=mask)


def test_a_volume_whose_range_is_infinite_in_float32_is_refused(exports):
    volume, mask = raw_volume((8, 9, 6), 2)
    volume = np.where(volume > np.median(volume[mask]), 3e38, -3e38).astype(np.float32)
    encode = tf.saved_model.load(exports.flat).signatures["encode_volume"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="range infinite"):
        encode(T1w=volume[..., 0], FLAIR=volume[..., 1], mask=mask)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (1, 0), (-3e38, 3e38), (np.nan, 1)])
def test_a_raw_patch_with_low_and_high_mixed_up_has_no_code(exports, low, high):
    patch = np.random.default_rng(0).random((2, 7, 9, 2), np.float32)
    ends = {"low": np.array([[0, low]], np.float32), "high": np.array([[1, high]], np.float32)}
    encode = tf.saved_model.load(exports.flat).signatures["encode_raw"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"low is not under high|NaN or infinity"):
        encode(patch=patch, **ends)


@pytest.mark.parametrize("name", epizoo.list_models())
def test_a_batch_of_no_patches_has_no_codes(name):
    model = epizoo.create(name, patch_shape=(9, 9))
    signatures = _signatures(DenseEncoder(model.encoder), ("T1w", "FLAIR"), "none", "savedmodel")
    assert signatures["encode"].graph(patch=tf.zeros((0, 9, 9, 2)))["latent"].shape == (
        0,
        model.encoder.output_shape[-1],
    )


def test_an_empty_batch_of_raw_patches_and_of_blocks(exports):
    flat, solid = (tf.saved_model.load(folder).signatures for folder in (exports.flat, exports.solid))
    ends = {"low": np.zeros((1, 2), np.float32), "high": np.ones((1, 2), np.float32)}
    assert flat["encode_raw"](patch=tf.zeros((0, 7, 9, 2)), **ends)["latent"].shape == (0, 5)
    assert solid["encode"](patch=tf.zeros((0, 5, 5, 3, 1)))["latent"].shape == (0, 3)


def test_signatures_outlive_the_model_that_they_were_loaded_with_and_take_threads(exports):
    encode = tf.saved_model.load(exports.flat).signatures["encode"]
    gc.collect()
    patches = [tf.random.uniform((n, 7, 9, 2)) for n in range(1, 17)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda patch: encode(patch=patch)["latent"].numpy(), patches))
    for patch, codes in zip(patches, found, strict=True):
        np.testing.assert_allclose(codes, exports.model.encoder(patch), atol=1e-5)


def test_volumes_in_the_order_and_type_of_nibabel(exports):
    encode = tf.saved_model.load(exports.flat).signatures["encode_volume"]
    volume, mask = raw_volume((8, 9, 6), 2)
    given = {"T1w": volume[..., 0], "FLAIR": volume[..., 1], "mask": mask}
    expected = encode(**given)["latent"].numpy()
    as_nibabel = {n: np.asfortranarray(v if n == "mask" else v.astype(np.float64)) for n, v in given.items()}
    np.testing.assert_array_equal(encode(**as_nibabel)["latent"], expected)


@pytest.mark.parametrize(
    ("modalities", "inputs"),
    [
        (("7T_T1w", "_FLAIR"), ("image_7T_T1w", "image__FLAIR")),
        (("self", "class"), ("image_self", "image_class")),
        (("é", "T1w+C"), ("image__", "T1w_C")),
    ],
)
def test_modalities_whose_names_are_no_names_of_tensors(modalities, inputs):
    form = by_name(modalities, (None, None, None))
    assert list(form) == [*inputs, "mask"]
    function = tf.function(lambda **given: given)
    graph = function.get_concrete_function(**{n: tf.TensorSpec(s.shape, s.dtype, n) for n, s in form.items()})
    assert set(graph.structured_input_signature[1]) == set(form)


@pytest.mark.parametrize("modalities", [("T1w", "t1w"), ("Mask", "T1w"), ("a b", "a_b")])
def test_modalities_that_a_graph_cannot_tell_apart_are_refused(modalities, tmp_path):
    with pytest.raises(InputError, match="differ in more than case"):
        export_encoder(encoder_2d(), tmp_path / "e", modalities=modalities)


@pytest.mark.parametrize("name", ["a[x]", "a*", "a?", "a\\b"])
def test_a_folder_that_tensorflow_takes_for_a_pattern_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="patterns"):
        export_encoder(encoder_2d(), tmp_path / name / "e")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_any_other_name_by_a_relative_path_and_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_encoder(encoder_2d(), "Frau Müller/模型 #1")
    link = tmp_path / "current"
    link.symlink_to(Path("Frau Müller/模型 #1"))
    export_encoder(encoder_2d(), "current", overwrite=True)
    assert link.is_symlink()
    assert verify.verify(tmp_path / "Frau Müller" / "模型 #1")
    assert {path.name for path in tmp_path.iterdir()} == {"Frau Müller", "current"}


def test_verify_finds_what_was_changed(exports, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(exports.flat, folder)
    (folder / "model_card.md").write_text("a finer card")
    (folder / "use_it.py").unlink()
    with pytest.raises(ValueError, match=r"(?s)model_card.md: changed.*use_it.py: missing"):
        verify.verify(folder)


def test_an_export_that_does_not_give_its_vectors_does_not_appear(tmp_path, monkeypatch):
    monkeypatch.setattr(DenseEncoder, "__call__", lambda self, volume: np.zeros((*volume.shape[:3], 5)))
    monkeypatch.setattr(DenseEncoder, "_check_equal", lambda self: None)
    with pytest.raises(InputError, match="encode_volume: latent differs"):
        export_encoder(encoder_2d(), tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_not_overwritten_unless_asked(tmp_path):
    folder = export_encoder(encoder_2d(), tmp_path / "e", normalisation="none")
    assert "normalise" not in tf.saved_model.load(folder).signatures
    with pytest.raises(InputError, match="exists already"):
        export_encoder(encoder_2d(), folder)
    (folder / "stale").touch()
    export_encoder(encoder_2d(), folder, normalisation="none", overwrite=True)
    assert not (folder / "stale").exists()
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").touch()
    with pytest.raises(InputError, match="not an export"):
        export_encoder(encoder_2d(), tmp_path / "thesis", overwrite=True)


def test_what_cannot_be_exported_is_refused_before_writing(tmp_path):
    with pytest.raises(InputError) as error:
        export_encoder(
            encoder_2d(),
            tmp_path / "e",
            modalities=("T1w",),
            normalisation="guess",
            format="pb",
            precision="int8",
        )
    assert len(error.value.problems) == 4
    with pytest.raises(InputError, match="names that differ"):
        export_encoder(encoder_2d(), tmp_path / "e", modalities=("T1w", "mask"))
    patch = keras.Input((7, 7, 1), name="patch")
    padded = keras.Model(patch, layers.Flatten()(layers.Conv2D(2, 3, padding="same", name="culprit")(patch)))
    with pytest.raises(InputError, match="'culprit'"):
        export_encoder(padded, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []

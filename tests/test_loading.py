"""Models, presets and detectors of strangers: no code runs, no link is followed, no memory is filled."""

import io
import json
import resource
import shutil
import zipfile
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
from keras.src.saving.serialization_lib import SafeModeScope

from epizoo import models
from epizoo.detection import FittedDetector, fitted
from epizoo.models import loading
from epizoo.run_folder import RunFolder
from tests.people import person
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_keras_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model's file."""
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    models.create("autoencoder", patch_shape=(7, 7), latent_dim=2).save(path)
    return path


def changed(saved, path, **entries):
    """The file with other entries, stored as Keras stores them."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = entries.pop(name, None)
            new.writestr(name, old.read(name) if content is None else content)
        for name, content in entries.items():
            new.writestr(name, content)
    return path


def with_config(saved, path, config):
    return changed(saved, path, **{"config.json": json.dumps(config)})


def weights(fill):
    """The bytes of an HDF5 file that ``fill`` writes."""
    file = io.BytesIO()
    with h5py.File(file, "w") as stored:
        fill(stored)
    return file.getvalue()


@pytest.mark.parametrize("safe", [True, False], ids=["", "where another library allows it"])
def test_code_in_a_lambda_does_not_run(tmp_path, safe):
    ran = tmp_path / "ran"

    run = lambda x, folder=str(ran): (__import__("os").makedirs(folder, exist_ok=True), x)[1]  # noqa: E731
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(run)]).save(tmp_path / "lambda.keras")
    ran.rmdir()  # it ran as the model was built
    with SafeModeScope(safe), pytest.raises(InputError, match="Python code"):
        models.load_model(tmp_path / "lambda.keras")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("module", "name", "registered"),
    [
        ("os", "system", None),
        ("os", "system", "os>system"),
        ("subprocess", "Popen", "epizoo>Popen"),
        ("keras.utils", "get_file", None),
        ("keras.saving", "load_model", None),
    ],
)
def test_a_file_names_no_function_to_call(saved, tmp_path, module, name, registered):
    config = read_keras_config(saved)
    call = {"module": module, "class_name": name, "registered_name": registered, "config": {"a": "touch x"}}
    with pytest.raises(InputError, match="cannot be read as a model of the zoo"):
        models.load_model(with_config(saved, tmp_path / "top.keras", call))
    inside = {**config, "config": {**config["config"], "latent_dim": call}}
    with pytest.raises(InputError, match="cannot be read as a model of the zoo"):
        models.load_model(with_config(saved, tmp_path / "inside.keras", inside))


@pytest.mark.parametrize("size", [{"latent_dim": 10**9}, {"channels": 10**9}])
def test_a_small_file_cannot_ask_for_a_large_model(saved, tmp_path, size):
    config = read_keras_config(saved)
    config["config"] |= size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="asks for more weights"):
        models.load_model(with_config(saved, tmp_path / "large.keras", config))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def test_after_a_refusal_keras_makes_variables_as_before(saved, tmp_path):
    make = keras.Variable.__init__
    config = read_keras_config(saved)
    config["config"] |= {"latent_dim": 10**9}
    with pytest.raises(InputError):
        models.load_model(with_config(saved, tmp_path / "large.keras", config))
    assert keras.Variable.__init__ is make
    assert models.load_model(saved).latent_dim == 2


def test_an_archive_that_unfolds_is_not_unfolded(saved, tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (b" " * 2**25 if name == "config.json" else b""))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="more than 16 MiB"):
        models.load_model(path)


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "assets/evil.py"])
def test_an_archive_writes_nothing_elsewhere(saved, tmp_path, name):
    with pytest.raises(InputError, match="which nothing here writes"):
        models.load_model(changed(saved, tmp_path / "path.keras", **{name: b"x"}))


def test_weights_do_not_come_from_other_files(saved, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as other:
        other["x"] = np.zeros(3)
    (tmp_path / "raw").write_bytes(bytes(24))

    def external(stored):
        stored["x"] = h5py.ExternalLink(str(secret), "x")

    def soft(stored):
        stored["x"] = h5py.SoftLink("/y")

    def raw(stored):
        stored.create_dataset("x", (3,), "f8", external=[(str(tmp_path / "raw"), 0, 24)])

    def virtual(stored):
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "x", (3,))
        stored.create_virtual_dataset("x", layout)

    links, files = "a link to another place", "stands in another file"
    for fill, word in ((external, links), (soft, links), (raw, files), (virtual, files)):
        path = changed(saved, tmp_path / "elsewhere.keras", **{"model.weights.h5": weights(fill)})
        with pytest.raises(InputError, match=word):
            models.load_model(path)


def test_weights_that_unfold_are_not_unfolded(saved, tmp_path):
    bomb = weights(lambda stored: stored.create_dataset("x", (2**40,), "f4", chunks=True, compression="gzip"))
    assert len(bomb) < 2**20
    with pytest.raises(InputError, match="unfold to more"):
        models.load_model(changed(saved, tmp_path / "bomb.keras", **{"model.weights.h5": bomb}))


def test_a_preset_is_held_to_the_same(saved, tmp_path):
    models.load_model(saved).save_preset(tmp_path / "preset")
    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    config["config"]["latent_dim"] = 10**9
    shutil.copytree(tmp_path / "preset", tmp_path / "large")
    (tmp_path / "large" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="asks for more weights"):
        models.from_preset(tmp_path / "large")
    links = weights(lambda stored: stored.update({"x": h5py.ExternalLink("/etc/passwd", "x")}))
    (tmp_path / "preset" / "model.weights.h5").write_bytes(links)
    with pytest.raises(InputError, match="a link"):
        models.from_preset(tmp_path / "preset")


def test_models_of_every_name_come_back_in_bounds(tmp_path):
    """An optimiser's states included: the bound is no hindrance to what epizoo itself writes."""
    model = models.create("deviation")
    model.compile()
    model.save(tmp_path / "model.keras")
    assert loading.load(tmp_path / "model.keras").count_params() == model.count_params()


class _Runs:
    """Tells when it is unpickled."""

    def __reduce__(self):
        return print, ("it ran",)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    people = [replace(person(seed), subject=f"{seed:02d}") for seed in range(4)]
    fitted.fit_detector(None, lambda: iter(people), folder, detector="zscore", modalities=("T1w", "FLAIR"))
    return folder


def damaged(detector, folder, content):
    """A detector whose slab is other bytes, with their right checksum: a stranger's, not a damaged one."""
    shutil.copytree(detector, folder)
    (folder / "slab-000.npz").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checksums"]["slab-000.npz"] = fitted._checksum(content)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return FittedDetector.load(folder, None)


def zipped(content, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("mean.npy", content)
    return file.getvalue()


def test_arrays_of_objects_are_not_unpickled(detector, tmp_path, capsys):
    file = io.BytesIO()
    np.savez(file, mean=np.array([_Runs()], dtype=object))
    with pytest.raises(InputError, match=r"slab-000.npz: no arrays of a detector .*pickle"):
        damaged(detector, tmp_path / "run", file.getvalue()).state(0)
    assert "it ran" not in capsys.readouterr().out


def test_arrays_that_unfold_or_promise_too_much_are_refused(detector, tmp_path):
    with pytest.raises(InputError, match="unfold to more than 10 times"):
        damaged(detector, tmp_path / "bomb", zipped(bytes(2**25), zipfile.ZIP_DEFLATED)).state(0)
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (2**48,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with pytest.raises(InputError, match="no arrays of a detector"):
        damaged(detector, tmp_path / "promise", zipped(header.getvalue() + bytes(64))).state(0)


@pytest.mark.parametrize("label", ["../../outside", "a/b", "a\\b", "a\0b"])
def test_a_label_leads_out_of_no_run(tmp_path, label):
    run = RunFolder(tmp_path)
    for path in (run.of, run.forget):
        with pytest.raises(InputError, match="holds a path"):
            path(label)
    with pytest.raises(InputError, match="holds a path"):
        run.score_map("01", label)

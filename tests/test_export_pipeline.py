"""Exported pipelines give the maps of the detector that they were made from."""

import json
import shutil
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from epizoo import cli, models
from epizoo.detection import create_detector, fit_detector
from epizoo.detection.profiles.profile import Profile
from epizoo.export import export_pipeline, export_run, pipeline, verify
from epizoo.finished_run import normalisation_of
from epizoo.outputs import score_cohort
from epizoo.registry import MODELS, PROFILES, register_profile
from epizoo.run import Run
from epizoo.run_folder import RunFolder
from tests import people
from tests.consumer import run_consumer
from tests.encoders import encoder_2d, encoder_3d
from tests.raw_scans import CONTROLS, SHAPE, controls, raw_volume, scanned
from tests.small_cohort import SPACE, short_run
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json
from tfds_epilepsy.volumes import read_nifti


def fitted(encoder, folder, detector, channels=2, **options):
    """A normative model of several slabs."""
    bytes_a_slice = 4 * SHAPE[0] * SHAPE[1] * CONTROLS * 5
    return fit_detector(
        encoder,
        lambda: controls(channels),
        folder,
        detector,
        folds=3,
        slab_bytes=2 * bytes_a_slice,
        modalities=["T1w", "FLAIR"][:channels],
        **options,
    )


def score(folder, raw, mask, names=("T1w", "FLAIR")):
    volumes = {name: raw[..., c] for c, name in enumerate(names)}
    return tf.saved_model.load(folder).signatures["score"](**volumes, mask=mask)["score"].numpy()


@pytest.mark.parametrize(
    ("detector", "fwhm"),
    [
        *[("ocsvm", 0.0), ("ocsvm", 5.0), ("gaussian", 0.0), ("knn", 0.0)],
        *[("zscore", 0.0), ("flair", 5.0), ("signs", 5.0)],
    ],
)
def test_the_map_is_that_of_the_detector(detector, fwhm, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "RUN", 50)  # several runs a slice
    encoder = None if detector in ("zscore", "flair", "signs") else encoder_2d()
    normative = fitted(encoder, tmp_path / "detector", detector, fwhm=fwhm)
    folder = export_pipeline(normative, tmp_path / "pipeline", modalities=("T1w", "FLAIR"))
    patient, raw = scanned("p", 2, "patient", seed=99)
    expected = normative.score(patient)
    assert len(np.unique(expected)) > 500
    np.testing.assert_allclose(score(folder, raw, patient.brain_mask), expected, atol=1e-4)
    np.testing.assert_allclose(score(folder, patient.image, patient.brain_mask), expected, atol=1e-4)


def test_3d_patches_and_one_modality(tmp_path):
    normative = fitted(encoder_3d(), tmp_path / "detector", "ocsvm", channels=1)
    assert len(normative.manifest["slabs"]) > 1
    folder = export_pipeline(normative, tmp_path / "pipeline", modalities=("T1w",))
    patient, raw = scanned("p", 1, "patient", seed=99)
    got = score(folder, raw, patient.brain_mask, ("T1w",))
    np.testing.assert_allclose(got, normative.score(patient), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "detector", "view", "fwhm"),
    [
        ("vae", (7, 7), "reconstruction", "image", 0.0),
        ("vae", (7, 7), "reconstruction", "deviations", 0.0),
        ("synthetic", (9, 9, 9), "head", "image", 0.0),
        ("synthetic", (9, 9, 9), "signs", "image", 0.0),
        ("deviation", (9, 9, 9), "head", "deviations", 0.0),
        ("deviation", (9, 9, 9), "signs", "deviations", 0.0),
        ("deviation", (9, 9, 9), "signs", "deviations", 12.0),  # which is asked at every third voxel
        ("deviation", (9, 9, 9), "profiles", "deviations", 0.0),
    ],
)
def test_residuals_and_logits_of_a_model(tmp_path, name, shape, detector, view, fwhm):
    own = MODELS.get(name).config_for(["T1w", "FLAIR"], view)
    model = models.create(name, patch_shape=shape, latent_dim=4, **own)
    model.view.adapt(controls(2))
    normative = fitted(model, tmp_path / "detector", detector, fwhm=fwhm)
    assert normative.codes.stride == (3 if fwhm else 1)
    folder = export_pipeline(normative, tmp_path / "pipeline", modalities=("T1w", "FLAIR"))
    patient, raw = scanned("p", 2, "patient", seed=99)
    expected = normative.score(patient)
    rtol = 1e-4 if view == "deviations" else 1e-7  # small differences over small deviations
    np.testing.assert_allclose(score(folder, raw, patient.brain_mask), expected, rtol=rtol, atol=1e-4)


def test_profiles_give_their_map_and_how_rare_it_is(tmp_path):
    """All four of them, on slices through the ventricles."""
    normative = people.fit(tmp_path / "detector", "profiles", n=5, slab_bytes=2**20)
    assert len(normative.manifest["slabs"]) > 1
    folder = export_pipeline(
        normative, tmp_path / "pipeline", modalities=("T1w", "FLAIR"), normalisation="none"
    )
    signature = tf.saved_model.load(folder).signatures["score"]
    for number in (20, 21):
        one = people.from_template(number)
        one.image[20:26, 40:46, 1:5, 0] = 0.5  # grey matter by the ventricle
        t1, flair = np.moveaxis(one.image, -1, 0)
        got = signature(T1w=t1, FLAIR=flair, mask=one.brain_mask)
        expected = normative.score(one)
        np.testing.assert_allclose(got["score"], expected, rtol=1e-4, atol=1e-4)
        assert float(got["p"]) == pytest.approx(float(normative.tail.p(expected.max())), abs=1e-4)
    metadata = read_json(folder / "metadata.json")
    assert metadata["tail"]["location"] == normative.tail.location
    assert metadata["tail"]["level"] == pytest.approx(normative.tail.level(0.1))
    assert metadata["profiles"]["heterotopia"] == "grey matter in the white matter by the ventricle"
    card = (folder / "model_card.md").read_text()
    for words in (
        "Looked for: signs of dysplasia; ",
        "anywhere in the brain; it is 0.1 at a score of",
        "`p` ()",
    ):
        assert words in card


def test_a_fit_of_an_earlier_version_has_no_p(tmp_path):
    normative = fitted(None, tmp_path / "detector", "zscore")
    normative.tail = None
    folder = export_pipeline(normative, tmp_path / "pipeline", modalities=("T1w", "FLAIR"))
    metadata = read_json(folder / "metadata.json")
    assert list(metadata["signatures"]["score"]["outputs"]) == ["score"]
    assert metadata["tail"] is None


def test_a_profile_with_a_map_of_its_own_is_refused_by_name(tmp_path, monkeypatch):
    class Own(Profile):
        words = "anything"
        weights: ClassVar = {"FLAIR": 1}

        def __call__(self, deviations, names, inside, affine):
            return np.where(inside, deviations[..., names.index("FLAIR")], np.nan)

    monkeypatch.setattr(PROFILES, "registered", {})
    register_profile("own")(Own)
    normative = fitted(
        None, tmp_path / "detector", create_detector("profiles", profiles=["dysplasia", "own"])
    )
    with pytest.raises(InputError, match="profile 'own' makes a map of its own") as error:
        export_pipeline(normative, tmp_path / "pipeline", modalities=("T1w",))
    assert len(error.value.problems) == 2
    assert not list(tmp_path.glob("*pipeline*"))


def test_detectors_and_modalities_that_do_not_fit_are_refused(tmp_path):
    detector = create_detector("adjusted", detector="gaussian", covariates=["age"])
    normative = fitted(encoder_2d(), tmp_path / "detector", detector)
    with pytest.raises(InputError) as error:
        export_pipeline(normative, tmp_path / "pipeline", modalities=("T1w",))
    assert len(error.value.problems) == 2
    assert "'adjusted' has no form" in str(error.value)
    assert not (tmp_path / "pipeline").exists()


def test_own_volumes_in_0_to_1_are_not_normalised_again(tmp_path):
    """A pipeline that normalised them gave scores tens of standard deviations from the detector's."""
    own = [replace(c, image=(0.3 + 0.4 * c.image).astype(np.float32)) for c in controls(2)]
    detector = fit_detector(None, lambda: own, tmp_path / "own", "zscore", folds=3)
    assert detector.manifest["normalised"] == []
    folder = export_pipeline(detector, tmp_path / "pipeline", modalities=("T1w", "FLAIR"))
    patient, _ = scanned("p", 2, "patient", seed=99)
    patient = replace(patient, image=(0.3 + 0.4 * patient.image).astype(np.float32))
    expected = detector.score(patient)
    np.testing.assert_allclose(score(folder, patient.image, patient.brain_mask), expected, atol=1e-4)
    with pytest.raises(InputError, match=r"'unit' would change the controls' images.* take 'none'"):
        export_pipeline(detector, tmp_path / "x", modalities=("T1w", "FLAIR"), normalisation="unit")


def test_another_grid_is_refused(tmp_path):
    folder = export_pipeline(
        fitted(None, tmp_path / "detector", "flair"), tmp_path / "pipeline", modalities=("T1w", "FLAIR")
    )
    raw, mask = raw_volume((14, 17, 10), 2)
    with pytest.raises(TypeError, match=r"shape=\(14, 17, 9\)"):
        score(folder, raw, mask)


# === Runs ===


@pytest.fixture(scope="module")
def run(cohort, data_dir, tmp_path_factory):
    """Trained, fitted, scored and evaluated, on images in raw intensities."""
    run = Run(short_run(cohort), tmp_path_factory.mktemp("runs") / "run", data_dir=data_dir)
    run.evaluate()
    return run


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["export", *map(str, arguments)])


def test_a_run_as_pipeline_gives_what_epizoo_score_writes(run, cohort, data_dir, tmp_path):
    out = tmp_path / "pipeline"
    done = invoke(run.folder.path, out, "--what", "pipeline")
    assert done.exit_code == 0, done.exception
    score_cohort(run.folder.path, str(cohort), tmp_path / "scores", data_dir=data_dir)
    stem = cohort / "sub-p1" / "anat" / f"sub-p1_space-{SPACE}"
    raw = np.stack([read_nifti(f"{stem}_{name}.nii.gz")[0] for name in ("T1w", "FLAIR")], -1)
    mask = read_nifti(f"{stem}_desc-brain_mask.nii.gz")[0] > 0.5
    written = read_nifti(RunFolder(tmp_path / "scores").score_map("p1", SPACE))[0]
    np.testing.assert_allclose(score(out, raw, mask), written, rtol=1e-4, atol=1e-4)
    card = (out / "model_card.md").read_text()
    for words in ("siamese, ocsvm", "fitted on 5 controls", "sensitivity at rank 5", run.builder.fingerprint):
        assert words in card
    consumed = run_consumer(out / "use_it.py")
    assert consumed.stdout.startswith("(24, 26, 10)"), consumed.stderr


def test_a_run_as_encoder_knows_its_data(run, tmp_path):
    folder = export_run(run.folder.path, tmp_path / "encoder")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["modalities"] == ["T1w", "FLAIR"]
    assert (metadata["voxel_size"], metadata["normalisation"]) == (2.0, "unit")
    assert metadata["encoder"] == read_json(run.folder.detector / "manifest.json")["encoder"]
    assert metadata["run"]["data_hash"] == run.builder.fingerprint
    assert "of encoder and detector" in (folder / "model_card.md").read_text()
    encode = tf.saved_model.load(folder).signatures["encode"]
    patch = np.random.default_rng(0).random((3, 15, 15, 2), np.float32)
    codes = models.load_model(run.folder.model).encode(patch)
    np.testing.assert_allclose(encode(patch=patch)["latent"], codes, atol=1e-5)


def spoilt(run, tmp_path, *missing):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run.folder.path, folder.path)
    for name in missing:
        (folder.path / name).unlink()
    return folder


def test_an_unfinished_run_is_refused_with_all_that_is_missing(run, tmp_path):
    folder = spoilt(run, tmp_path, "metrics.json", "detector/manifest.json", "model.keras")
    with pytest.raises(InputError) as error:
        export_run(folder.path, tmp_path / "out")
    assert [problem.split("(no ")[1].split(")")[0] for problem in error.value.problems] == [
        "metrics.json",
        "detector/manifest.json",
        "model.keras",
    ]
    with pytest.raises(InputError, match="not a run"):
        export_run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.keras", "cannot be read as a model"),
        ("metadata.json", "not JSON"),
        ("detector/slab-000.npz", "missing or damaged"),
    ],
)
def test_a_corrupt_run_is_refused(run, tmp_path, name, message):
    folder = spoilt(run, tmp_path)
    (folder.path / name).write_bytes(b"PK\x03 nonsense")
    with pytest.raises(InputError, match=message):
        export_run(folder.path, tmp_path / "out", what="pipeline")
    assert not list(tmp_path.glob("*out*"))


def test_a_run_of_another_version_is_refused(run, tmp_path):
    folder = spoilt(run, tmp_path)
    metadata = read_json(folder.metadata)
    del metadata["split_hash"]
    write_json(folder.metadata, metadata)
    with pytest.raises(InputError, match="'split_hash'"):
        export_run(folder.path, tmp_path / "out")


def test_what_a_pipeline_has_no_form_for_is_refused(run, tmp_path):
    with pytest.raises(InputError) as error:
        export_run(run.folder.path, tmp_path / "out", what="pipeline", format="onnx", precision="bfloat16")
    assert len(error.value.problems) == 2
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError) as error:
        export_run(tmp_path / "nothing", tmp_path / "out", what="decoder")
    assert len(error.value.problems) == 3
    done = invoke(run.folder.path, tmp_path / "out")
    assert isinstance(done.exception, InputError)
    assert "exists already" in str(done.exception)


def test_normalisation_is_that_of_the_data(cohort, tmp_path):
    assert normalisation_of("phantom_2mm", ["T1w"]) == "unit"
    assert normalisation_of(str(cohort), ["T1w", "FLAIR"]) == "unit"
    anat = tmp_path / "sub-a" / "anat"
    for name, method in (("T1w", "match"), ("FLAIR", "zscore")):
        anat.mkdir(parents=True, exist_ok=True)
        (anat / f"sub-a_space-X_{name}.nii.gz").touch()
        write_json(anat / f"sub-a_space-X_{name}.json", {"Normalisation": {"method": method}})
    assert normalisation_of(str(tmp_path), ["T1w"]) == "none"
    assert normalisation_of(str(tmp_path), ["FLAIR"]) == "zscore"
    with pytest.raises(InputError, match="match, zscore"):
        normalisation_of(str(tmp_path), ["T1w", "FLAIR"])
    with pytest.raises(InputError, match="--normalisation"):
        normalisation_of(str(tmp_path / "gone"), ["T1w"])


def test_a_model_without_an_encoder_of_its_own_says_so(cohort, data_dir, tmp_path):
    run = Run(short_run(cohort, model="none", detector="flair"), tmp_path / "run", data_dir=data_dir)
    run.evaluate()
    with pytest.raises(InputError, match="--what pipeline"):
        export_run(run.folder.path, tmp_path / "encoder")
    folder = export_run(run.folder.path, tmp_path / "pipeline", what="pipeline")
    assert verify.verify(folder, ["T1w", "FLAIR"])
    assert "intensities, flair" in (folder / "model_card.md").read_text()

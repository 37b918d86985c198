"""Normative models: fitted slab by slab, calibrated, kept in a folder, loaded, refused."""

import copy
import json
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from scipy import ndimage

from epizoo.detection import FittedDetector, create_detector, fit_detector
from epizoo.detection import fitted as fitted_module
from epizoo.detection.codes import Homotopic, ViewCodes, encoder_fingerprint
from epizoo.detection.ocsvm import LocalOneClassSVM
from epizoo.maps.image import Image
from epizoo.maps.smoothing import smooth
from tests.exported import tiny_encoder
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

SHAPE = (9, 11, 7)
AFFINE = np.array([[2.0, 0, 0, -9], [0, 2, 0, -11], [0, 0, 2.5, -8], [0, 0, 0, 1]])


def subject(number, group="control", shape=SHAPE, modalities=2, wobble=0.05):
    """Smooth noise in an ellipsoid whose border differs a little between subjects."""
    rng = np.random.default_rng(number)
    noise = ndimage.gaussian_filter(rng.normal(size=(*shape, modalities)), (1, 1, 1, 0))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    mask = (grid**2).sum(-1) < 0.9 + wobble * rng.normal()
    image = np.where(mask[..., None], 0.5 + noise, 0).astype(np.float32)
    return Subject(f"{number:02d}", group, image, mask, np.zeros(shape, bool), AFFINE)


def controls(n=12):
    return [subject(number) for number in range(n)]


def fit(folder, encoder=None, subjects=None, **options):
    options = {"console": Console(file=StringIO()), "detector": LocalOneClassSVM(nu=0.1), **options}
    return fit_detector(encoder, lambda: subjects or controls(), folder, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("fit") / "detector")


def test_map_is_the_calibrated_score_of_each_voxel_alone(model):
    """The whole way by hand at one voxel: folds, mean, moderated variance, z."""
    people, patient, voxel = controls(), subject(99, "patient"), (4, 5, 3)
    mask = 2 * np.sum([s.brain_mask for s in people], axis=0) >= len(people)
    folds = np.empty(12, int)
    folds[np.random.default_rng(0).permutation(12)] = np.arange(12) % 10
    codes = np.stack([s.image[mask] for s in people], axis=1)
    scores = LocalOneClassSVM(nu=0.1).cross_scores(codes, folds)
    variance = np.zeros(SHAPE)
    variance[mask] = scores.var(1, ddof=1)
    moderated = (11 * variance + 10 * smooth(variance, mask, AFFINE, 8.0)) / 21
    raw = LocalOneClassSVM(nu=0.1).fit(codes).score(patient.image[mask][:, None])[:, 0]
    where = np.ravel_multi_index(voxel, SHAPE) == np.flatnonzero(mask)
    expected = (raw[where] - scores[where].mean(1)) / np.sqrt(moderated[voxel] * (1 + 1 / 12))
    np.testing.assert_allclose(model.score(patient)[voxel], expected[0], atol=1e-3)


def test_map_is_zero_outside_the_mask_of_the_model_and_of_the_subject(model):
    patient = subject(99, "patient")
    half = patient.brain_mask.copy()
    half[:4] = False
    score = model.score(replace(patient, brain_mask=half))
    assert score.dtype == np.float32
    assert score.shape == SHAPE
    assert (score[~(half & model.mask)] == 0).all()
    assert np.count_nonzero(score) == np.count_nonzero(half & model.mask)


def test_the_mask_is_the_brain_of_at_least_half_of_the_controls(model):
    votes = np.sum([s.brain_mask for s in controls()], axis=0)
    np.testing.assert_array_equal(model.mask, votes >= 6)
    assert len(np.unique(votes)) > 5  # the masks do differ


def test_a_change_scores_higher_and_the_same_subject_unchanged_does_not(model):
    patient = subject(99, "patient")
    image = patient.image.copy()
    image[3:6, 4:7, 2:5] += 0.8
    change = model.score(replace(patient, image=image)) - model.score(patient)
    assert change[4, 5, 3] > 1
    assert (change[:3] == 0).all()


@pytest.mark.parametrize("fwhm", [0.0, 5.0])
def test_new_controls_have_z_of_mean_0_and_deviation_1_and_uniform_p(tmp_path, fwhm):
    people = [subject(100 + n, wobble=0) for n in range(110)]
    model = fit(tmp_path, subjects=people[:50], fwhm=fwhm)
    scores = [model.score(person) for person in people[50:]]
    z = np.concatenate([score[model.mask] for score in scores])
    p = np.concatenate([model.p_values(score)[model.mask] for score in scores])
    assert abs(z.mean()) < 0.2
    assert 0.8 < z.std() < 1.2
    for level in (0.02, 0.1, 0.5):
        assert 0.6 * level < np.mean(p < level) < 1.4 * level
    assert p.min() > 0
    assert (model.p_values(scores[0])[scores[0] == 0] == 1).all()


def test_results_do_not_depend_on_the_slabs_or_the_order_of_the_controls(model, tmp_path):
    patient = subject(99, "patient")
    thin = fit(tmp_path / "thin", slab_bytes=1)
    assert len(thin.manifest["slabs"]) > len(model.manifest["slabs"])
    np.testing.assert_array_equal(thin.score(patient), model.score(patient))
    turned = fit(tmp_path / "turned", subjects=controls()[::-1])
    np.testing.assert_allclose(turned.score(patient), model.score(patient), atol=2e-3)


def test_mirrored_controls_and_subject_give_the_mirrored_map(model, tmp_path):
    def mirror(s):
        return replace(s, image=s.image[::-1].copy(), brain_mask=s.brain_mask[::-1].copy())

    mirrored = fit(tmp_path, subjects=[mirror(s) for s in controls()])
    patient = subject(99, "patient")
    np.testing.assert_allclose(mirrored.score(mirror(patient)), model.score(patient)[::-1], atol=1e-4)


def test_smoothing_makes_the_map_smoother(model, tmp_path):
    def roughness(model):
        score = model.score(subject(99))
        return np.abs(np.diff(score, axis=0))[3:6].mean() / score[3:6].std()

    assert roughness(fit(tmp_path, fwhm=5.0)) < 0.8 * roughness(model)


def test_a_killed_fit_goes_on_at_its_slab(model, tmp_path, monkeypatch):
    """SIGKILL in the middle of a slab: the slabs before it are not fitted again, the result is the same."""
    killed = f"""
import os, signal
from epizoo.detection.ocsvm import LocalOneClassSVM
from tests.test_fitted import fit
fitted, original = [], LocalOneClassSVM.fit
def until_killed(self, codes):
    if len(fitted) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    fitted.append(len(codes))
    return original(self, codes)
LocalOneClassSVM.fit = until_killed
fit({str(tmp_path / "detector")!r}, slab_bytes=1)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="no fitted detector"):
        FittedDetector.load(tmp_path / "detector", None)
    fitted, original = [], LocalOneClassSVM.fit

    def counted(self, codes):
        fitted.append(len(codes))
        return original(self, codes)

    monkeypatch.setattr(LocalOneClassSVM, "fit", counted)
    resumed = fit(tmp_path / "detector", slab_bytes=2**30)  # the plan's own slabs hold
    assert len(fitted) == len(resumed.manifest["slabs"]) - 3
    patient = subject(99, "patient")
    np.testing.assert_array_equal(resumed.score(patient), model.score(patient))
    assert not list((tmp_path / "detector").glob("**/*.npy"))


def test_a_finished_fit_is_loaded_and_not_fitted_again(model, monkeypatch):
    monkeypatch.setattr(fitted_module._Fit, "slab", None)
    again = fit(model.folder)
    assert again.subjects == [s.subject for s in controls()]


def tiny_model():
    import epizoo

    return epizoo.create("synthetic", patch_shape=(9, 9, 9), latent_dim=4, filters=4, seed=0)


@pytest.mark.parametrize(("fwhm", "stride"), [(0.0, 1), (9.9, 1), (10.0, 3)])  # voxels of 2.5 mm at most
def test_the_signs_ask_a_model_at_every_third_voxel_where_the_map_is_smoothed_more(tmp_path, fwhm, stride):
    asked = fit(tmp_path, tiny_model(), controls(4), detector="signs", fwhm=fwhm, modalities=["T1w", "FLAIR"])
    assert asked.manifest["stride"] == asked.codes.stride == stride
    patient = subject(99, "patient")
    again = FittedDetector.load(tmp_path, tiny_model())
    np.testing.assert_array_equal(again.score(patient), asked.score(patient))


def test_a_fit_from_before_there_were_strides_asks_at_every_voxel_as_it_did(tmp_path, monkeypatch):
    options = {"detector": "signs", "fwhm": 10.0, "modalities": ["T1w", "FLAIR"]}
    patient = subject(99, "patient")
    with monkeypatch.context() as patched:
        patched.setattr(fitted_module, "SPACING", 0.0)
        before = fit(tmp_path / "old", tiny_model(), controls(4), **options)
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["stride"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    expected = before.score(patient)
    assert not np.allclose(
        fit(tmp_path / "new", tiny_model(), controls(4), **options).score(patient), expected
    )
    loaded = FittedDetector.load(tmp_path / "old", tiny_model())
    taken_up = fit(tmp_path / "old", tiny_model(), controls(4), **options)
    for one in (loaded, taken_up):
        assert one.manifest == manifest
        np.testing.assert_array_equal(one.score(patient), expected)


def test_another_fit_in_the_folder_is_refused_unless_overwritten(tmp_path):
    fit(tmp_path / "detector", subjects=controls(4))
    with pytest.raises(InputError, match="differs in subjects, images"):
        fit(tmp_path / "detector", subjects=controls(5))
    with pytest.raises(InputError, match="differs in config"):
        fit(tmp_path / "detector", subjects=controls(4), detector=LocalOneClassSVM(nu=0.3))
    assert len(fit(tmp_path / "detector", subjects=controls(5), overwrite=True).subjects) == 5


def test_files_hold_no_pickle_and_load_in_another_process(model, tmp_path):
    patient = subject(99, "patient")
    np.savez(tmp_path / "patient.npz", image=patient.image, mask=patient.brain_mask)
    code = f"""
import numpy as np
from epizoo.detection import FittedDetector
from tfds_epilepsy.volumes import Subject
stored = np.load("patient.npz")
model = FittedDetector.load({str(model.folder)!r}, None)
s = Subject("x", "patient", stored["image"], stored["mask"], stored["mask"], model.affine)
np.save("score.npy", model.score(s))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    np.testing.assert_array_equal(np.load(tmp_path / "score.npy"), model.score(patient))
    for path in model.folder.glob("*.npz"):
        np.load(path, allow_pickle=False)
    assert sorted(path.suffix for path in model.folder.iterdir()) == [".json", ".npz", ".npz"]


def test_a_damaged_file_is_named(model, tmp_path):
    import shutil

    folder = shutil.copytree(model.folder, tmp_path / "copy")
    path = folder / "slab-000.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    damaged = FittedDetector.load(folder, None)
    with pytest.raises(InputError, match=r"slab-000\.npz: missing or damaged"):
        damaged.score(subject(99))
    (folder / "manifest.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        FittedDetector.load(folder, None)


def test_a_detector_of_codes_can_be_copied_and_sent_to_a_process(tmp_path):
    fitted, patient = fit(tmp_path / "fit", tiny_encoder(), folds=3), subject(50)
    expected = fitted.score(patient)
    for again in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(again.score(patient), expected)


def test_another_grid_or_other_modalities_are_refused(model):
    with pytest.raises(InputError, match=r"sub-99: grid \(9, 11, 8\)"):
        model.score(subject(99, shape=(9, 11, 8)))
    with pytest.raises(InputError, match="sub-99: grid"):
        model.score(replace(subject(99), affine=AFFINE + np.eye(4)))
    with pytest.raises(InputError, match=r"sub-99: image \(9, 11, 7, 1\)"):
        model.score(subject(99, modalities=1))


def test_other_codes_are_refused(model):
    with pytest.raises(InputError, match="another encoder"):
        FittedDetector.load(model.folder, ViewCodes([Image(fwhm=4.0)]))


def test_all_problems_of_the_controls_are_listed_at_once(tmp_path):
    nan = subject(2)
    nan.image[4, 5, 3] = np.nan
    bad = [
        subject(0),
        subject(1, "patient"),
        nan,
        subject(0),
        subject(3, shape=(9, 11, 8)),
        replace(subject(4), brain_mask=np.zeros(SHAPE, bool)),
    ]
    with pytest.raises(InputError) as raised:
        fit(tmp_path / "detector", subjects=bad)
    assert len(raised.value.problems) == 5
    for part in ("sub-01 is a patient", "sub-02: 2 values", "sub-00 stands twice", "sub-03: grid", "sub-04"):
        assert part in str(raised.value)
    assert not (tmp_path / "detector").exists()


def test_two_controls_are_too_few_and_three_suffice(tmp_path):
    with pytest.raises(InputError, match="2 controls: at least 3"):
        fit(tmp_path / "two", subjects=controls(2))
    score = fit(tmp_path / "three", subjects=controls(3)).score(subject(99))
    assert np.isfinite(score).all()
    assert np.abs(score).max() < 1e3


def test_identical_controls_give_finite_maps(tmp_path):
    twins = [replace(subject(0), subject=f"{n}") for n in range(6)]
    fitted = fit(tmp_path, subjects=twins)
    score = fitted.score(subject(99))
    assert np.isfinite(score).all()
    np.testing.assert_allclose(fitted.sd[fitted.mask], 1e-4 * np.sqrt(1 + 1 / 6), rtol=1e-5)
    assert score.max() > 0


@pytest.mark.parametrize("patch_shape", [(3, 5), (5, 3, 3)])
def test_codes_of_an_encoder_are_those_of_its_patches(tmp_path, patch_shape):
    import keras

    def build(seed):
        keras.utils.set_random_seed(seed)
        patch = keras.Input((*patch_shape, 2), name="patch")
        conv = keras.layers.Conv2D if len(patch_shape) == 2 else keras.layers.Conv3D
        x = keras.layers.Flatten()(conv(4, 3, activation="relu")(patch))
        return keras.Model(patch, keras.layers.Dense(3, name="latent")(x))

    encoder, people, voxel = build(0), controls(6), (4, 5, 3)
    thin = fit(tmp_path / "thin", encoder, people, slab_bytes=1)
    thick = fit(tmp_path / "thick", encoder, people)
    np.testing.assert_allclose(thin.score(subject(99)), thick.score(subject(99)), atol=1e-2)

    def latent(s):
        half = [n // 2 for n in patch_shape] + [0] * (3 - len(patch_shape))
        window = tuple(slice(v - h, v + h + 1) for v, h in zip(voxel, half, strict=True))
        return encoder(s.image[window].reshape(1, *patch_shape, 2)).numpy()

    codes = np.stack([latent(s) for s in people], axis=1)
    raw = LocalOneClassSVM(nu=0.1).fit(codes).score(latent(subject(99))[None])[0, 0]
    z = (raw - thick.mean[voxel]) / thick.sd[voxel]
    np.testing.assert_allclose(thick.score(subject(99))[voxel], z, atol=1e-2)

    FittedDetector.load(thick.folder, keras.models.clone_model(encoder, clone_function=lambda layer: layer))
    assert encoder_fingerprint(build(0)) == encoder_fingerprint(encoder)
    with pytest.raises(InputError, match="another encoder"):
        FittedDetector.load(thick.folder, build(1))


@pytest.mark.parametrize("name", ["pooled", "patient"])
def test_detectors_of_the_whole_brain_do_not_depend_on_the_slabs(tmp_path, name):
    detector = create_detector(name, samples=200)
    thick = fit(tmp_path / "thick", detector=detector)
    score = thick.score(subject(99))
    thin = fit(tmp_path / "thin", detector=create_detector(name, samples=200), slab_bytes=1)
    np.testing.assert_allclose(thin.score(subject(99)), score, atol=1e-4)
    loaded = FittedDetector.load(tmp_path / "thick", None)
    np.testing.assert_array_equal(loaded.score(subject(99)), score)
    image = subject(99).image.copy()
    image[4, 5, 3] += 3
    assert loaded.score(replace(subject(99), image=image))[4, 5, 3] > score[4, 5, 3] + 1


def test_position_beside_the_code_tells_places_apart(tmp_path):
    """Controls are dark on the left and bright on the right; a bright spot on the left is out of place."""

    def sided(s):
        image = s.image * 0.1
        image[5:] += 1
        return replace(s, image=np.where(s.brain_mask[..., None], image, 0).astype(np.float32))

    people, patient = [sided(s) for s in controls()], sided(subject(99))
    image = patient.image.copy()
    image[2, 5, 3] += 1
    gains = []
    for position in (0.0, 3.0):
        detector = create_detector("pooled", samples=400, position=position)
        model = fit(tmp_path / str(position), subjects=people, detector=detector)
        gains.append((model.score(replace(patient, image=image)) - model.score(patient))[2, 5, 3])
    assert gains[1] > gains[0]


def test_neighbours_are_further_samples_of_a_voxel(tmp_path):
    people, voxel = controls(), (4, 5, 3)
    model = fit(tmp_path / "fit", subjects=people, neighbours=True)
    steps = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (0, -1, 0), (0, 0, -1)]
    samples = np.array([[p.image[tuple(np.add(voxel, s))] for s in steps] for p in people])
    patient = subject(99)
    expected = LocalOneClassSVM(nu=0.1).fit(samples.reshape(1, -1, 2)).score(patient.image[voxel][None, None])
    raw = model.score(patient)[voxel] * model.sd[voxel] + model.mean[voxel]
    np.testing.assert_allclose(raw, expected[0, 0], atol=1e-4)
    thin = fit(tmp_path / "thin", subjects=people, neighbours=True, slab_bytes=1)
    np.testing.assert_array_equal(thin.score(patient), model.score(patient))
    with pytest.raises(InputError, match="one for the brain"):
        fit(tmp_path / "pooled", detector="pooled", neighbours=True)


def test_homotopic_codes_are_zero_in_symmetric_brains_and_turn_with_the_mirror():
    person = subject(0, wobble=0)
    codes, z = Homotopic(ViewCodes([Image()])), slice(1, 5)
    symmetric = person.image + person.image[::-1]
    assert (codes.at(symmetric, person.brain_mask, z) == 0).all()
    volume = np.zeros((*SHAPE, 2), np.float32)
    volume[:, :, z][person.brain_mask[:, :, z]] = codes.at(person.image, person.brain_mask, z)
    np.testing.assert_array_equal(volume, -volume[::-1])


def test_covariates_of_the_subjects_reach_the_detector(tmp_path):
    """Intensity follows age; an old subject is abnormal only where its age is not known."""

    def aged(number, age, told=True):
        s = subject(number, wobble=0)
        image = np.where(s.brain_mask[..., None], s.image + 0.05 * age, 0).astype(np.float32)
        return replace(s, image=image, age=age if told else float("nan"))

    people = [aged(number, 20 + 2 * number) for number in range(16)]
    detector = create_detector("adjusted", detector="gaussian", covariates=["age"])
    model = fit(tmp_path, subjects=people, detector=detector)
    told, untold = (model.score(aged(99, 70, told))[4, 5, 3] for told in (True, False))
    assert untold > told + 1
    assert model.manifest["covariates"]["age"][1] == "22.0"


def test_the_residual_at_the_centre_of_each_patch_is_scored(tmp_path):
    import keras

    from epizoo.detection.reconstruction import Reconstruction

    keras.utils.set_random_seed(0)
    patch = keras.Input((5, 5, 2), name="patch")
    encoder = keras.Model(patch, keras.layers.Dense(3, name="latent")(keras.layers.Flatten()(patch)))
    code = keras.Input((3,))
    decoder = keras.Model(code, keras.layers.Reshape((5, 5, 2))(keras.layers.Dense(50)(code)))

    class Autoencoder:
        pass

    model = Autoencoder()
    model.encoder, model.decoder, model.name = encoder, decoder, "autoencoder"
    person, voxel = subject(0), (4, 5, 3)
    codes = Reconstruction().codes(model)
    residuals = codes.at(person.image, person.brain_mask, slice(3, 4))
    where = np.argwhere(person.brain_mask[:, :, 3]).tolist().index([4, 5])
    made = decoder(encoder(person.image[2:7, 3:8, 3][None])).numpy()[0, 2, 2]
    np.testing.assert_allclose(residuals[where], person.image[voxel] - made, atol=1e-5)
    score = fit(tmp_path, model, controls(4), detector="reconstruction").score(person)
    assert np.isfinite(score).all()
    with pytest.raises(InputError, match="no decoder"):
        fit(tmp_path / "other", encoder, controls(4), detector="reconstruction")


def test_the_logit_of_the_model_itself_is_scored(tmp_path):
    import epizoo
    from epizoo.detection.head import Head

    model = epizoo.create("synthetic", patch_shape=(9, 9, 9), latent_dim=4, filters=4)
    person = subject(0)
    logits = Head().codes(model).at(person.image, person.brain_mask, slice(3, 4))
    where = np.argwhere(person.brain_mask[:, :, 3])
    padded = np.pad(person.image, [(4, 4)] * 3 + [(0, 0)])
    patches = np.stack([padded[i : i + 9, j : j + 9, 3:12] for i, j in where])
    np.testing.assert_allclose(logits, model.head(model.encode(patches)), atol=1e-5)
    score = fit(tmp_path, model, controls(4), detector="head").score(person)
    assert np.isfinite(score).all()
    with pytest.raises(InputError, match="no head"):
        fit(tmp_path / "other", epizoo.create("siamese", patch_shape=(5, 5)), controls(4), detector="head")

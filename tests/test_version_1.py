"""Detectors that were fitted before there were views still open; a fit that was not finished begins again."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

import epizoo
from epizoo.detection import FittedDetector, fit_detector
from tests.people import person
from tfds_epilepsy.errors import InputError

MODALITIES = ["T1w", "FLAIR"]


def people(n):
    return [replace(person(seed), subject=f"{seed:02d}") for seed in range(n)]


def deviation():
    model = epizoo.create(
        "deviation", patch_shape=(9, 9, 9), channels=3, latent_dim=4, filters=4, modalities=MODALITIES
    )
    model.view.adapt(people(6))
    return model


def earlier_name(codes):
    """What version 1 called codes: class, version and attributes; of an encoder, its weights and controls."""

    def of_class(name, version, **attributes):
        return hashlib.sha256(json.dumps([name, version, attributes], sort_keys=True).encode()).hexdigest()[
            :16
        ]

    if codes.encoded is None:
        (view,) = codes.views
        return {
            "image": lambda: of_class("Intensities", 1, fwhm=view.fwhm),
            "signs": lambda: of_class("SignMaps", 3, inner=None),
            "tissue": lambda: of_class("GreyMatter", 1, fwhm=view.fwhm),
            "junction_extension": lambda: of_class("JunctionExtensionMaps", 1),
        }[view.name]()
    view, digest = codes.encoded.view, hashlib.sha256()
    for array in (view.mask_, view.count_, view.mean_, view.squares_, view.prior_, view.images_, view.spread):
        digest.update(np.ascontiguousarray(array).tobytes())
    both = codes.encoded.encoder_fingerprint + digest.hexdigest()[:16]
    inner = hashlib.sha256(both.encode()).hexdigest()[:16]
    return of_class("SignMaps", 3, inner=inner) if codes.views else inner


def as_version_1(fitted):
    """Its manifest in the words of version 1."""
    path = fitted.folder / "manifest.json"
    stored = json.loads(path.read_text())
    names = {"channels", "code_size", "codes", "normalised"}
    earlier = {name: value for name, value in stored.items() if name not in names}
    earlier |= {"version": 1, "modalities": stored["channels"], "features": stored["code_size"]}
    earlier["encoder"] = earlier_name(fitted.codes)
    if stored["detector"] == "signs":
        earlier["config"] = {"modalities": MODALITIES}
    path.write_text(json.dumps(earlier))


CASES = [
    ("zscore", None),
    ("signs", None),
    ("spm", None),
    ("junction_extension", None),
    ("signs", deviation),
    ("head", deviation),
]


@pytest.mark.parametrize(("detector", "model"), CASES)
def test_a_detector_of_an_earlier_version_opens_and_scores_the_same(tmp_path, detector, model):
    model = None if model is None else model()
    arguments = (model, lambda: people(6), tmp_path / "detector", detector)
    fitted = fit_detector(*arguments, modalities=MODALITIES, folds=3)
    expected = fitted.score(people(8)[-1])
    as_version_1(fitted)
    again = FittedDetector.load(tmp_path / "detector", model)
    np.testing.assert_array_equal(again.score(people(8)[-1]), expected)
    taken_up = fit_detector(*arguments, modalities=MODALITIES, folds=3)  # as a run does that goes on
    np.testing.assert_array_equal(taken_up.score(people(8)[-1]), expected)
    if model is not None:
        model.view.adapt(people(7))
        with pytest.raises(InputError, match="another encoder or on other maps"):
            FittedDetector.load(tmp_path / "detector", model)


def test_a_fit_that_an_earlier_version_left_unfinished_begins_again(tmp_path):
    folder = tmp_path / "detector"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps({"version": 1, "slabs": [[0, 2]]}))
    (folder / "slab-000.npz").write_bytes(b"of another version")
    fitted = fit_detector(None, lambda: people(6), folder, "zscore", folds=3)
    assert np.isfinite(fitted.score(people(8)[-1])).all()

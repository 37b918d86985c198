"""The installed contracts: all detectors keep theirs, and what breaks one is named."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from epizoo import registry
from epizoo.detection import Detector
from epizoo.detection.classical import ZScore
from epizoo.maps.image import Image
from epizoo.registry import DETECTORS, VIEWS, register_detector
from epizoo.testing import check_detector, check_view
from tfds_epilepsy.errors import InputError


@pytest.mark.parametrize("name", list(DETECTORS.own))
def test_detector_keeps_the_contract(name):
    check_detector(name, code_size=1 if name == "head" else 6)


def broken_detectors():
    class Flipped(ZScore):
        def score(self, codes, **covariates):
            return -super().score(codes)

    class Leaking(ZScore):
        def cross_scores(self, codes, folds, **covariates):
            return self.fit(codes).score(codes)

    class Forgetful(ZScore):
        def state(self):
            return {"mean_": self.mean_, "sd_": self.sd_ + 1}

    return [
        (Flipped, "far_codes_score_higher"),
        (Leaking, "controls_are_scored_without_their_fold"),
        (Forgetful, "comes_back_from_its_state"),
    ]


@pytest.mark.parametrize(("kind", "check"), broken_detectors(), ids=lambda one: getattr(one, "__name__", one))
def test_a_detector_that_breaks_the_contract_is_told_where(monkeypatch, kind, check):
    monkeypatch.setattr(kind, "name", "broken", raising=False)
    monkeypatch.setitem(DETECTORS.registered, "broken", kind)
    with pytest.raises(AssertionError) as error:
        check_detector("broken")
    assert any(check in note for note in error.value.__notes__)


def test_a_view_that_breaks_the_contract_is_told_where(monkeypatch):
    class Leaking(Image):
        name = "broken"

        def __call__(self, subject):
            return subject.image + np.float32(0.1)

    monkeypatch.setitem(VIEWS.registered, "broken", Leaking)
    with pytest.raises(AssertionError) as error:
        check_view("broken")
    assert "makes_named_maps" in error.value.__notes__[0]


def test_a_name_is_given_once_and_beside_its_decorator():
    with pytest.raises(InputError, match=r"'zscore' is epizoo.detection.classical:ZScore already"):
        register_detector("zscore")(type("Other", (Detector,), {}))
    with pytest.raises(
        InputError, match=r"write the name beside the decorator, @register_detector\('name'\)"
    ):
        register_detector(Detector)
    assert register_detector("zscore")(ZScore) is ZScore
    with pytest.raises(InputError, match="unknown detector 'nobody'"):
        DETECTORS.get("nobody")


def test_a_name_of_two_installed_packages_is_refused_where_it_is_asked_for(monkeypatch):
    both = tuple(EntryPoint("twice", f"zoo_{n}:Twice", "epizoo.detectors") for n in "ab")
    monkeypatch.setattr(registry, "_entry_points", lambda group: {"twice": both})
    assert DETECTORS.get("zscore") is ZScore
    with pytest.raises(InputError, match=r"several installed packages \(zoo_a:Twice, zoo_b:Twice\)"):
        DETECTORS.get("twice")

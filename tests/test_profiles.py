"""Profiles: their sums, their places in the template, and the detector that holds the rarest to be it."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import tensorflow as tf

from epizoo import registry
from epizoo.detection import create_detector
from epizoo.detection.codes import ViewCodes
from epizoo.detection.explained import Explained
from epizoo.detection.profiles.profile import Profile, create_profile
from epizoo.maps import create_view
from epizoo.maps.smoothing import smooth
from epizoo.registry import PROFILES, register_profile
from tests.people import fit, from_template, person
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import load_template

NAMES = ("T1w", "FLAIR", "junction", "gm", "wm", "csf", "model")


class Spot(Profile):
    """One sign, everywhere."""

    name = "spot"
    words = "a bright spot"
    weights = {"FLAIR": 3, "T1w": -4}  # noqa: RUF012
    fwhm = 4.0


class Half(Spot):
    """In the lower half of the grid's first axis and one plane more, with the difference of the sides."""

    mirrored = True

    def region(self, shape, affine):
        return np.arange(shape[0])[:, None, None] < shape[0] // 2 + np.ones(shape, int)


@pytest.fixture
def deviations():
    """Drawn maps of T1w, FLAIR and csf on an odd, anisotropic grid, in a brain full of holes."""
    one = person()
    drawn = np.random.default_rng(1).normal(size=(*one.brain_mask.shape, 3)).astype(np.float32)
    return drawn, ("T1w", "FLAIR", "csf"), one.brain_mask, one.affine


# === Profile ===


def test_weights_have_norm_1_among_the_maps_that_are_there():
    np.testing.assert_allclose(Spot().weights_of(["T1w", "FLAIR", "csf"]), [-0.8, 0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(Spot().weights_of(["FLAIR"]), [1])
    assert np.linalg.norm(create_profile("dysplasia").weights_of(NAMES)) == pytest.approx(1)


def test_a_map_is_the_smoothed_sum_in_units_of_its_own_deviation(deviations):
    maps, names, inside, affine = deviations
    got = Spot()(maps, names, inside, affine)
    summed = smooth(-0.8 * maps[..., 0] + 0.6 * maps[..., 1], inside, affine, 4.0)
    np.testing.assert_allclose(got[inside], summed[inside] / summed[inside].std(), rtol=1e-4, atol=1e-5)
    assert np.isnan(got[~inside]).all()
    np.testing.assert_allclose(Spot()(5 * maps, names, inside, affine), got, rtol=1e-4, atol=1e-5)


def test_a_region_takes_nothing_from_outside_of_it(deviations):
    maps, names, inside, affine = deviations
    where = inside & Half().region(inside.shape, affine)
    got = Half()(maps, names, inside, affine)
    np.testing.assert_array_equal(np.isfinite(got), where)
    maps[~where] = 1000
    np.testing.assert_array_equal(Half()(maps, names, inside, affine), got)


def test_a_mirrored_profile_adds_the_difference_of_the_sides(deviations):
    maps, names, inside, affine = deviations

    class Mirrored(Spot):
        mirrored = True

    got = Mirrored()(maps, names, inside, affine)
    summed = smooth(maps @ Spot().weights_of(names), inside, affine, 4.0)
    for x, y, z in np.argwhere(inside):
        other = len(inside) - 1 - x
        if inside[other, y, z]:
            summed[x, y, z], summed[other, y, z] = (
                (2 * summed[x, y, z] - summed[other, y, z], 2 * summed[other, y, z] - summed[x, y, z])
                if x < other
                else (summed[x, y, z], summed[other, y, z])
            )
    np.testing.assert_allclose(got[inside], summed[inside] / summed[inside].std(), rtol=1e-4, atol=1e-5)


def test_a_brain_that_lies_outside_of_the_region_has_no_map(deviations):
    """Its standard deviation was that of no voxel: a warning, which is an error here."""
    maps, names, inside, affine = deviations
    inside = inside & ~Half().region(inside.shape, affine)
    assert np.isnan(Half()(maps, names, inside, affine)).all()
    assert np.isnan(Half().in_graph(tf.constant(maps), names, tf.constant(inside), affine)).all()


def test_a_constant_map_is_not_divided_by_nothing(deviations):
    maps, names, inside, affine = deviations
    assert not Spot()(np.zeros_like(maps), names, inside, affine)[inside].any()


@pytest.mark.parametrize("profile", [Spot(), Half(), *(create_profile(name) for name in PROFILES.own)])
def test_the_form_in_a_graph_gives_the_same_map(profile):
    one = person(shape=(11, 9, 7), zooms=(5.0, 7.0, 4.0))
    one.affine[:3, 3] = [-25, -40, -25]  # both hippocampi, and the ventricles
    maps = np.random.default_rng(1).normal(size=(*one.brain_mask.shape, 7)).astype(np.float32)
    expected = profile(maps, NAMES, one.brain_mask, one.affine)
    assert np.isfinite(expected).sum() > 20
    assert profile.has_graph
    got = profile.in_graph(tf.constant(maps), NAMES, tf.constant(one.brain_mask), one.affine)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_map_of_ones_own_has_no_graph_unless_it_brings_one():
    class Own(Spot):
        def __call__(self, deviations, names, inside, affine):
            return deviations[..., 0]

    class WithGraph(Own):
        def in_graph(self, deviations, names, inside, affine):
            return deviations[..., 0]

    assert not Own().has_graph
    assert WithGraph().has_graph


def test_what_is_looked_for_is_told_in_words():
    assert create_profile("dysplasia").signs(["T1w", "FLAIR", "junction", "csf", "model"]) == {
        "T1w": ("darker T1w", -1),
        "FLAIR": ("brighter FLAIR", 1),
        "junction": ("blurred junction", 1),
        "model": ("model", 1),
    }
    assert create_profile("loss").signs(["gm", "csf"]) == {"csf": ("more fluid", 1)}


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (NAMES, ["dysplasia", "mesial_temporal", "loss", "heterotopia"]),
        (("T1w", "junction", "csf"), ["dysplasia", "mesial_temporal", "loss"]),
        (("T1w", "FLAIR", "junction"), ["dysplasia"]),
        (("gm",), ["heterotopia"]),
        (("wm",), []),
    ],
)
def test_a_profile_whose_maps_are_missing_is_not_used(names, used):
    assert [name for name in PROFILES.own if create_profile(name).used(names)] == used


# === Places ===


@pytest.fixture(scope="module")
def template():
    return load_template(2)


def at(template, *mm):
    affine = np.linalg.inv(template.affine)
    return tuple(np.rint(affine[:3, :3] @ mm + affine[:3, 3]).astype(int))


def test_dysplasia_and_loss_are_everywhere(template):
    for name in ("dysplasia", "loss"):
        assert create_profile(name).region(template.shape, template.affine) is None


def test_mesial_temporal_sclerosis_is_looked_for_in_both_hippocampi(template):
    region = create_profile("mesial_temporal").region(template.shape, template.affine)
    for side in (-1, 1):
        for place in ((26, -12, -20), (30, -22, -14), (26, -36, -5)):  # head, body, tail
            assert region[at(template, side * place[0], *place[1:])]
        for place in ((28, -20, 10), (60, -20, -15), (28, 30, -15), (28, -70, -10), (30, -20, 55)):
            assert not region[at(template, side * place[0], *place[1:])]
    assert not region[at(template, 0, -20, -15)]
    millilitres = region.sum() * 8 / 1000
    assert 25 < millilitres < 70  # tubes of 24 mm; the hippocampi have 8
    np.testing.assert_array_equal(region, region[::-1])


def test_heterotopia_is_looked_for_around_the_lateral_ventricles(template):
    region = create_profile("heterotopia").region(template.shape, template.affine)
    for side in (-1, 1):
        for place in ((14, 18, 12), (22, -10, 26), (28, -40, 14)):  # horn in front, body, atrium
            assert region[at(template, side * place[0], *place[1:])]
        for place in ((50, -20, 40), (40, 40, 0), (15, -80, 10), (25, 0, 60), (25, -20, -40)):
            assert not region[at(template, side * place[0], *place[1:])]
    assert 0.05 < region[template.brain_mask].mean() < 0.3
    assert (region == region[::-1])[template.brain_mask].mean() > 0.95


def test_places_are_those_of_the_world_on_any_grid(template):
    coarse = np.diag([4.0, 4, 4, 1])
    coarse[:3, 3] = template.affine[:3, 3] + 1
    for name in ("mesial_temporal", "heterotopia"):
        fine = create_profile(name).region(template.shape, template.affine)
        shape = tuple(n // 2 for n in template.shape)
        found = create_profile(name).region(shape, coarse)
        share = fine[: 2 * shape[0], : 2 * shape[1], : 2 * shape[2]]
        share = share.reshape(shape[0], 2, shape[1], 2, shape[2], 2).mean((1, 3, 5))
        assert (found == (share >= 0.5)).mean() > 0.97


def test_a_grid_without_ventricles_has_nowhere_to_look_for_heterotopia():
    """The distance from no ventricle was a small number in a corner."""
    affine = np.diag([2.0, 2, 3, 1])
    affine[:3, 3] = [20, 20, 50]
    assert not create_profile("heterotopia").region((14, 17, 9), affine).any()


# === Registry ===


def test_a_profile_of_ones_own_is_used_by_its_name(monkeypatch):
    monkeypatch.setattr(PROFILES, "registered", {})
    register_profile("bright_spot")(Spot)
    assert Spot.name == "bright_spot"
    detector = create_detector("profiles", profiles=["bright_spot", "loss"])
    detector.told(ViewCodes([create_view("signs", ["T1w", "FLAIR"]), create_view("tissue")]))
    assert [kind.name for kind in detector.kinds] == ["bright_spot", "loss"]
    with pytest.raises(InputError, match="profile 'loss' is epizoo"):
        register_profile("loss")(type("Other", (Profile,), {}))


def test_a_profile_of_an_installed_package_is_found(monkeypatch):
    entry = EntryPoint("own_spot", "tests.test_profiles:Half", "epizoo.profiles")
    monkeypatch.setattr(PROFILES, "registered", {})
    monkeypatch.setattr(
        registry, "_entry_points", lambda group: {"own_spot": (entry,)} if group == PROFILES.group else {}
    )
    assert "own_spot" in PROFILES
    assert type(create_profile("own_spot")).__name__ == "Half"


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "each once"),
        (["loss", "loss"], "each once"),
        (["nothing"], "unknown profile 'nothing': choose one of dysplasia"),
    ],
)
def test_unknown_or_doubled_profiles_are_refused(profiles, message):
    with pytest.raises(InputError, match=message):
        create_detector("profiles", profiles=profiles)


# === Detector ===


def test_evidence_is_z_and_the_score_the_highest_sum():
    views = [create_view("signs", ["FLAIR"]), create_view("tissue")]
    detector = create_detector("profiles", profiles=["dysplasia", "loss"]).told(ViewCodes(views))
    assert detector.numbers == ("FLAIR", "junction", "gm", "wm", "csf")
    controls = np.random.default_rng(0).normal(size=(4, 9, 5)).astype(np.float32)
    others = np.random.default_rng(1).normal(size=(4, 2, 5)).astype(np.float32)
    detector.fit(controls)
    sd = controls.std(1, ddof=1, keepdims=True) * np.sqrt(1 + 1 / 9)
    z = (others - controls.mean(1, keepdims=True)) / sd
    np.testing.assert_allclose(detector.evidence(others), z, rtol=1e-4, atol=1e-5)
    expected = np.maximum((z[..., 0] + z[..., 1]) / np.sqrt(2), z[..., 4])
    np.testing.assert_allclose(detector.score(others), expected, rtol=1e-4, atol=1e-5)


def test_evidence_of_a_control_is_held_against_the_others():
    detector = create_detector("profiles").told(ViewCodes([create_view("tissue")]))
    controls = np.random.default_rng(0).normal(size=(4, 9, 3)).astype(np.float32)
    folds = np.arange(9) % 3
    crossed = detector.cross_evidence(controls, folds)
    for fold in range(3):
        others = detector.unfitted().fit(controls[:, folds != fold])
        expected = others.evidence(controls[:, folds == fold])
        np.testing.assert_allclose(crossed[:, folds == fold], expected, rtol=1e-4, atol=1e-4)


def test_maps_that_no_profile_reads_are_refused():
    with pytest.raises(InputError, match=r"maps SWI, junction: no profile of loss reads them"):
        create_detector("profiles", profiles=["loss"]).told(ViewCodes([create_view("signs", ["SWI"])]))


class Nowhere(Spot):
    """Looked for where the brain is not."""

    name = "nowhere"

    def region(self, shape, affine):
        return np.zeros(shape, bool)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The first of the profiles has no place in the brains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PROFILES, "registered", {"nowhere": Nowhere})
        detector = create_detector("profiles", profiles=["nowhere", "dysplasia", "loss", "heterotopia"])
        yield fit(tmp_path_factory.mktemp("fitted"), detector, n=5)


def test_a_profile_without_a_place_in_the_brains_says_nothing(fitted):
    """Controls that a region does not reach, a few slices say, could not be fitted."""
    explained = fitted.explain(from_template(20))
    nowhere, *others = (np.isfinite(found).sum() for found in explained.kinds.values())
    assert nowhere == 0
    assert others[0] == others[1] == (fitted.mask & from_template(20).brain_mask).sum() > others[2] > 0
    assert np.isfinite(explained.score_map).all()
    assert fitted.tail.controls == 5


def test_the_score_is_the_highest_of_the_kinds(fitted):
    explained: Explained = fitted.explain(from_template(21))
    inside = fitted.mask & from_template(21).brain_mask
    highest = np.max(list(explained.kinds.values()), axis=0)
    np.testing.assert_array_equal(explained.score_map[inside], highest[inside])
    assert not explained.score_map[~inside].any()


def test_only_profiles_of_a_region_leave_the_rest_of_the_brain_at_0(tmp_path):
    """It was NaN there, and no tail could be fitted."""
    one = fit(tmp_path, create_detector("profiles", profiles=["heterotopia"]), n=4)
    explained = one.explain(from_template(20))
    (found,) = explained.kinds.values()
    assert np.isfinite(explained.score_map).all()
    assert not explained.score_map[np.isneginf(found)].any()
    assert explained.score_map[np.isfinite(found)].any()


def test_profiles_that_have_no_place_at_all_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(PROFILES, "registered", {"nowhere": Nowhere})
    with pytest.raises(InputError, match=r"profiles nowhere: no place .* are they in template space"):
        fit(tmp_path, create_detector("profiles", profiles=["nowhere"]), n=3)

"""Views: the contract of each, what they are called, and how they are made."""

import re
from pathlib import Path

import numpy as np
import pytest

from epizoo.maps import create_view
from epizoo.maps.deviations import Deviations
from epizoo.registry import VIEWS
from epizoo.testing import check_view
from epizoo.testing.views import people
from tfds_epilepsy.errors import InputError

GUIDE = Path(__file__).parents[1] / "docs" / "plugins.md"


@pytest.mark.parametrize("name", list(VIEWS.own))
def test_view_keeps_the_contract(name):
    check_view(name)


def test_deviations_for_models_of_images_keep_it_too():
    check_view("deviations", spread=5.0)


def test_views_name_their_maps_and_how_lesions_change_them():
    signs = create_view("signs", ["T1w", "FLAIR", "SWI"])
    assert signs.names == ("T1w", "FLAIR", "SWI", "junction")
    assert signs.directions == (-1, 1, 0, 1)
    assert signs.signs == ("darker T1w", "brighter FLAIR", "SWI", "blurred junction")
    assert create_view("image", ["pet"]).signs == ("darker pet",)
    assert create_view("junction_extension").signs == ("higher junction", "higher extension")
    assert create_view("signs").names == create_view("signs").signs == ()


def test_a_view_that_knows_no_modalities_is_told_them_and_one_that_does_keeps_its_own():
    view = Deviations()
    assert create_view(view, ["T1w"]) is view
    assert create_view(view, ["FLAIR"]).modalities == ("T1w",)


def test_unknown_views_and_options_are_refused():
    with pytest.raises(InputError, match="unknown view 'folds': choose one of image, deviations"):
        create_view("folds")
    with pytest.raises(InputError, match="view 'image' has no option sigma: its options are fwhm"):
        create_view({"name": "image", "sigma": 2})
    with pytest.raises(InputError, match="view 'signs' has no option fwhm: its options are none"):
        create_view({"name": "signs", "fwhm": 2})
    with pytest.raises(InputError, match="unknown view 'without a name'"):
        create_view({"fwhm": 2})


def test_deviations_are_read_as_parts_in_standard_deviations_whatever_their_scale():
    controls, new = people(6), people(7)[-1]
    plain, unit = (Deviations(["T1w", "FLAIR"], spread).adapt(controls) for spread in (0.0, 5.0))
    parts, scaled = plain.parts(plain(new)), unit.parts(unit(new))
    assert list(parts) == list(scaled) == ["darker T1w", "brighter FLAIR", "blurred junction"]
    assert np.abs(parts["darker T1w"]).max() > 1
    for name, part in parts.items():
        np.testing.assert_allclose(scaled[name], part.clip(-4.99, 5), atol=1e-3)


def test_the_view_of_the_guide_is_a_view():
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names = {"__name__": "guide"}
    exec(code, names)
    check_view("squares")
    view = names["Squares"](["T1w", "FLAIR"])
    del VIEWS.registered["squares"]
    assert view.directions == (0, 0)
    assert view.signs == ("T1w squared", "FLAIR squared")
    (person,) = people(1)
    np.testing.assert_array_equal(view.seen(person).image, person.image**2)
    with pytest.raises(InputError, match="'squares' has no form in TensorFlow operations"):
        view.graph(person.brain_mask.shape, person.affine)
    with pytest.raises(InputError, match="learns nothing; it cannot take mean"):
        view.set_state({"mean": np.zeros(3)})

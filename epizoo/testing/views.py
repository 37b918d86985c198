"""What a view must do: one function for each property, and ``check_view`` for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from epizoo.maps.view import View, create_view
from epizoo.registry import VIEWS
from epizoo.testing.outcomes import named, refused
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import Subject

MODALITIES = ("T1w", "FLAIR")
CONTROLS = 6
Make = Callable[[], View]


def check_view(name: str, modalities: Sequence[str] = MODALITIES, **options: Any) -> None:
    """Hold a view of your own to what every view does, on small subjects of noise on an anisotropic grid.

    Maps are float32, finite, named, 0 outside the brain and the same each time; what the view has learnt from
    controls comes back from its state; its form in TensorFlow operations, where it has one, gives its maps.

    >>> check_view("signs")

    Args:
        name: in the registry (``epizoo.register_view``, or an entry point).
        modalities: of the subjects' images.
        **options: of the view.

    Raises:
        AssertionError: a property that the view lacks; its note names the property.
        InputError: an unknown name or option.
    """

    def make() -> View:
        return create_view({"name": name, **options}, modalities)

    for check in CHECKS:
        with named(check):
            check(make)


def people(n: int, modalities: int = len(MODALITIES)) -> list[Subject]:
    """Controls of noise in brains full of holes, ``(9, 8, 7)`` voxels of 1.5, 2 and 3 mm."""
    made = []
    for number in range(n):
        rng = np.random.default_rng(number)
        mask = rng.random((9, 8, 7)) < 0.8
        image = np.where(mask[..., None], rng.random((*mask.shape, modalities)), 0).astype(np.float32)
        affine = np.diag([1.5, 2.0, 3.0, 1.0])
        made.append(Subject(f"{number:02d}", "control", image, mask, np.zeros_like(mask), affine))
    return made


def is_registered(make: Make) -> None:
    """The registry gives the class by the name that the class has."""
    view = make()
    assert VIEWS.get(view.name) is type(view)


def makes_named_maps(make: Make) -> None:
    """One name and one direction for each map; float32 on the subject's grid, 0 outside the brain."""
    view = _adapted(make)
    subject = _people(view, CONTROLS + 1)[-1]
    before = subject.image.copy()
    maps = view(subject)
    assert maps.shape == (*subject.brain_mask.shape, len(view.names))
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert not maps[~subject.brain_mask].any()
    assert len(set(view.names)) == len(view.directions) == len(view.signs) == len(view.names)
    assert set(view.directions) <= {-1, 0, 1}
    low, high = view.limits
    assert low <= maps.min() <= maps.max() <= high
    assert np.array_equal(maps, view(subject)), "the same subject has other maps the second time"
    assert np.array_equal(subject.image, before), "the subject's image was changed"
    assert np.array_equal(view.seen(subject).image, maps)
    for part in view.parts(maps).values():
        assert part.shape == subject.brain_mask.shape


def learns_from_enough_controls(make: Make) -> None:
    """What learns from controls says so where it has seen none, and refuses too few."""
    view = make()
    if not view.fewest_controls:
        assert view.adapt(_people(view, 0)) is view
        assert not view.state()
        return
    with refused(InputError, "adapt"):
        view(_people(view, 1)[0])
    with refused(InputError, "controls"):
        view.adapt(_people(view, view.fewest_controls - 1))
    assert view.adapt(_people(view, CONTROLS)) is view
    assert view.state()


def comes_back_from_config_and_state(make: Make) -> None:
    """Configuration and state make an equal view; other controls make another."""
    view = _adapted(make)
    subject = _people(view, CONTROLS + 1)[-1]
    again = create_view(json.loads(json.dumps(view.get_config())), view.modalities)
    again.set_state(view.state())
    assert np.array_equal(again(subject), view(subject))
    assert again.fingerprint == view.fingerprint
    if view.fewest_controls:
        other = make().adapt(_people(view, CONTROLS + 1))
        assert other.fingerprint != view.fingerprint


def has_the_same_maps_in_a_graph(make: Make) -> None:
    """Its form in TensorFlow operations gives its maps, or is refused with a sentence."""
    import tensorflow as tf

    view = _adapted(make)
    subject = _people(view, CONTROLS + 1)[-1]
    try:
        graph = view.graph(subject.brain_mask.shape, subject.affine)
    except InputError:
        return
    maps = graph(tf.constant(subject.image), tf.constant(subject.brain_mask)).numpy()
    np.testing.assert_allclose(maps, view(subject), rtol=1e-3, atol=1e-3)


def _people(view: View, n: int) -> list[Subject]:
    return people(n, len(view.modalities or MODALITIES))


def _adapted(make: Make) -> View:
    view = make()
    return view.adapt(_people(view, max(CONTROLS, view.fewest_controls)))


CHECKS: tuple[Callable[[Make], None], ...] = (
    is_registered,
    makes_named_maps,
    learns_from_enough_controls,
    comes_back_from_config_and_state,
    has_the_same_maps_in_a_graph,
)

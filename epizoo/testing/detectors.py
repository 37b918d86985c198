"""What a detector must do: one function for each property, and ``check_detector`` for all of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, ViewCodes
from epizoo.detection.detector import Detector, create_detector
from epizoo.maps.view import create_view
from epizoo.registry import DETECTORS
from epizoo.testing.outcomes import named, refused
from tfds_epilepsy.errors import InputError

MODALITIES = ("T1w", "FLAIR")
VOXELS, CONTROLS, CODE_SIZE = 12, 24, 6
Make = Callable[[], Detector]


def check_detector(name: str, *, code_size: int = CODE_SIZE, **options: Any) -> None:
    """Hold a detector of your own to what every detector does, on drawn codes.

    It has scikit-learn's manners; far codes score higher than controls; controls are scored by detectors that
    did not see their fold; its state comes back from arrays without pickle; broken codes, and those of
    another size than it has learnt, are refused; its form in TensorFlow operations, where it has one, gives
    its scores.

    >>> check_detector("gaussian")

    Args:
        name: in the registry (``epizoo.register_detector``, or an entry point).
        code_size: numbers of a code, for a detector without views; 1 for one that reads a logit.
        **options: of the detector.

    Raises:
        AssertionError: a property that the detector lacks; its note names the property.
        InputError: an unknown name or option.
    """

    def make() -> Detector:
        detector = create_detector(name, **options)
        given = detector.view_options()
        views = [create_view({"name": view, **given.get(view, {})}, MODALITIES) for view in detector.views]
        return detector.told(ViewCodes(views) if views else _Drawn(code_size))

    for check in CHECKS:
        with named(check):
            check(make)


def is_registered(make: Make) -> None:
    """The registry gives the class by its name; options are kept under their own names."""
    detector = make()
    assert DETECTORS.get(detector.name) is type(detector)
    config = json.loads(json.dumps(detector.get_config()))
    assert create_detector(detector.name, **config).get_config() == config
    with refused(InputError, "no option"):
        create_detector(detector.name, an_option_that_nobody_has=1)


def scores_are_one_per_voxel_and_subject(make: Make) -> None:
    """``fit`` returns the detector; scores are float32, finite, and the same each time."""
    detector = make()
    controls, others = codes(detector, 0, CONTROLS), codes(detector, 1, 3)
    assert detector.fit(controls) is detector
    scores = detector.score(others)
    assert scores.shape == (VOXELS, 3)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, make().fit(controls).score(others))


def far_codes_score_higher(make: Make) -> None:
    """Higher is more abnormal: codes far from all controls, in the direction of lesions."""
    detector = make()
    controls = codes(detector, 0, CONTROLS)
    towards = np.array([way or 1 for way in detector.directions] or [1] * controls.shape[2], np.float32)
    near = controls[:, :1]
    detector.fit(controls)
    if detector.sampled:
        detector.prepare(near)
    assert (detector.score(near + 30 * towards) > detector.score(near)).all()


def controls_are_scored_without_their_fold(make: Make) -> None:
    """A control's cross-fitted score does not change with the other controls of its fold."""
    detector = make()
    controls, folds = codes(detector, 0, CONTROLS), np.arange(CONTROLS) % 3
    crossed = detector.cross_scores(controls, folds)
    assert crossed.shape == (VOXELS, CONTROLS)
    changed = controls.copy()
    changed[:, 3] += 5  # of the fold of control 0
    again = make().cross_scores(changed, folds)
    np.testing.assert_allclose(again[:, 0], crossed[:, 0], rtol=1e-4, atol=1e-4)


def comes_back_from_its_state(make: Make) -> None:
    """State and configuration give the same scores, to what the packing keeps; no pickle is needed."""
    detector = make()
    controls, others = codes(detector, 0, CONTROLS), codes(detector, 1, 4)
    expected = detector.fit(controls).score(others)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **detector.state())
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        again = type(detector).from_state(dict(stored), **detector.get_config())
    again.told(told_of(detector))
    spread = max(float(np.ptp(expected)), 1e-6)
    np.testing.assert_allclose(again.score(others), expected, atol=0.02 * spread)


def refuses_broken_codes(make: Make) -> None:
    """NaN, infinity, another shape, and voxels that were not fitted."""
    detector = make()
    controls = codes(detector, 0, CONTROLS)
    for value in (np.nan, np.inf):
        broken = controls.copy()
        broken[2, 1, 0] = value
        with refused(InputError, "NaN or infinite"):
            make().fit(broken)
    with refused(InputError, "shape"):
        detector.fit(controls[0])


def scores_only_what_it_has_learnt(make: Make) -> None:
    """Before it is fitted, and of codes of another size, it has no scores, unless it learns nothing."""
    detector = make()
    controls = codes(detector, 0, CONTROLS)
    if not any(np.ndim(value) for value in detector.fit(controls).state().values()):
        return
    with refused(InputError, "fit it first"):
        make().score(controls)
    others = [np.concatenate([controls, controls], 2), controls[:, :, :-1]]
    for other in others if controls.shape[2] > 1 else others[:1]:
        with refused(InputError, f"fitted on codes of {controls.shape[2]}"):
            detector.score(other)


def has_the_same_scores_in_a_graph(make: Make) -> None:
    """Its form in TensorFlow operations gives the scores and the evidence of the state that is exported."""
    detector = make()
    if not detector.exportable:
        return
    import tensorflow as tf

    controls, others = codes(detector, 0, CONTROLS), codes(detector, 1, 1)
    state = detector.fit(controls).state()
    kept = type(detector).from_state(state, **detector.get_config())
    kept.told(told_of(detector))
    graph = make().graph(state, np.arange(VOXELS))
    given = tf.constant(others[:, 0]), tf.constant(0), tf.constant(VOXELS)
    np.testing.assert_allclose(graph.score(*given), kept.score(others)[:, 0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(graph.evidence(*given), kept.evidence(others)[:, 0], rtol=1e-3, atol=1e-3)


def codes(detector: Detector, seed: int, n: int) -> NDArray[np.float32]:
    """Drawn codes ``(v, n, d)``, in [0, 1] for the most part; as wide as the detector's views."""
    read = told_of(detector)
    size = read.size if isinstance(read, _Drawn) else len(read.names)
    return np.random.default_rng(seed).normal(0.5, 0.1, (VOXELS, n, size)).astype(np.float32)


def told_of(detector: Detector) -> Codes:
    assert detector.told_of is not None
    return detector.told_of


class _Drawn(ViewCodes):
    """Codes of some size that are drawn, and read from nobody."""

    def __init__(self, size: int):
        super().__init__([])
        self.size = size


CHECKS: tuple[Callable[[Make], None], ...] = (
    is_registered,
    scores_are_one_per_voxel_and_subject,
    far_codes_score_higher,
    controls_are_scored_without_their_fold,
    comes_back_from_its_state,
    refuses_broken_codes,
    scores_only_what_it_has_learnt,
    has_the_same_scores_in_a_graph,
)

"""Maps that are fused: by Stouffer where they are independent."""

import numpy as np
import pytest

from epizoo.detection.fusion import fuse_maps
from tfds_epilepsy.errors import InputError


def test_equal_maps_fuse_to_themselves_and_independent_ones_by_stouffer():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 20, 20)).astype(np.float32)
    np.testing.assert_allclose(fuse_maps([a, a]), a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fuse_maps([a, b]), (a + b) / np.sqrt(2), atol=0.05)
    assert abs(fuse_maps([a, 0.5 * a + b], weights=[2, 1]).std() - 1) < 0.15
    a[0] = 0
    assert (fuse_maps([a, b])[0] == 0).all()


def test_maps_that_cannot_be_fused_are_refused():
    with pytest.raises(InputError, match="at least one map"):
        fuse_maps([])
    with pytest.raises(InputError, match=r"\(2, 2, 2\)"):
        fuse_maps([np.ones((2, 2, 2)), np.ones((2, 2, 3))])
    with pytest.raises(InputError, match="one positive number"):
        fuse_maps([np.ones((2, 2, 2))], weights=[1, 2])

"""Every script in ``examples/`` runs as it stands, a few steps long."""

import functools
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import load_script
from tfds_epilepsy import phantom

PRODUCTS = {
    "fit_patches": "model.keras",
    "fit_pairs": "model.keras",
    "fit_gan": "generated.png",
}
ELSEWHERE = {"search_own_model"}  # test_tuning_search.py runs it on a smaller cohort
EXAMPLES = sorted(
    path for path in (Path(__file__).parents[1] / "examples").glob("*.py") if path.stem not in ELSEWHERE
)


@pytest.fixture(autouse=True, scope="module")
def each_phantom_once():
    """The scripts draw the same phantoms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "subject", functools.cache(phantom.subject))
        yield


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path):
    result = load_script(script).main(tmp_path / "out", subjects=4, epochs=1, steps=2)
    assert (tmp_path / "out" / PRODUCTS[script.stem]).is_file()
    if isinstance(result, np.ndarray):
        assert np.isfinite(result).all()
        assert result.any()
    else:
        patches = np.zeros((2, *result.patch_shape, result.channels), np.float32)
        assert np.isfinite(result.encode(patches)).all()

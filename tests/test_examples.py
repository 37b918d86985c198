"""Every script in ``examples/`` runs as it stands, to its last line, a few steps long."""

import functools
from pathlib import Path

import numpy as np
import pytest

import epizoo
from tests.scripts import run_script
from tfds_epilepsy import phantom

# What it leaves, and the beginning of what it says last.
PRODUCTS = {
    "fit_patches": ("model.keras", "codes (256, 64)"),
    "fit_pairs": ("model.keras", "a code at every voxel of two slices: ("),
    "fit_gan": ("preset", ""),
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


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(script, tmp_path, capfd):
    folder, options = tmp_path / "out", ("--subjects", 4, "--epochs", 1, "--steps", 2)
    run_script(script, "--folder", folder, *options)
    left, last_words = PRODUCTS[script.stem]
    assert capfd.readouterr().out.splitlines()[-1].startswith(last_words)
    if left == "preset":
        assert (folder / "generated.png").is_file()
    model = epizoo.from_preset(folder / left) if left == "preset" else epizoo.load_model(folder / left)
    codes = model.encode(np.random.default_rng(0).random((2, *model.patch_shape, model.channels), np.float32))
    assert np.isfinite(codes).all()
    assert codes.any()

import numpy as np
import pytest

import epizoo
from epizoo.models import losses
from epizoo.models.wae import WAE

PATCHES = np.random.default_rng(0).random((64, 9, 9, 1), dtype=np.float32)


def test_loss_is_reconstruction_and_weighted_discrepancy():
    model = WAE((9, 9), 1, 4, weight=3.0)
    figures = model.compute_losses({"patch": PATCHES}, training=False)
    error = ((PATCHES - model.reconstruct(PATCHES)) ** 2).sum((1, 2, 3)).mean()
    mmd = losses.mmd(model.encode(PATCHES), model.noise("prior", (64, 4), training=False))
    assert float(figures["loss"]) == pytest.approx(error + 3 * float(mmd), rel=1e-4)


@pytest.mark.slow
def test_codes_come_to_match_the_prior():
    model = epizoo.create("wae", patch_shape=(9, 9), channels=1, latent_dim=4)
    model.compile()
    before = model.evaluate({"patch": PATCHES}, batch_size=64, verbose=0, return_dict=True)["mmd"]
    model.fit({"patch": PATCHES}, batch_size=64, epochs=80, verbose=0)
    after = model.evaluate({"patch": PATCHES}, batch_size=64, verbose=0, return_dict=True)["mmd"]
    assert abs(after) < before / 2

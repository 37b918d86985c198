import numpy as np
import pytest

import epizoo
from epizoo.models.vae import VAE

PATCHES = np.random.default_rng(0).random((64, 9, 9, 1), dtype=np.float32)


def test_code_is_the_mean_and_training_draws_about_it():
    model = VAE((9, 9), 1, 4)
    code = model.posterior(PATCHES)
    assert np.allclose(model.encode(PATCHES), code["latent"], atol=1e-6)
    model.compile()
    figures = [float(model.compute_losses({"patch": PATCHES}, training=t)["loss"]) for t in (True, False)]
    assert figures[0] != figures[1]
    mean, log_var = np.array(code["latent"]), np.array(code["log_var"])
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1).sum(1).mean()
    noise = np.array(model.noise("posterior", (64, 4)))
    x_hat = np.array(model.decoder(mean + np.exp(log_var / 2) * noise))
    error = ((PATCHES - x_hat) ** 2).sum((1, 2, 3)).mean()
    assert figures[0] == pytest.approx(error + 2 * 0.05**2 * kl, rel=1e-4)


@pytest.mark.slow
def test_codes_collapse_under_a_prior_that_is_too_strong():
    """The trap that the default ``sigma`` avoids."""
    rng = np.random.default_rng(0)
    patches = np.clip(rng.random((256, 1, 1, 1)) + rng.normal(0, 0.05, (256, 9, 9, 1)), 0, 1).astype(
        np.float32
    )
    spread = {}
    for sigma in (0.05, 50.0):
        model = epizoo.create("vae", patch_shape=(9, 9), channels=1, latent_dim=4, sigma=sigma)
        model.compile()
        model.fit({"patch": patches}, batch_size=64, epochs=40, verbose=0)
        spread[sigma] = model.encode(patches).std(0).max()
    assert spread[0.05] > 0.5
    assert spread[50.0] < 0.1

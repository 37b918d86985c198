import numpy as np
import pytest

import epizoo
from epizoo.models.siamese import Siamese


def batch(rng, n=4, shape=(9, 9, 2)):
    return {name: rng.random((n, *shape), dtype=np.float32) for name in ("patch", "partner")}


@pytest.mark.parametrize("alpha", [0.005, 10.0])
def test_loss_is_the_reconstruction_of_both_less_their_similarity(alpha):
    model = Siamese((9, 9), 2, 16, alpha=alpha)
    pair = batch(np.random.default_rng(0))
    figures = model.compute_losses(pair, training=False)
    expected = []
    for x1, x2 in zip(pair["patch"], pair["partner"], strict=True):
        z1, z2 = model.encode(np.stack([x1, x2]))
        xhat1, xhat2 = model.reconstruct(np.stack([x1, x2]))
        cosine = z1 @ z2 / (np.linalg.norm(z1) * np.linalg.norm(z2))
        expected.append(((x1 - xhat1) ** 2).sum() + ((x2 - xhat2) ** 2).sum() - alpha * cosine)
    assert float(figures["loss"]) == pytest.approx(np.mean(expected), rel=1e-5)


def test_similarity_grows_with_its_weight():
    rng = np.random.default_rng(0)
    pair = batch(rng, 32)
    similarity = []
    for alpha in (0.0, 100.0):
        model = Siamese((9, 9), 2, 16, alpha=alpha)
        model.compile()
        model.fit(pair, batch_size=32, epochs=60, verbose=0)
        similarity.append(model.evaluate(pair, verbose=0, return_dict=True)["similarity"])
    assert similarity[1] > similarity[0] + 0.05
    assert similarity[1] > 0.95


def test_deep_variant_has_the_published_sizes():
    model = epizoo.create("deep_siamese")
    convs = [layer.output.shape[1:] for layer in model.encoder.layers if layer.name.startswith("conv")]
    assert convs == [(11, 11, 3), (9, 9, 4), (3, 3, 12), (1, 1, 16)]
    assert model.latent_dim == 16
    assert model.decoder.output_shape == (None, 15, 15, 2)

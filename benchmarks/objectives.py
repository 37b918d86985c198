"""Other objectives than the zoo's, on the same networks, with the same detector: do they give better codes?

    python -m benchmarks.objectives bench/denoising-0 denoising --seed 0
    python -m benchmarks.objectives bench/denoising-deviations-0 denoising --view deviations --seed 0

Each makes a run like ``epizoo run phantom_2mm RUN --model siamese --detector ocsvm --epochs 3 --steps 100``,
with its folder and report. They are not in the zoo: results.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import keras
import tensorflow as tf
import typer

from epizoo.models import blocks, losses
from epizoo.models.autoencoder import Autoencoder
from epizoo.models.deviation import Deviation
from epizoo.models.patch_model import register_model
from epizoo.models.synthetic import Synthetic, stretched
from epizoo.run import Run
from epizoo.run_config import RunConfig

COARSE = 5  # knots along an axis of the denoiser's noise
SIGMA = 0.2  # its standard deviation: Kascenas et al. 2022
TEMPERATURE = 0.1


@register_model("coarse_denoising")
class Denoising(Autoencoder):
    """``L = ||x - D(E(x + n))||^2``, n noise as coarse as lesions are.

    White noise a few voxels apart, interpolated: Kascenas, Pugeault & O'Neil 2022, MIDL (PMLR 172:653), whose
    noise it is that finds tumours where a white one does not.
    """

    def compute_losses(self, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x = batch["patch"]
        knots = [COARSE] * len(self.patch_shape)
        noise = self.noise("coarse", (tf.shape(x)[0], self.channels, *knots), training)
        noise = tf.stack(tf.unstack(stretched(noise, self.patch_shape), axis=1), -1)
        brain = tf.cast(tf.reduce_any(x > 0, -1, keepdims=True), tf.float32)
        x_hat = self.decoder(self.encoder(x + SIGMA * noise * brain, training=training), training=training)
        return {"loss": tf.reduce_mean(losses.squared_error(x, x_hat))}


class Pairs:
    """One place in two controls is alike; other places, and either patch when its tissue is altered, are not.

        L = -log exp(a_i . b_i / t) / sum_j (exp(a_i . b_j / t) + exp(a_i . a'_j / t) + exp(a_i . b'_j / t))

    a and b are the codes of the two controls' patches behind a projection (two layers, unit length), a' and
    b' those of the patches that were altered, t = .1. Chen et al. 2020 (ICML), with the positives of Khosla
    et al. 2020 (NeurIPS) and altered negatives as in Sohn et al. 2021 (ICLR) and Tack et al. 2020 (NeurIPS).
    """

    sampling: ClassVar[str] = "pair"
    tracked: ClassVar[tuple[str, ...]] = ("loss", "similarity")
    trains: ClassVar = {"optimizer": ("encoder", "segmenter")}

    def __init__(self, patch_shape: Sequence[int] = (15, 15), *args: Any, **kwargs: Any):
        super().__init__(patch_shape, *args, **kwargs)

    def build_networks(self: Any) -> tuple[keras.Model, None, keras.Model]:
        encoder = blocks.conv_encoder(self.patch_shape, self.channels, self.latent_dim, linear=True)
        latent = keras.Input((self.latent_dim,))
        hidden = blocks.dense_stack(latent, [self.latent_dim])
        return encoder, None, keras.Model(latent, keras.layers.Dense(32, dtype="float32")(hidden))

    def default_optimizers(self) -> dict[str, keras.Optimizer]:
        return {"optimizer": keras.optimizers.Adam(1e-3)}

    def compute_losses(self: Any, batch: Mapping[str, Any], training: bool) -> dict[str, Any]:
        x = tf.concat([batch["patch"], batch["partner"]], 0)  # (2n, ...)
        altered, where = self.alter(x, training)
        codes = self.encoder(tf.concat([x, altered], 0), training=training)
        unit = tf.math.l2_normalize(self.segmenter(codes, training=training), -1)
        a, b, others = tf.split(unit, [tf.shape(x)[0] // 2] * 2 + [tf.shape(x)[0]])
        changed = tf.reduce_max(where, list(range(1, len(where.shape))))  # (2n,)
        alike = tf.matmul(a, b, transpose_b=True) / TEMPERATURE
        edited = tf.matmul(a, others, transpose_b=True) / TEMPERATURE + (changed - 1) * 1e9
        logits = tf.concat([alike, edited], 1)  # (n, 3n)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(tf.shape(a)[0]), logits)
        similarity = tf.reduce_mean(losses.cosine_similarity(a, b))
        return {"loss": tf.reduce_mean(loss), "similarity": similarity}


@register_model("contrastive")
class Contrastive(Pairs, Synthetic):
    """On images; altered as for :class:`Synthetic`."""


@register_model("contrastive_deviations")
class ContrastiveDeviations(Pairs, Deviation):
    """On deviation maps; altered as for :class:`Deviation`."""


VIEWS = ("image", "deviations")
OBJECTIVES: dict[str, dict[str, str]] = {
    "denoising": {"image": "coarse_denoising", "deviations": "coarse_denoising"},
    "contrastive": {"image": "contrastive", "deviations": "contrastive_deviations"},
}


def main(
    folder: Path,
    objective: Annotated[str, typer.Argument(help=f"One of {', '.join(OBJECTIVES)}.")],
    view: str = "image",
    epochs: int = 3,
    steps: int = 100,
    seed: int = 0,
) -> None:
    if objective not in OBJECTIVES or view not in VIEWS:
        choices = f"choose one of {', '.join(OBJECTIVES)}, with --view {' or '.join(VIEWS)}."
        raise typer.BadParameter(f"{objective!r} with --view {view!r}: {choices}")
    run = RunConfig.resolve(
        "phantom_2mm",
        model=OBJECTIVES[objective][view],
        detector="ocsvm",
        model_config={"view": view},
        epochs=epochs,
        steps_per_epoch=steps,
        batch_size=256,
        seed=seed,
    )
    Run(run, folder)()


if __name__ == "__main__":
    typer.run(main)

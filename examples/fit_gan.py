"""Adversarial training: a BiGAN with two optimisers of your own, and what it generates.

Run with ``python examples/fit_gan.py``; ``--help`` lists what can be changed.
"""

from pathlib import Path

import keras
import typer

import epizoo
from epizoo.models.callbacks import draw_patches
from tfds_epilepsy import phantom
from tfds_epilepsy.patches import patch_dataset


def main(folder: str = "fit_gan", subjects: int = 4, epochs: int = 3, steps: int = 200) -> None:
    config = phantom.PhantomConfig()
    controls = [phantom.subject(config, label) for label in phantom.cohort(config)["train"][:subjects]]
    model = epizoo.create("bigan")
    model.compile(
        d_optimizer=keras.optimizers.Adam(4e-4, beta_1=0, beta_2=0.9),
        g_optimizer=keras.optimizers.Adam(1e-4, beta_1=0, beta_2=0.9),
    )
    patches = patch_dataset(controls, model.patch_shape)
    model.fit(patches, epochs=epochs, steps_per_epoch=steps)
    model.save_preset(Path(folder) / "preset")  # the averaged weights encode; both networks are kept
    again = epizoo.from_preset(Path(folder) / "preset")
    real = next(iter(patches))["patch"][:12].numpy()
    rows = {"patch": real, "reconstructed": again.reconstruct(real), "generated": again.generate(12)}
    draw_patches(rows, [Path(folder) / "generated.png"])


if __name__ == "__main__":
    typer.run(main)

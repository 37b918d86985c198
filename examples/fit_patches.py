"""Single patches: a variational autoencoder, fitted with nothing but Keras.

Run with ``python examples/fit_patches.py``; ``--help`` lists what can be changed.
"""

from pathlib import Path

import keras
import typer

import epizoo
from tfds_epilepsy import phantom
from tfds_epilepsy.patches import patch_dataset


def main(folder: str = "fit_patches", subjects: int = 4, epochs: int = 3, steps: int = 200) -> None:
    config = phantom.PhantomConfig()
    train, held_out = (
        [phantom.subject(config, label) for label in phantom.cohort(config)[split][:subjects]]
        for split in ("train", "validation")
    )
    model = epizoo.create("vae")
    model.compile(keras.optimizers.Adam(1e-3))
    model.summary()
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.fit(
        patch_dataset(train, model.patch_shape),
        epochs=epochs,
        steps_per_epoch=steps,
        validation_data=patch_dataset(held_out, model.patch_shape, seed=1).take(10),
        callbacks=[
            keras.callbacks.EarlyStopping(model.monitor, patience=2),
            keras.callbacks.ModelCheckpoint(f"{folder}/model.keras", model.monitor, save_best_only=True),
        ],
    )
    best = epizoo.load_model(f"{folder}/model.keras")
    patches = next(iter(patch_dataset(held_out, best.patch_shape, seed=2)))["patch"]
    print("codes", best.encode(patches).shape, "reconstructed", best.reconstruct(patches).shape)


if __name__ == "__main__":
    typer.run(main)

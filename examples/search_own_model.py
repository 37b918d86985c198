"""Your own Keras model, its architecture searched for what detects lesions best.

Run with ``python examples/search_own_model.py``; interrupt it, and run it again.
"""

import keras
import typer
from keras import layers

from tuning import DetectionTuner


def build(hp):
    x = patch = keras.Input((9, 9, 2), name="patch")
    for _ in range(hp.Choice("depth", [1, 2, 3])):
        x = layers.Conv2D(hp.Choice("filters", [8, 16, 32]), 3, activation="relu")(x)
    latent = layers.Dense(hp.Choice("latent_dim", [8, 16]), name="latent")(layers.Flatten()(x))
    pixels = layers.Dense(9 * 9 * 2, activation="sigmoid")(latent)
    model = keras.Model(patch, layers.Reshape((9, 9, 2))(pixels))
    model.encoder = keras.Model(patch, latent, name="encoder")  # what the detector reads
    model.compile(keras.optimizers.Adam(hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")), "mse")
    hp.Choice("detector", ["gaussian", "ocsvm"])
    return model


def main(
    folder: str = "search_own_model",
    data: str = "phantom_2mm",
    data_dir: str | None = None,
    trials: int = 20,
    epochs: int = 4,
    steps: int = 250,
    seeds: int = 3,
) -> None:
    tuner = DetectionTuner(
        data, folder, build=build, trials=trials, epochs=epochs, steps_per_epoch=steps, data_dir=data_dir
    )
    tuner.search()
    tuner.report(seeds)
    print("the best:", tuner.best()["values"])


if __name__ == "__main__":
    typer.run(main)

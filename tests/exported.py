"""A tiny encoder and a tiny pipeline, exported: what later versions must go on loading.

    python -m tests.exported tests/data/exports-2.zip

makes it anew; done once for each version of the export's metadata, and the old ones stay.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import keras
from keras import layers

from epizoo.detection import fit_detector
from epizoo.export import export_encoder, export_pipeline
from tests.raw_scans import controls


def tiny_encoder() -> keras.Model:
    patch = keras.Input((7, 7, 2), name="patch")
    x = layers.MaxPooling2D(2)(layers.Conv2D(4, 3, activation="relu")(patch))
    return keras.Model(patch, layers.Dense(4, name="latent")(layers.Flatten()(x)), name="tiny")


def main(archive: Path) -> None:
    keras.utils.set_random_seed(0)
    encoder = tiny_encoder()
    with tempfile.TemporaryDirectory() as work:
        detector = fit_detector(encoder, lambda: controls(2), Path(work) / "detector", folds=3)
        made = Path(work) / "made"
        export_encoder(encoder, made / "encoder", modalities=("T1w", "FLAIR"), voxel_size=2.0)
        export_pipeline(detector, made / "pipeline", modalities=("T1w", "FLAIR"))
        shutil.make_archive(str(archive.with_suffix("")), "zip", made)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

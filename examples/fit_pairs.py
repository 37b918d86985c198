"""Co-located pairs: the siamese autoencoder, trained in a folder that survives a kill.

Run with ``python examples/fit_pairs.py``, interrupt it, and run it again.
"""

import typer

import epizoo
from tfds_epilepsy import phantom
from tfds_epilepsy.patches import patch_dataset


def main(folder: str = "fit_pairs", subjects: int = 6, epochs: int = 3, steps: int = 200) -> None:
    config = phantom.PhantomConfig()
    controls = [phantom.subject(config, label) for label in phantom.cohort(config)["train"][:subjects]]
    model = epizoo.create("siamese")
    pairs = {"patch_shape": model.patch_shape, "sampling": model.sampling}
    epizoo.train(
        model,
        lambda step: patch_dataset(controls[:-2], start_step=step, **pairs),
        epochs=epochs,
        steps_per_epoch=steps,
        validation_data=patch_dataset(controls[-2:], seed=1, **pairs),
        validation_steps=10,
        folder=folder,
    )
    codes = epizoo.DenseEncoder(model.encoder)(controls[-1].image, z=slice(40, 42))
    print("a code at every voxel of two slices:", codes.shape)


if __name__ == "__main__":
    typer.run(main)

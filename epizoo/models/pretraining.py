"""Weights that travel: networks for deviation maps, taught on phantoms alone, for anybody's controls.

    python -m epizoo.models.pretraining OUT                     # all presets that epizoo ships
    python -m epizoo.models.pretraining OUT deviation_t1w_flair --seed 1

The maps that ``deviation`` reads are standard deviations from controls, of whatever cohort and scanner. So a
network that was taught on many cohorts, as different as cohorts are, reads those of the next one too. The
family is drawn broadly on purpose: 10 to 75 controls, what registration leaves, folds, age, errors of the
brain mask, contrast between tissues, noise, texture, bias, sharpness, one scanner or two. A third of the
cohorts has little noise and texture: of real T1w maps more is anatomy (docs/results/presets.md).

No person's data are in it: every cohort is a phantom (``tfds_epilepsy.phantom``). OUT keeps the maps of each
cohort, so that a killed command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from epizoo.maps.deviations import Deviations
from epizoo.maps.signs import JUNCTION
from epizoo.models import create
from epizoo.models.callbacks import train
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing
from tfds_epilepsy.patches import patch_dataset
from tfds_epilepsy.phantom import Conditions, PhantomConfig, cohort
from tfds_epilepsy.progress import stderr, track
from tfds_epilepsy.tfds_epilepsy_dataset_builder import generate
from tfds_epilepsy.volumes import Subject, load_template

MODALITIES = ("T1w", "FLAIR", "pet")  # that the cohorts of the family have
SHIPPED = {
    "deviation_t1w": ("T1w",),
    "deviation_t1w_flair": ("T1w", "FLAIR"),
    "deviation_t1w_pet": ("T1w", "pet"),
}
FIRST_SEED = 1000  # of the cohorts; no cohort that is chosen on or judges has these
COHORTS, QUIET = 18, 6  # the last ones have scans of little noise and texture
SHOWN = 12  # controls of each cohort that patches are cut from; all of them make the maps
VOXEL_SIZE = 2
EPOCHS, STEPS, BATCH = 16, 250, 16
MEMORY = 12 * 2**30  # bytes that the family's volumes may take


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m epizoo.models.pretraining", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="preset", help=f"all if none: {', '.join(SHIPPED)}")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the patches")
    given = parser.parse_args(arguments)
    try:
        for name in given.names or SHIPPED:
            folder = pretrain(name, given.out, seed=given.seed, console=stderr)
            stderr.print(f"{folder}: written", markup=False)
    except InputError as error:
        sys.exit("\n".join(error.problems))


def pretrain(name: str, out: Path, *, seed: int = 0, console: Console) -> Path:
    """Teach one network on the family, and save it as a preset; what is there already is taken.

    Args:
        name: key of ``SHIPPED``.
        out: gets ``family/`` with the maps of each cohort, ``training/`` and the preset.
        seed: of the weights and the patches.
        console: where progress is shown.

    Returns:
        The folder of the preset.

    Raises:
        InputError: an unknown name.
    """
    if name not in SHIPPED:
        raise InputError(f"no preset {name!r} is made here: choose among {', '.join(SHIPPED)}.")
    stem = name if seed == 0 else f"{name}-seed{seed}"
    folder = out / stem
    if folder.exists():
        return folder
    modalities = SHIPPED[name]
    maps = list(family(out / "family", modalities, console))
    model = create("deviation", channels=len(modalities) + 1, modalities=modalities, seed=seed)
    train(
        model,
        lambda step: patch_dataset(
            maps,
            model.patch_shape,
            batch_size=BATCH,
            seed=seed,
            start_step=step,
            memory_limit=MEMORY,
        ),
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        folder=out / "training" / stem,
        console=console,
    )
    sizes = [config.n_train for config in configs()]
    each = f"{min(sizes)} to {max(sizes)} each"
    return model.save_preset(
        folder,
        voxel_size=float(VOXEL_SIZE),
        trained_on=f"{sum(sizes)} controls of {len(sizes)} phantom cohorts, {each}",
        phantoms=[config.seed for config in configs()],
        licence="MIT",
    )


@dataclass(frozen=True)
class Range:
    """Between two positive values, uniform in the logarithm."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator, *shape: int) -> Any:
        return np.exp(rng.uniform(np.log(self.low), np.log(self.high), shape or None))


CONTROLS = Range(10, 75)
FAMILY = {
    "residual": Range(0.6, 1.8),
    "folds": Range(0.6, 1.5),
    "ageing": Range(0.5, 3),
    "spread": Range(0.5, 3),
    "noise": Range(0.6, 2.5),
    "fine": Range(0.4, 2.5),
    "broad": Range(0.4, 2),
    "bias": Range(0.5, 3),
    "unsteady": Range(0.02, 0.3),
    "brain_error": Range(0.01, 0.15),
}
LITTLE = {
    "noise": Range(0.15, 0.6),
    "fine": Range(0.2, 0.8),
    "broad": Range(0.1, 0.4),
    "bias": Range(0.3, 1),
}
GREY, FLUID = Range(0.6, 1.4), Range(0.7, 1.5)  # of each modality by itself
BLUR = 1.0  # mm at most, in two of three cohorts
TWO_SCANNERS = 1 / 3  # share of the cohorts


def configs() -> Iterator[PhantomConfig]:
    """The cohorts of the family: controls alone."""
    for number in range(COHORTS):
        rng = np.random.default_rng([FIRST_SEED, number])
        ranges = FAMILY if number < COHORTS - QUIET else {**FAMILY, **LITTLE}
        drawn = {name: round(float(between.draw(rng)), 3) for name, between in ranges.items()}
        grey, fluid = (
            tuple(round(float(f), 3) for f in between.draw(rng, len(MODALITIES))) for between in (GREY, FLUID)
        )
        blur = round(float(rng.uniform(0, BLUR)), 3) * float(rng.random() < 2 / 3)
        second_site = round(float(rng.uniform(0.1, 0.5)), 3) * float(rng.random() < TWO_SCANNERS)
        yield PhantomConfig(
            voxel_size=VOXEL_SIZE,
            seed=FIRST_SEED + number,
            n_train=round(float(CONTROLS.draw(rng))),
            n_validation_controls=0,
            n_validation_patients=0,
            n_test_controls=0,
            n_test_patients=0,
            modalities=MODALITIES,
            second_site=second_site,
            conditions=Conditions(**drawn, grey=grey, fluid=fluid, blur=blur),
        )


def family(folder: Path, modalities: Sequence[str], console: Console) -> Iterator[Subject]:
    """Controls whose images are their deviation maps, from the cohort that each belongs to.

    Args:
        folder: keeps the maps; made where they are missing.
        modalities: whose maps are wanted, the first ``T1w``; the junction's come last.
        console: where progress is shown.
    """
    names = (*MODALITIES, JUNCTION)
    wanted = [names.index(name) for name in (*modalities, JUNCTION)]
    affine = load_template(VOXEL_SIZE).affine
    for number, config in enumerate(track(list(configs()), "cohorts", console=console)):
        path = folder / f"cohort-{number:02d}.npz"
        if not path.is_file():
            write_maps(config, path)
        with np.load(path) as stored:
            for k, (maps, mask) in enumerate(zip(stored["maps"], stored["masks"], strict=True)):
                image = np.ascontiguousarray(maps[..., wanted], np.float32)
                yield Subject(
                    subject=f"cohort{number:02d}control{k:03d}",
                    group="control",
                    image=image,
                    brain_mask=mask,
                    lesion_mask=np.zeros_like(mask),
                    affine=affine,
                )


def write_maps(config: PhantomConfig, path: Path) -> None:
    """The deviation maps of a cohort's first controls, each held against all others of the cohort."""
    shown: list[Subject] = []

    def controls() -> Iterator[Subject]:
        for control in generate(config, cohort(config)["train"]):
            if len(shown) < SHOWN:
                shown.append(control)
            yield control

    view = Deviations(config.modalities).adapt(controls())
    maps: list[NDArray[np.float16]] = [view(control).astype(np.float16) for control in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, maps=np.stack(maps), masks=np.stack([c.brain_mask for c in shown]))


if __name__ == "__main__":
    main()

"""Patches a second beside TorchIO and MONAI; memory against the cohort; what a training waits for its input.

    .venv-bench/bin/python -m benchmarks.patches

One run on the same volumes, 20 subjects at 2 mm with T1w and FLAIR; the contestants take turns, so that a
busy machine disturbs all alike; medians of the rounds, their range, their ratios. Every contestant yields
batches of 256 patches of both modalities from all over the cohort, its volumes in memory. Uniform: ours are
uniform in the brain mask, those of the others in the whole volume (they know no mask). Weighted: by the
template's grey matter. A pair counts once. MONAI is timed as it comes and with its metadata tracking off.
Data loaders run without worker processes: on two cores they were slower with them. Where others use the
machine too, processor time tells more than the clock; ours are made by as many threads as there are cores.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import keras
import numpy as np
import psutil
import tensorflow as tf
from keras import layers

from tfds_epilepsy.patches import memory_bytes, patch_dataset
from tfds_epilepsy.volumes import Subject, load_template

ROUNDS = 5
BATCH = 256
PER_SUBJECT = 64  # patches of a subject before the peers go on to the next; 20 subjects: 5 batches per epoch
TARGET_RATIO, TARGET_RATE, TARGET_MEMORY, TARGET_WAIT = 20, 50_000, 0.10, 0.05


def cohort(count: int) -> Iterator[Subject]:
    """The template with noise, as T1w and a FLAIR-like mix of its tissues."""
    template = load_template(2)
    flair = 0.75 * template.gm + 0.6 * template.wm + 0.15 * template.csf
    image = np.stack([template.t1, flair], axis=-1)
    mask = template.brain_mask
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 0.02, image.shape).astype(np.float32)
        noisy = np.clip(image + noise, 0, 1) * mask[..., None]
        yield Subject(f"{number:04}", "control", noisy, mask, np.zeros_like(mask), template.affine)


def ours(subjects: list[Subject], shape: tuple[int, ...], **options: object) -> Callable[[], int]:
    batches = iter(
        patch_dataset(subjects, shape[:2] if shape[2] == 1 else shape, batch_size=BATCH, **options)
    )
    count = 400 if shape[2] == 1 else 60

    def epoch() -> int:
        return sum(len(next(batches)["patch"]) for _ in range(count))

    return epoch


def monai(
    subjects: list[Subject], shape: tuple[int, ...], weighted: bool, metadata: bool
) -> Callable[[], int]:
    import torch
    from monai.data import DataLoader, Dataset, MetaTensor, set_track_meta
    from monai.transforms import RandSpatialCropSamples, RandWeightedCrop

    transform = (
        RandWeightedCrop(shape, PER_SUBJECT, weight_map=torch.from_numpy(load_template(2).gm[None].copy()))
        if weighted
        else RandSpatialCropSamples(shape, PER_SUBJECT, random_size=False)
    )
    kind = MetaTensor if metadata else torch.Tensor
    images = [kind(torch.from_numpy(np.moveaxis(s.image, -1, 0).copy())) for s in subjects]
    loader = DataLoader(Dataset(images, transform), batch_size=BATCH // PER_SUBJECT, shuffle=True)

    def epoch() -> int:
        set_track_meta(metadata)
        return sum(len(batch) for batch in loader)

    return epoch


def torchio(subjects: list[Subject], shape: tuple[int, ...], weighted: bool) -> Callable[[], int]:
    import torch
    import torchio as tio

    weights = torch.from_numpy(load_template(2).gm[None].copy())
    data = tio.SubjectsDataset(
        [
            tio.Subject(
                t1=tio.ScalarImage(tensor=torch.from_numpy(s.image[None, ..., 0].copy())),
                flair=tio.ScalarImage(tensor=torch.from_numpy(s.image[None, ..., 1].copy())),
                **({"weights": tio.Image(tensor=weights, type=tio.SAMPLING_MAP)} if weighted else {}),
            )
            for s in subjects
        ]
    )
    sampler = tio.WeightedSampler(shape, "weights") if weighted else tio.UniformSampler(shape)
    queue = tio.Queue(data, 10 * PER_SUBJECT, PER_SUBJECT, sampler, num_workers=0)
    loader = tio.SubjectsLoader(queue, batch_size=BATCH)

    def epoch() -> int:
        return sum(len(torch.cat([batch["t1"][tio.DATA], batch["flair"][tio.DATA]], 1)) for batch in loader)

    return epoch


def speed() -> None:
    subjects = list(cohort(20))
    gm = load_template(2).gm
    for shape, weighted in itertools.product(((15, 15, 1), (15, 15, 15)), (False, True)):
        contestants = {
            "epizoo": ours(subjects, shape, weights=gm if weighted else None),
            "epizoo, pairs": ours(subjects, shape, weights=gm if weighted else None, sampling="pair"),
            "MONAI": monai(subjects, shape, weighted, metadata=True),
            "MONAI, no metadata": monai(subjects, shape, weighted, metadata=False),
            "TorchIO": torchio(subjects, shape, weighted),
        }
        for epoch in contestants.values():
            epoch()  # compiles, fills the queues
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        costs: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(ROUNDS):
            for name, epoch in contestants.items():
                start, used = time.perf_counter(), time.process_time()
                count = epoch()
                rates[name].append(count / (time.perf_counter() - start))
                costs[name].append(1e6 * (time.process_time() - used) / count)
        print(f"\n{'x'.join(map(str, shape))}, {'weighted' if weighted else 'uniform'}: ", end="")
        print("patches a second; processor time of one, in microseconds")
        best, cost = median(rates["epizoo"]), median(costs["epizoo"])
        for name, values in rates.items():
            spread = f"({min(values):,.0f} to {max(values):,.0f})"
            of = [f"{best / median(values):8.1f} x", f"{median(costs[name]) / cost:8.1f} x"]
            first, second = of if "epizoo" not in name else ("", "")
            print(f"  {name:20s} {median(values):10,.0f}  {spread:22s} {first:10s}", end="")
            print(f" {median(costs[name]):10.1f} {second}")
        peers = {name: median(values) for name, values in rates.items() if "epizoo" not in name}
        print(f"  ratio to the fastest peer {best / max(peers.values()):.1f} (target {TARGET_RATIO})", end="")
        as_shipped = max(value for name, value in peers.items() if "metadata" not in name)
        print(f"; to the fastest peer as it comes {best / as_shipped:.1f}")
        most = memory_rate() / (4 * 2 * np.prod(shape))
        print(
            f"  copying alone, without looking for anything, would give {most:,.0f}: ours {best / most:.0%}"
        )
        if shape[2] == 1:
            print(f"  2D patches a second {best:,.0f} (target {TARGET_RATE:,})")


def memory_rate() -> float:
    """Bytes a second that all cores together copy: contiguous, 8 MiB a time, from memory that is not cached.

    What no pipeline that hands out copies can outrun.
    """
    source = np.ones(64 * 2**20, np.float32)
    size = 2 * 2**20
    targets = [np.zeros(size, np.float32) for _ in range(os.cpu_count() or 1)]

    def copy(worker: int) -> None:
        for part in range(worker, len(source) // size, len(targets)):
            np.copyto(targets[worker], source[part * size : (part + 1) * size])

    seconds = []
    with ThreadPoolExecutor(len(targets)) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(pool.map(copy, range(len(targets))))
            seconds.append(time.perf_counter() - start)
    return source.nbytes / median(seconds)


def memory(count: int) -> float:
    """Resident MiB that a window of 8 subjects adds, while it moves once over a cohort of ``count``."""
    shape = load_template(2).brain_mask.shape  # loaded before memory is first looked at
    before = psutil.Process().memory_info().rss
    dataset = patch_dataset(
        lambda: cohort(count),
        memory_limit=memory_bytes(shape, 2, 8),
        batch_size=BATCH,
        patches_per_subject=10 * BATCH,
    )
    highest = before
    for step, _ in enumerate(dataset.take(10 * count)):
        if step % 10 == 9:
            highest = max(highest, psutil.Process().memory_info().rss)
    return (highest - before) / 2**20


def memory_against_cohort() -> None:
    most = memory_bytes(load_template(2).brain_mask.shape, 2, 8)
    print(f"\nwindow of 8 subjects: {most / 2**20:.0f} MiB of volumes at most; all that the process grew by:")
    taken = {}
    for count in (20, 200):
        command = [sys.executable, "-m", "benchmarks.patches", "--memory", str(count)]
        taken[count] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"  cohort of {count:3}: peak {taken[count]:.0f} MiB")
    print(f"  difference {taken[200] / taken[20] - 1:+.1%} (target within {TARGET_MEMORY:.0%})")


def training() -> None:
    """The reference network (Alaverdyan et al. 2020) on pairs: time of a step, time waited for its batch."""
    patch = keras.Input((15, 15, 2))
    x = layers.Conv2D(16, 3, activation="relu")(patch)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    code = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.Conv2DTranspose(16, 3, activation="relu")(code)
    x = layers.Conv2DTranspose(16, 3, activation="relu")(x)
    x = layers.UpSampling2D(2)(x)
    x = layers.Conv2DTranspose(16, 3, activation="relu")(x)
    image = layers.Conv2DTranspose(2, 2, activation="sigmoid")(x)
    network = keras.Model(patch, [code, image])
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(network.trainable_variables)

    @tf.function
    def step(element: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = 0.0
            codes = []
            for name in ("patch", "partner"):
                code, image = network(element[name])
                codes.append(tf.reshape(code, (BATCH, -1)))
                loss += tf.reduce_mean(tf.reduce_sum((image - element[name]) ** 2, (1, 2, 3)))
            loss += 0.005 * tf.reduce_mean(keras.losses.cosine_similarity(*codes))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, network.trainable_variables), network.trainable_variables, strict=True)
        )
        return loss

    def run(batches: Iterable[dict[str, tf.Tensor]], count: int) -> tuple[float, float]:
        """Mean seconds of a step and of the wait before it."""
        waited, start = 0.0, time.perf_counter()
        iterator = iter(batches)
        for _ in range(count):
            asked = time.perf_counter()
            element = next(iterator)
            waited += time.perf_counter() - asked
            step(element).numpy()
        return (time.perf_counter() - start) / count, waited / count

    batches = iter(patch_dataset(list(cohort(20)), sampling="pair", batch_size=BATCH))
    one = next(batches)
    run(itertools.repeat(one), 20)
    results = []
    for _ in range(ROUNDS):
        results.append((*run(itertools.repeat(one), 40), *run(batches, 40)))
    bare, _, whole, wait = (median(column) for column in zip(*results, strict=True))
    print(f"\ntraining step of {BATCH} pairs: {1000 * whole:.1f} ms, {1000 * wait:.2f} ms of it waiting")
    print(f"  waiting {wait / whole:.1%} of the step (target under {TARGET_WAIT:.0%});", end=" ")
    print(f"the same batch over and over: {1000 * bare:.1f} ms ({whole / bare - 1:+.1%} with the pipeline)")


def main() -> None:
    if "--memory" in sys.argv:
        print(memory(int(sys.argv[-1])))
        return
    warnings.simplefilter("ignore")
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before the run (what others take of the machine)")
    speed()
    memory_against_cohort()
    training()


if __name__ == "__main__":
    main()

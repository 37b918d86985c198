"""The one-class SVM at every voxel against a joblib-parallel scikit-learn loop, and the whole at 1 mm.

    python -m benchmarks.detection [--slices 6] [--controls 75]

One run on all cores; rivals take turns, so that a busy machine disturbs all alike; medians and their ratios,
with the agreement beside each. Scikit-learn is timed on a sample of voxels. The whole (encode, fit,
cross-fit, calibrate, write; then load and score) is run on some axial slices of the 1 mm template grid with
synthetic controls and scaled to the brain; its cost is linear in voxels, which is shown.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import joblib
import keras
import numpy as np
from scipy import ndimage
from sklearn.svm import OneClassSVM

from benchmarks.dense import reference_encoder
from epizoo.detection import FittedDetector, fit_detector
from epizoo.detection.kernels import buffers, compiled, distances, over_voxels
from epizoo.detection.ocsvm import LocalOneClassSVM, _kernel
from tfds_epilepsy.volumes import Subject, load_template

NU = 0.03
ROUNDS = 5
BRAIN = 1_500_000  # voxels at 1 mm without cerebellum and brain stem
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=6, help="axial slices of the 1 mm grid in the whole")
    parser.add_argument("--controls", type=int, default=75)
    arguments = parser.parse_args()
    against_scikit_learn(arguments.controls)
    the_whole(arguments.slices, arguments.controls)


def against_scikit_learn(n: int, d: int = 64, voxels: int = 8192, sample: int = 512) -> None:
    """Fit and score beside scikit-learn, on codes of rank 8 with noise, rectified as an encoder's are."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(voxels, 8, d))

    def draw(m: int) -> np.ndarray:
        codes = rng.normal(size=(voxels, m, 8)) @ basis + 0.3 * rng.normal(size=(voxels, m, d))
        return np.maximum(codes, 0).astype(np.float32)

    controls, patient = draw(n), draw(1)
    detector = LocalOneClassSVM(NU)
    detector.fit(controls[:8]).score(patient[:8])  # compile
    kernels_alone(controls[:8])
    times: dict[str, list[float]] = {}
    with joblib.Parallel(n_jobs=CORES) as parallel:
        jobs = np.array_split(np.arange(sample), 4 * CORES)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            fitted = parallel(joblib.delayed(fit_loop)(controls[job]) for job in jobs)
            times.setdefault("fit, scikit-learn", []).append((time.perf_counter() - start) / sample)
            start = time.perf_counter()
            parts = [
                joblib.delayed(score_loop)(svms, patient[job]) for svms, job in zip(fitted, jobs, strict=True)
            ]
            reference = np.concatenate(parallel(parts))
            times.setdefault("score, scikit-learn", []).append((time.perf_counter() - start) / sample)
            works: dict[str, Callable[[], object]] = {
                "fit": lambda: detector.fit(controls),
                "kernel matrices alone": lambda: kernels_alone(controls),
                "score": lambda: detector.score(patient),
            }
            for name, work in works.items():
                start = time.perf_counter()
                work()
                times.setdefault(name, []).append((time.perf_counter() - start) / voxels)
    error = np.abs(detector.score(patient)[:sample, 0] - reference).max()
    micro = {name: 1e6 * median(values) for name, values in times.items()}
    print(f"n = {n}, d = {d}, nu = {NU}, {CORES} cores; microseconds per voxel, median of {ROUNDS}")
    for name, value in micro.items():
        print(f"  {name:24s}{value:10.2f}")
    print(f"  fit:    {micro['fit, scikit-learn'] / micro['fit']:.1f} times the scikit-learn loop")
    print(f"          {micro['fit'] / micro['kernel matrices alone']:.1f} times the kernel matrices alone")
    print(f"  score:  {micro['score, scikit-learn'] / micro['score']:.1f} times the scikit-learn loop")
    print(f"  largest difference of decision values on {sample} new codes: {error:.1e}")
    print(f"  support vectors per voxel: {len(detector.alpha_) / voxels:.1f}")


def fit_loop(controls: np.ndarray) -> list[OneClassSVM]:
    return [OneClassSVM(nu=NU, tol=1e-5).fit(codes) for codes in controls]


def score_loop(svms: list[OneClassSVM], codes: np.ndarray) -> np.ndarray:
    return np.array([-svm.decision_function(x)[0] for svm, x in zip(svms, codes, strict=True)])


def kernels_alone(codes: np.ndarray) -> None:
    over_voxels(lambda start, stop: _kernels(codes, start, stop), len(codes))


@compiled
def _kernels(codes, start, stop):
    _, n, d = codes.shape
    everyone = np.arange(n)
    distance, buffer = buffers(n, d)
    kernel, powers = np.zeros(distance.shape, np.float32), np.empty(len(distance), np.int32)
    for voxel in range(start, stop):
        distances(codes[voxel], buffer, distance)
        _kernel(distance, 0.01, everyone, kernel, powers)


def the_whole(slices: int, n: int) -> None:
    """From images to maps with the reference encoder, on slices of the 1 mm grid."""
    keras.utils.set_random_seed(0)
    encoder = reference_encoder()
    rows = []
    for count, controls in ((slices, n), (slices, n // 2), (slices // 2, n)):
        with tempfile.TemporaryDirectory() as folder:
            cohort = [synthetic_subject(number, count) for number in range(controls)]
            start = time.perf_counter()
            model = fit_detector(encoder, lambda cohort=cohort: cohort, Path(folder) / "detector")
            fit = time.perf_counter() - start
            voxels = int(model.mask.sum())
            size = sum(path.stat().st_size for path in model.folder.iterdir())
            patient = synthetic_subject(10_000, count)
            start = time.perf_counter()
            FittedDetector.load(model.folder, encoder).score(patient)
            first = time.perf_counter() - start
            start = time.perf_counter()
            model.score(patient)
            rows.append((controls, voxels, fit, size, first, time.perf_counter() - start))
    print(f"the whole, 1 mm, siamese encoder, {CORES} cores")
    print("  controls  voxels   fit s  us / voxel   scaled to 1.5 M voxels: fit, disk, first score, score")
    for controls, voxels, fit, size, first, score in rows:
        scale = BRAIN / voxels
        print(
            f"  {controls:8d}{voxels:8d}{fit:8.1f}{1e6 * fit / voxels:12.0f}   {scale * fit / 60:6.1f} min"
            f"{scale * size / 2**30:8.2f} GiB{scale * first:8.1f} s{scale * score:8.1f} s"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  peak memory of the process: {peak:.1f} GiB")


def synthetic_subject(number: int, slices: int) -> Subject:
    """Some middle slices of the template, warped by about a millimetre, with texture and noise."""
    template = load_template(1)
    rng = np.random.default_rng(number)
    part = slice(80 - slices // 2 - 2, 80 - slices // 2 + slices + 2)
    flair = 0.75 * template.gm + 0.6 * template.wm + 0.15 * template.csf
    images = np.stack([template.t1, flair], -1)[:, :, part] * template.brain_mask[:, :, part, None]
    shape = images.shape[:3]
    shift = [10 * ndimage.gaussian_filter(rng.normal(size=shape), 5) for _ in shape]
    grid = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij", sparse=True)
    where = [axis + s for axis, s in zip(grid, shift, strict=True)]
    images = np.stack([ndimage.map_coordinates(images[..., m], where, order=1) for m in range(2)], -1)
    texture = ndimage.gaussian_filter(rng.normal(size=images.shape), (0.7, 0.7, 0.7, 0))
    mask = template.brain_mask[:, :, part] & (images[..., 0] > 0.05)
    image = np.where(mask[..., None], np.clip(images + 0.05 * texture, 0, 1), 0)[:, :, 2:-2]
    mask = mask[:, :, 2:-2]
    return Subject(
        f"{number:05d}",
        "control",
        np.ascontiguousarray(image, np.float32),
        mask,
        np.zeros_like(mask),
        template.affine,
    )


if __name__ == "__main__":
    main()

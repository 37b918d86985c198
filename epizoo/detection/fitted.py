"""A fitted detector: one at every voxel of the brain, calibrated on controls, in a folder.

The work goes slab by slab over axial slices, so that memory is bounded by the slab and not by the cohort.
What is kept of the controls lies in a scratch file each, read a slab at a time and deleted at the end.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from epizoo.detection import version_1
from epizoo.detection.codes import Codes
from epizoo.detection.detector import MODEL, Detector, create_detector
from epizoo.detection.explained import Explained, maps_of
from epizoo.detection.rarity import HISTOGRAM, rarest, rarity
from epizoo.detection.tail import Tail
from epizoo.maps.deviations import PRIOR_FWHM, moderated
from epizoo.maps.smoothing import smooth
from epizoo.registry import DETECTORS
from tfds_epilepsy.bids.participants import FEWEST_CONTROLS
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import replacing, zip_problem
from tfds_epilepsy.progress import stderr, track
from tfds_epilepsy.volumes import Subject, normalise, subject_problems

VERSION = 2
# Of a voxel's scores, where all controls score the same: a thousandth of the brain's, and in any case:
SMALLEST_SHARE, SMALLEST_SD = 1e-3, 1e-4
NORMALISATIONS = ("unit", "zscore")  # that an exported pipeline can do; others are learnt from a cohort
SLAB_BYTES = 2**29  # of codes; larger slabs do not make it faster
SPACING = 0.75  # of the smoothing's fwhm: how far apart the voxels may be at which a model is asked
POOLED_FWHM = 24.0  # millimetres, of the variance of maps that are sums of deviations


def fit_detector(
    model: Any,
    subjects: Callable[[], Iterable[Subject]],
    folder: str | Path,
    detector: str | Detector = "ocsvm",
    *,
    modalities: Sequence[str] | None = None,
    folds: int = 10,
    fwhm: float = 0.0,
    neighbours: bool = False,
    seed: int = 0,
    slab_bytes: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> FittedDetector:
    """Fit a detector at every voxel on controls, and calibrate its scores on them by cross-fitting.

    The mask is where at least half of the controls have brain. Each control is scored by detectors that did
    not see its fold; the mean and standard deviation of these scores at a voxel turn scores into z units.
    The variance of so few scores is moderated with that of its neighbourhood (Smyth 2004:
    ``(f s^2 + f0 s0^2) / (f + f0)``, f = n - 1, f0 = 10, s0^2 the variance map smoothed at 8 mm), and the
    factor ``sqrt(1 + 1/n)`` of a new subject's score is in it. No standard deviation is less than a
    thousandth of the brain's (root mean square) or than 1e-4: controls that hardly vary give no huge z.

    A killed fit, called again with the same arguments, goes on at its slab; a finished one is loaded.

    Example:
        >>> normative = fit_detector(None, lambda: iter(controls), folder / "detector", "zscore")
        >>> normative.score(patient).shape
        (24, 26, 10)

    Args:
        model: a ``PatchModel``, whose view is read; a Keras encoder, which is fed the images; other
            ``Codes``; or None: the detector's own views, or the intensities where it has none.
        subjects: called once, gives the training controls.
        folder: where the model is kept.
        detector: its name in the registry, or a configured one.
        modalities: names of the images' channels, such as ``("T1w", "FLAIR")``: views say by them what
            lesions change. Those that the model knows by default.
        folds: of the calibration; with fewer controls than folds, each control is a fold. Ten leave the
            detectors of the folds nine tenths of the controls: with 75, the z of new controls then has mean
            -0.05 and deviation 0.95 (five folds: -0.1 and 0.9; three: -0.2 and 0.8), at each voxel alike.
        fwhm: smoothing of the score map inside the brain, millimetres; the controls' maps are smoothed too
            before the calibration. None by default. A detector with a ``stride`` asks the model at fewer
            voxels where these are at most .75 of it apart.
        neighbours: fit each voxel on the controls' codes at its six neighbours too: seven times the samples
            and memory and, for the SVM, some fifty times the time.
        seed: of the folds, and of the voxels that a detector of the whole brain is shown.
        slab_bytes: memory for the codes of a slab; by default at most half a GiB, and with what the detector
            needs beside them (``Detector.working``) at most half of what is free.
        overwrite: begin anew what is in the folder.
        console: where progress is shown.

    Raises:
        InputError: fewer than three controls, one that is not a control or stands twice, grids that disagree,
            NaN, an empty mask; a folder that holds another fit or cannot be written.
    """
    console = console or stderr
    chosen = create_detector(detector) if isinstance(detector, str) else detector
    codes = chosen.codes(model, modalities)
    chosen = chosen.unfitted().told(codes)
    folder = Path(folder)
    fit = _Fit(codes, chosen, folder, folds=folds, fwhm=fwhm, seed=seed, neighbours=neighbours)
    try:
        fit.read(subjects)
        if overwrite:
            fit.clear()
        fit.plan(slab_bytes)
        if not (folder / "manifest.json").is_file():
            console.print(fit.description)
            fit.prepare()
            for number in track(range(len(fit.slabs)), "fit slabs", console=console):
                fit.slab(number)
            fit.calibrate()
    finally:
        fit.tidy()
    return FittedDetector(folder, fit.codes, fit.manifest)


class FittedDetector:
    """A fitted detector that scores whole subjects; made by ``fit_detector`` or ``load``.

    Example:
        >>> normative = FittedDetector.load(run_folder / "detector", None)  # of no encoder
        >>> score_map = normative.score(patient)
        >>> score_map.shape, bool(score_map[~patient.brain_mask].any())
        ((24, 26, 10), False)

    Attributes:
        subjects: labels of the controls that it was fitted on.
        mask: ``(x, y, z)`` bool, where it is fitted.
        affine: ``(4, 4)``.
        mean, sd: ``(x, y, z)`` float32, of the controls' scores: what turns a score into z;
            ``(x, y, z, p)`` of a detector with p profiles.
        rarities: of each profile at each edge of ``HISTOGRAM`` (``epizoo.detection.rarity``); none without
            profiles.
        tail: of the highest scores of healthy people; None where an earlier version has fitted the detector.
        manifest: what the folder says of itself.
    """

    def __init__(self, folder: Path, codes: Codes, manifest: Mapping[str, Any]):
        self.folder, self.codes, self.manifest = folder, codes, manifest
        self.subjects: list[str] = manifest["subjects"]
        self.affine = np.array(manifest["affine"])
        calibration = self._read("calibration.npz")
        self.mask: NDArray[np.bool_] = calibration["mask"]
        self.mean, self.sd = calibration["mean"], calibration["sd"]
        self._survival = calibration["survival"]
        self.rarities = calibration.get("rarities", np.empty((0, len(HISTOGRAM)), np.float32))
        self.tail: Tail | None = None  # of fits of earlier versions
        if "tail" in calibration:
            location, scale = map(float, calibration["tail"])
            self.tail = Tail(location, scale, len(self.subjects))
        size = sum(path.stat().st_size for path in folder.glob("slab-*.npz"))
        self._keep = 3 * size < psutil.virtual_memory().available / 2  # packed files grow when they are read
        self._slabs: dict[int, Detector] = {}

    @classmethod
    def load(cls, folder: str | Path, model: Any) -> FittedDetector:
        """A fitted detector, in any process.

        Args:
            folder: where ``fit_detector`` wrote it.
            model: what ``fit_detector`` was given.

        Raises:
            InputError: no finished fit there, a later version, another model, damaged files.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise InputError(f"{folder}: no fitted detector (no manifest.json); fit it first.")
        manifest = _read_json(path)
        earlier = manifest.get("version") == 1
        if earlier:
            manifest = version_1.upgraded(manifest)
        elif manifest.get("version") != VERSION:
            raise InputError(
                f"{path}: format version {manifest.get('version')!r}, this epizoo reads {VERSION}: "
                "fit the detector again."
            )
        detector = create_detector(manifest["detector"], **manifest["config"])
        codes = detector.codes(model, manifest["modalities"]).with_stride(manifest.get("stride", 1))
        found = version_1.fingerprint(codes) if earlier else codes.fingerprint
        if found != manifest["codes"]:
            raise InputError(
                f"{folder} was fitted on the codes of another encoder or on other maps ({manifest['codes']}, "
                f"these are {found}): load the model of its run, or fit the detector again."
            )
        return cls(folder, codes, manifest)

    def score(self, subject: Subject) -> NDArray[np.float32]:
        """How abnormal each voxel of a subject is: ``(x, y, z)`` float32, in z units of the controls.

        0 outside the model's mask and the subject's own brain mask.

        Raises:
            InputError: another grid, other modalities, NaN, an empty brain mask.
        """
        return self.explain(subject).score_map

    def explain(self, subject: Subject) -> Explained:
        """The score map, and what its scores are made of.

        Raises:
            InputError: as ``score``.
        """
        problems = subject_problems(
            subject,
            self.mask.shape,
            self.affine,
            self.manifest["channels"],
            f"the detector in {self.folder}",
        )
        if problems:
            raise InputError(problems)
        volume = self.codes.volume(subject)
        evidence: NDArray[np.float32] | None = None
        parts: dict[str, NDArray[np.float32]] = defaultdict(lambda: np.zeros(self.mask.shape, np.float32))
        sample = None
        for number, (start, stop) in enumerate(self.manifest["slabs"]):
            detector = self._slab(number)
            if detector.sampled:
                if sample is None:
                    sample = _sample(self.codes, volume, self.mask, detector.sampled, self.manifest["seed"])
                detector.prepare(sample[:, None])
            codes = self.codes.at(volume, self.mask, slice(start, stop))
            known = covariates_of(subject, detector.covariates)
            found = detector.evidence(codes[:, None], **known)[:, 0]
            if evidence is None:
                evidence = np.zeros((*self.mask.shape, found.shape[1]), np.float32)
            here = self.mask[:, :, start:stop]
            evidence[:, :, start:stop][here] = found
            for name, values in detector.parts(codes[:, None]).items():
                parts[name][:, :, start:stop][here] = values[:, 0]
        for name, values in self.codes.parts(volume).items():
            parts[name] = np.where(self.mask, values, 0)
        assert evidence is not None  # a mask is not empty
        inside = self.mask & subject.brain_mask
        detector = self.detector
        maps = maps_of(detector, evidence, inside, self.affine, self.manifest["fwhm"])
        if not detector.kinds:
            score = (maps[..., 0] - self.mean) / self.sd
            return Explained(np.where(inside, score, 0).astype(np.float32), dict(parts))
        shares = [profile.share for profile in detector.kinds]
        score, aligned = rarest((maps - self.mean) / self.sd, self.rarities, shares)
        kinds = {
            profile: np.where(inside, aligned[..., p], -np.inf) for p, profile in enumerate(detector.kinds)
        }
        known = inside & np.isfinite(score)
        return Explained(np.where(known, score, 0).astype(np.float32), dict(parts), kinds)

    def p_values(self, score_map: NDArray[np.floating]) -> NDArray[np.float32]:
        """One-sided p of each z: the share of the controls' cross-fitted voxels that reach it; 1 outside.

        Uncorrected: no voxel can fall under one over the number of the controls' voxels.
        """
        inside = self.mask & (score_map != 0)
        index = np.searchsorted(HISTOGRAM, score_map[inside], side="right") - 1
        p = np.ones(self.mask.shape, np.float32)
        p[inside] = self._survival[np.clip(index, 0, len(self._survival) - 1)]
        return p

    @cached_property
    def detector(self) -> Detector:
        """The detector's name and options, told what it reads; not fitted."""
        return create_detector(self.manifest["detector"], **self.manifest["config"]).told(self.codes)

    def state(self, number: int) -> dict[str, NDArray[Any]]:
        """``Detector.state`` of a slab: ``manifest["slabs"][number]`` are its first slice and its end."""
        return self._read(_slab_name(number))

    def _slab(self, number: int) -> Detector:
        if number in self._slabs:
            return self._slabs[number]
        detector_class = DETECTORS.get(self.manifest["detector"])
        detector = detector_class.from_state(self.state(number), **self.manifest["config"]).told(self.codes)
        if self._keep:
            self._slabs[number] = detector
        return detector

    def _read(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of a file whose checksum is right."""
        path = self.folder / name
        content = path.read_bytes() if path.is_file() else b""
        if _checksum(content) != self.manifest["checksums"].get(name):
            raise InputError(
                f"{path}: missing or damaged (its checksum is not the manifest's): fit it again."
            )
        try:
            return _arrays(content)
        except (ValueError, MemoryError, zipfile.BadZipFile) as error:  # whoever made it wrote its checksum
            raise InputError(f"{path}: no arrays of a detector ({error}).") from error


class _Fit:
    """The steps of one fit; see ``fit_detector``."""

    def __init__(
        self,
        codes: Codes,
        detector: Detector,
        folder: Path,
        *,
        folds: int,
        fwhm: float,
        seed: int,
        neighbours: bool,
    ):
        if folds < 2:
            raise InputError(f"folds={folds}: at least 2 are needed.")
        if fwhm < 0:
            raise InputError(f"fwhm={fwhm}: millimetres, 0 or more.")
        if fwhm and detector.kinds:
            raise InputError(
                f"fwhm={fwhm}: the profiles of {detector.name!r} smooth their maps, each by its own."
            )
        if neighbours and detector.sampled:
            raise InputError(
                f"neighbours: {detector.name!r} is one for the brain and has no neighbours to add."
            )
        self.codes, self.detector, self.folder = codes, detector, folder
        self.folds, self.fwhm, self.seed, self.neighbours = folds, float(fwhm), seed, neighbours
        self.scratch = folder / "scratch"

    def read(self, subjects: Callable[[], Iterable[Subject]]) -> None:
        """Keep what the codes need of each control in the scratch folder; find the mask."""
        problems: list[str] = []
        self.subjects: list[str] = []
        known: list[dict[str, NDArray[np.float64]]] = []
        checksum = 0
        normalised = set(NORMALISATIONS)
        _writable(self.scratch)
        for subject in subjects():
            name = f"sub-{subject.subject}"
            if not self.subjects:
                self.shape, self.affine = subject.image.shape[:3], np.asarray(subject.affine, np.float64)
                self.channels, first = subject.image.shape[3], name
                votes = np.zeros(self.shape, np.int32)
            found = subject_problems(subject, self.shape, self.affine, self.channels, first)
            if subject.group != "control":
                found.append(f"{name} is a {subject.group}: a normative model is fitted on controls alone.")
            if subject.subject in self.subjects:
                found.append(f"{name} stands twice among the controls.")
            problems += found
            self.subjects.append(subject.subject)
            known.append(covariates_of(subject, self.detector.covariates))
            if problems:
                continue
            votes += subject.brain_mask
            normalised = {method for method in normalised if _stays(subject, method)}
            for array in (subject.image, subject.brain_mask):
                checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
            # In Fortran order a slab of axial slices is one run of the file.
            volume = np.asfortranarray(self.codes.volume(subject), np.float32)
            np.save(self._volume_path(len(self.subjects) - 1), volume)
        if len(self.subjects) < FEWEST_CONTROLS:
            problems.append(
                f"{len(self.subjects)} controls: at least {FEWEST_CONTROLS} are needed to fit a detector."
            )
        if problems:
            raise InputError(problems)
        self.mask = 2 * votes >= len(self.subjects)
        if not self.mask.any():
            raise InputError(
                "no voxel lies in the brain of half of the controls: are they in template space?"
            )
        self.checksum = f"{checksum:08x}"
        self.normalised = sorted(normalised)
        self.covariates = {
            name: np.concatenate([row[name] for row in known]) for name in self.detector.covariates
        }

    def plan(self, slab_bytes: int | None) -> None:
        """Cut the brain into slabs, or take up the plan of a killed fit."""
        self.codes = self.codes.with_stride(self._stride())
        slices = np.nonzero(self.mask.any((0, 1)))[0]
        middle = int(slices[len(slices) // 2])
        self.width = self._codes_of(0, slice(middle, middle + 1)).shape[1]
        free = psutil.virtual_memory().available / 2
        room = slab_bytes or min(SLAB_BYTES, int(free / (1 + self.detector.working)))
        plan = {
            "version": VERSION,
            "detector": self.detector.name,
            "config": self.detector.get_config(),
            "codes": self.codes.fingerprint,
            "encoder": None if self.codes.encoded is None else self.codes.encoded.encoder_fingerprint,
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "channels": self.channels,
            "modalities": None if self.codes.modalities is None else list(self.codes.modalities),
            "code_size": self.width,
            "subjects": self.subjects,
            "images": self.checksum,
            "normalised": self.normalised,
            "covariates": {
                name: [repr(v) for v in values.tolist()] for name, values in self.covariates.items()
            },
            "folds": self.folds,
            "fwhm": self.fwhm,
            "neighbours": self.neighbours,
            "stride": self.codes.stride,
            "kinds": [profile.name for profile in self.detector.kinds],
            "seed": self.seed,
            "slabs": self._cut(room, 4 * self.width * len(self.subjects) * (7 if self.neighbours else 1)),
        }
        self.manifest = json.loads(json.dumps(plan))
        if (self.folder / "manifest.json").is_file():
            return self._take_up("manifest.json")
        if (self.folder / "plan.json").is_file():
            if _read_json(self.folder / "plan.json").get("version") == VERSION:
                return self._take_up("plan.json")
            self.clear()  # what an earlier version had not finished
        _write(self.folder / "plan.json", json.dumps(self.manifest, indent=1).encode())

    @property
    def slabs(self) -> list[list[int]]:
        slabs: list[list[int]] = self.manifest["slabs"]
        return slabs

    @property
    def description(self) -> str:
        voxels = max(np.count_nonzero(self.mask[:, :, a:b]) for a, b in self.slabs)
        return (
            f"{self.detector.name} on {len(self.subjects)} controls at {np.count_nonzero(self.mask)} voxels, "
            f"{self.width} numbers each: {len(self.slabs)} slabs, the largest holds "
            f"{4 * voxels * self.width * len(self.subjects) / 2**30:.2f} GiB of codes"
        )

    def prepare(self) -> None:
        """Show the whole brain to a detector that wants to see it."""
        if self.detector.sampled:
            samples = [
                _sample(self.codes, self._volume(control), self.mask, self.detector.sampled, self.seed)
                for control in range(len(self.subjects))
            ]
            self.detector.prepare(np.stack(samples, axis=1), self._fold_of_controls())

    def slab(self, number: int) -> None:
        """Fit one slab and write it, with the cross-fitted scores of the controls; skipped where done."""
        path, scores_path = self.folder / _slab_name(number), self._scores_path(number)
        if path.is_file() and scores_path.is_file():
            return
        z = slice(*self.slabs[number])
        codes, folds, known = self._controls_at(z), self._fold_of_controls(), self.covariates
        if self.neighbours:
            codes = self._with_neighbours(codes, z)
            repeats = codes.shape[1] // len(folds)
            folds, known = np.tile(folds, repeats), {k: np.tile(v, repeats) for k, v in known.items()}
        evidence = self.detector.cross_evidence(codes, folds, **known)[:, : len(self.subjects)]
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(evidence.swapaxes(0, 1)))
        _write(scores_path, buffer.getvalue())
        _write_arrays(path, self.detector.fit(codes, **known).state())

    def calibrate(self) -> None:
        """What maps of healthy people look like: mean and deviation, and how high the highest are.

        Each control is held against the others. The manifest is written last of all.
        """
        n, shape = len(self.subjects), (np.count_nonzero(self.mask), max(1, len(self.detector.kinds)))
        mean, squares = np.zeros(shape), np.zeros(shape)
        for control in range(n):  # Welford's update
            maps = self._control_maps(control)
            np.save(self._maps_path(control), maps)
            delta = maps - mean
            mean += delta / (control + 1)
            squares += delta * delta * control / (control + 1)
        if self.detector.calibration == "brain":
            squares[:] = squares.mean(0) + n * mean.var(0)
            mean[:] = mean.mean(0)
        sd = self._sd(squares, n - 1)

        def held_out(control: int) -> NDArray[np.float32]:
            """z of a control among the others, ``(v, p)``."""
            off = np.load(self._maps_path(control)) - mean
            others = sd
            if self.detector.calibration != "brain":
                others = self._sd(np.maximum(squares - off**2 * n / (n - 1), 0), n - 2)
            return np.asarray(off * n / (n - 1) / (others * np.sqrt(1 + 1 / (n - 1))), np.float32)

        reached = np.zeros((shape[1], len(HISTOGRAM)))  # how many are at each edge or above
        highest = np.empty((shape[1], n))
        for control in range(n):
            among_others = held_out(control)
            np.save(self._maps_path(control), among_others)
            for p, z in enumerate(among_others.T):
                z = z[np.isfinite(z)]
                reached[p] += len(z) - np.searchsorted(np.sort(z), HISTOGRAM)
                highest[p, control] = z.max(initial=-np.inf)
        there = np.isfinite(highest).all(1)
        if not there.any():
            raise InputError(
                f"profiles {', '.join(self.manifest['kinds'])}: no place where they are looked for lies in "
                "the brains of the controls: are they in template space?"
            )
        for array in (reached, highest):  # of a profile that is looked for nowhere here nothing is read
            array[~there] = array[there.argmax()]
        survival = (reached + 1) / (reached.max(1, keepdims=True) + 1)
        tails = [Tail.fit(maxima) for maxima in highest]
        arrays = {
            "mask": self.mask,
            "mean": self._volumes(mean, 0),
            "sd": self._volumes(sd * np.sqrt(1 + 1 / n), 1),
            "survival": survival[0],
        }
        if self.detector.kinds:
            rarities = np.stack([rarity(s, tail) for s, tail in zip(survival, tails, strict=True)])
            shares = [profile.share for profile in self.detector.kinds]
            fused = (rarest(np.load(self._maps_path(control)), rarities, shares)[0] for control in range(n))
            tails[0] = Tail.fit([float(values.max()) for values in fused])
            arrays |= {"rarities": rarities}
        arrays |= {"tail": np.array([tails[0].location, tails[0].scale])}
        _write_arrays(self.folder / "calibration.npz", arrays)
        names = ["calibration.npz", *(_slab_name(number) for number in range(len(self.slabs)))]
        self.manifest["checksums"] = {name: _checksum((self.folder / name).read_bytes()) for name in names}
        _write(self.folder / "manifest.json", json.dumps(self.manifest, indent=1).encode())
        (self.folder / "plan.json").unlink()

    def clear(self) -> None:
        """Forget another fit in the folder."""
        for pattern in ("manifest.json", "plan.json", "*.npz", "scratch/scores-*.npy"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def tidy(self) -> None:
        """Leave what a finished model needs, or what a broken fit goes on from."""
        for path in self.scratch.glob("volume-*.npy"):
            path.unlink()
        if (self.folder / "manifest.json").is_file():
            shutil.rmtree(self.scratch)
        for path in (self.scratch, self.folder):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _controls_at(self, z: slice) -> NDArray[np.float32]:
        """Codes ``(v, n, d)`` of all controls at the mask's voxels in some slices."""
        voxels = np.count_nonzero(self.mask[:, :, z])
        codes = np.empty((voxels, len(self.subjects), self.width), np.float32)
        for control in range(len(self.subjects)):
            codes[:, control] = self._codes_of(control, z)
        return codes

    def _with_neighbours(self, codes: NDArray[np.float32], z: slice) -> NDArray[np.float32]:
        """The codes of each voxel, and beside them those of its six neighbours: ``(v, 7 n, d)``.

        A neighbour outside the mask is replaced by the voxel itself.
        """
        begin, end = max(z.start - 1, 0), min(z.stop + 1, self.shape[2])
        around = self._controls_at(slice(begin, end))
        row = np.full(self.mask.shape, -1)
        row[:, :, begin:end][self.mask[:, :, begin:end]] = np.arange(len(around))
        row = np.pad(row, 1, constant_values=-1)
        voxels = np.argwhere(self.mask[:, :, z]) + np.array([1, 1, z.start + 1])
        own = row[tuple(voxels.T)]
        steps = np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
        rows = [row[tuple((voxels + step).T)] for step in steps]
        return np.concatenate([codes, *(around[np.where(r < 0, own, r)] for r in rows)], axis=1)

    def _volume(self, control: int) -> NDArray[np.float32]:
        volume: NDArray[np.float32] = np.load(self._volume_path(control), mmap_mode="r")
        return volume

    def _codes_of(self, control: int, z: slice) -> NDArray[np.float32]:
        codes = self.codes.at(self._volume(control), self.mask, z)
        if not np.isfinite(codes).all():
            raise InputError(
                f"sub-{self.subjects[control]}: its codes are NaN or infinite; is the encoder trained?"
            )
        return codes

    def _control_maps(self, control: int) -> NDArray[np.float32]:
        """Cross-fitted maps of a control at the voxels of the mask, ``(v, p)``; NaN where not looked for."""
        evidence: NDArray[np.float32] | None = None
        for number, (start, stop) in enumerate(self.slabs):
            slab = np.load(self._scores_path(number), mmap_mode="r")[control]
            if evidence is None:
                evidence = np.zeros((*self.shape, slab.shape[1]), np.float32)
            evidence[:, :, start:stop][self.mask[:, :, start:stop]] = slab
        assert evidence is not None
        return maps_of(self.detector, evidence, self.mask, self.affine, self.fwhm)[self.mask]

    def _around(self, variance: NDArray[np.float64], fwhm: float) -> NDArray[np.float64]:
        """The variance in the neighbourhood of each voxel, ``(v, p)``."""
        around = np.empty(variance.shape)
        for p, values in enumerate(variance.T):
            known = np.isfinite(values)
            where = np.zeros(self.shape, bool)
            where[self.mask] = known
            volume = np.zeros(self.shape, np.float32)
            volume[where] = values[known]
            around[:, p] = smooth(volume, where, self.affine, fwhm)[self.mask]
        return around

    def _sd(self, squares: NDArray[np.float64], freedom: int) -> NDArray[np.float64]:
        """Standard deviations ``(v, p)`` of maps from their sums of squares, as the calibration asks for."""
        variance = squares / freedom
        if self.detector.calibration == "voxel":
            variance = moderated(variance, freedom, self._around(variance, PRIOR_FWHM))
        elif self.detector.calibration == "neighbourhood":
            variance = self._around(variance, POOLED_FWHM)
        floor = np.maximum(SMALLEST_SHARE**2 * np.nanmean(variance, 0), SMALLEST_SD**2)
        return np.asarray(np.sqrt(np.maximum(variance, floor)))

    def _volumes(self, values: NDArray[np.float64], outside: float) -> NDArray[np.float32]:
        """Values ``(v, p)`` on the grid: ``(x, y, z, p)``, or ``(x, y, z)`` of a detector of one map."""
        volumes = np.full((*self.shape, values.shape[1]), outside, np.float32)
        volumes[self.mask] = np.nan_to_num(values, nan=outside)
        return volumes if self.detector.kinds else volumes[..., 0]

    def _fold_of_controls(self) -> NDArray[np.int64]:
        """Folds of equal size, by label, so that the order of the controls does not matter."""
        n = len(self.subjects)
        folds = np.empty(n, np.int64)
        order = np.random.default_rng(self.seed).permutation(np.argsort(self.subjects))
        folds[order] = np.arange(n) % min(self.folds, n)
        return folds

    def _cut(self, room: int, bytes_a_voxel: int) -> list[list[int]]:
        """Runs of slices whose codes fit in the room, at least a slice each."""
        sizes = self.mask.sum((0, 1)) * bytes_a_voxel
        filled = np.nonzero(sizes)[0]
        slabs: list[list[int]] = []
        size = 0
        for z in range(filled[0], filled[-1] + 1):
            if slabs and size + sizes[z] <= room:
                slabs[-1][1] = z + 1
                size += sizes[z]
            else:
                slabs.append([int(z), int(z) + 1])
                size = sizes[z]
        return slabs

    def _take_up(self, name: str) -> None:
        stored = _read_json(self.folder / name)
        stride = stored.get("stride", 1)  # those of earlier versions were asked at every voxel
        if stride != self.codes.stride:
            self.codes = self.codes.with_stride(stride)
            self.manifest |= {"stride": stride, "codes": self.codes.fingerprint}
        if stored.get("version") == 1:
            stored = version_1.upgraded(stored)
            self.manifest["codes"] = version_1.fingerprint(self.codes)
            self.manifest |= {name: stored[name] for name in ("encoder", "modalities", "normalised")}
        known = {"stride": 1, "kinds": [], **stored}
        different = [key for key in self.manifest if key != "slabs" and known.get(key) != self.manifest[key]]
        if different:
            raise InputError(
                f"{self.folder} holds a fit that differs in {', '.join(different)}: "
                "choose another folder, or overwrite it."
            )
        self.manifest = stored

    def _stride(self) -> int:
        """How far apart the voxels are at which a model is asked: less than the map is smoothed, or 1."""
        apart = self.detector.stride * float(np.linalg.norm(self.affine[:3, :3], axis=0).max())
        of_profiles = [profile.fwhm for profile in self.detector.kinds if MODEL in profile.weights]
        return self.detector.stride if apart <= SPACING * min(of_profiles, default=self.fwhm) else 1

    def _volume_path(self, control: int) -> Path:
        return self.scratch / f"volume-{control:04d}.npy"

    def _maps_path(self, control: int) -> Path:
        return self.scratch / f"maps-{control:04d}.npy"

    def _scores_path(self, number: int) -> Path:
        return self.scratch / f"scores-{number:03d}.npy"


def covariates_of(subject: Subject, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Covariates ``(1,)`` of a subject: age in years, sex 0 (f) or 1 (m), NaN where unknown."""
    sexes = {"f": 0.0, "m": 1.0}
    values = {"age": float(subject.age), "sex": sexes.get(subject.sex, np.nan)}
    return {name: np.array([values[name]]) for name in names}


def _sample(
    codes: Codes, volume: NDArray[np.float32], mask: NDArray[np.bool_], size: int, seed: int
) -> NDArray[np.float32]:
    """Codes ``(size, d)`` at voxels drawn from the whole mask; the same voxels for every subject."""
    voxels = np.flatnonzero(mask)
    chosen = np.random.default_rng(seed).choice(voxels, min(size, len(voxels)), replace=False)
    where = np.zeros(mask.size, bool)
    where[chosen] = True
    return codes.at(volume, where.reshape(mask.shape), slice(0, mask.shape[2]))


def _stays(subject: Subject, method: str) -> bool:
    """Whether an image is what a normalisation makes: an exported pipeline leaves it as it is."""
    image, mask = subject.image, subject.brain_mask
    for values, channel in zip(image[mask].T, np.moveaxis(image, -1, 0), strict=True):
        last = len(values) - 1
        ends = np.sort(values)[[int(last * 0.005), math.ceil(last * 0.99)]]
        if method == "unit" and ends.tolist() == [0, 1]:
            continue
        try:
            again = normalise(channel, mask, method)[0][mask]
        except InputError:  # constant
            return False
        if not np.allclose(again, values, atol=1e-4):
            return False
    return True


def _slab_name(number: int) -> str:
    return f"slab-{number:03d}.npz"


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}): choose another folder.") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written: choose another folder.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}): fit the detector again.") from error
    return content


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with replacing(path) as partial:
        np.savez(partial, allow_pickle=False, **arrays)


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if problem := zip_problem(archive):
            raise ValueError(problem)
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return dict(stored)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

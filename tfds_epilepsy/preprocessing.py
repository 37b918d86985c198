"""Raw scans into template space: bias field, brain mask, registration (ANTs), intensities; and the way back.

One subject is one folder of a BIDS derivative. It appears under its final name once it is whole, so a killed
run, started again, goes on with the subjects that are missing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tfds_epilepsy import bids, quality
from tfds_epilepsy.errors import InputError, words
from tfds_epilepsy.files import LOCK, hold, partial_of, read_json, remove, write_json
from tfds_epilepsy.progress import stderr, track
from tfds_epilepsy.regions import cerebrum_mask
from tfds_epilepsy.registration import (
    Scan,
    bounding_box,
    correct_bias,
    grown,
    head_brain_mask,
    import_ants,
    lifted,
    looks_stripped,
    register,
    register_rigid,
    resample,
    stripped_brain_mask,
)
from tfds_epilepsy.volumes import (
    TEMPLATE_SPACE,
    load_template,
    normalise,
    open_nifti,
    read_lesion_mask,
    read_nifti,
    write_nifti,
)

LANDMARKS = "intensity_landmarks.json"
UNMATCHED = ".unmatched"
REFERENCE = "T1w"  # what the others are brought to, and what meets the template


@dataclass(frozen=True)
class Options:
    """What is done to every subject of a derivative: one set of options per folder.

    Example:
        >>> Options(voxel_size=1, normalisation="zscore").skull
        'auto'

    Attributes:
        voxel_size: of the template grid, 1 or 2 mm.
        skull: ``stripped``, ``whole`` (the head is there), or ``auto``: seen from the T1w.
        region: of the brain mask: ``brain``, or ``cerebrum`` (no cerebellum, no brain stem).
        normalisation: ``unit`` or ``zscore`` (see ``volumes.normalise``), or ``match``: ``unit``, then the
            histogram of the training controls (Nyul & Udupa 1999).
        seed: of the samples that ANTs draws.
    """

    voxel_size: int = 2
    skull: str = "auto"
    region: str = "brain"
    normalisation: str = "unit"
    seed: int = 0

    def check(self) -> None:
        """Raises InputError for values that are not among the choices, all at once."""
        choices = {
            "voxel_size": (1, 2),
            "skull": ("auto", "stripped", "whole"),
            "region": ("brain", "cerebrum"),
            "normalisation": ("unit", "zscore", "match"),
        }
        problems = [
            f"{name} {getattr(self, name)!r}: choose one of {', '.join(map(repr, values))}."
            for name, values in choices.items()
            if getattr(self, name) not in values
        ]
        if problems:
            raise InputError(problems)


def preprocess(
    bids_dir: str | Path,
    out_dir: str | Path,
    *,
    participant_labels: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    session: str | None = None,
    filters: Mapping[str, Mapping[str, str]] | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
    voxel_size: int = 2,
    skull: str = "auto",
    region: str = "brain",
    normalisation: str = "unit",
    jobs: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Bring the subjects of a BIDS data set to the MNI152 template: the derivative that ``epizoo run`` reads.

    T1w: N4 bias correction (Tustison et al. 2010), brain mask, affine and SyN registration (Avants et al.
    2008) to the template. Every other image: rigid to the T1w, then the T1w's warp, in one interpolation.
    Intensities are normalised inside the brain. A finished subject is skipped; the same command gives the
    same numbers. ``quality.html`` shows what became of each.

    Example:
        >>> preprocess("BIDS_DIR", "DERIVATIVE", jobs=2)  # doctest: +SKIP

    Args:
        bids_dir: the raw data set.
        out_dir: the derivative, made where it is absent.
        participant_labels: with or without ``sub-``; all subjects by default.
        modalities, session, filters, group_column, groups: see ``bids.raw_subjects``.
        voxel_size, skull, region, normalisation: see ``Options``.
        jobs: subjects at a time, each on one core.
        seed: of the samples that ANTs draws.
        overwrite: make finished subjects anew.

    Returns:
        ``out_dir``.

    Raises:
        InputError: ANTs is not installed; what the data set lacks (all of it, before any work); subjects that
            were finished with other options or from other files; subjects that failed (after all the others).
    """
    options = Options(voxel_size, skull, region, normalisation, seed)
    options.check()
    if modalities is not None and REFERENCE not in modalities:
        raise InputError(f"modalities {', '.join(modalities)}: {REFERENCE} is needed, the others follow it.")
    if jobs < 1:
        raise InputError(f"jobs {jobs!r}: at least one subject at a time.")
    import_ants(seed)
    subjects, problems = bids.find_raw_subjects(
        Path(bids_dir),
        participant_labels,
        modalities=modalities,
        session=session,
        filters=filters,
        group_column=group_column,
        groups=groups,
    )
    if problems:
        again = {raw.subject for raw in subjects} if overwrite else set()
        raise InputError([*_folder_problems(Path(out_dir), options, again), *problems])
    return preprocess_subjects(subjects, Path(bids_dir), Path(out_dir), options, jobs, overwrite)


def to_native(
    volume: str | Path | NDArray[Any], derivative_dir: str | Path, subject: str, *, labels: bool = False
) -> nib.Nifti1Image:
    """A map in template space, in the patient's own T1w space: the voxels and the affine of the raw file.

    Example:
        >>> to_native(done.score_map("p1"), "DERIVATIVE", "p1").to_filename("p1.nii.gz")  # doctest: +SKIP

    Args:
        volume: NIfTI file, or an array on the derivative's grid.
        derivative_dir: the folder that ``preprocess`` made.
        subject: with or without ``sub-``.
        labels: whole numbers (masks, cluster numbers) are to stay whole: nearest neighbour, not linear.

    Returns:
        The image on the raw T1w's grid; float32, or int32 for labels; 0 outside the template's box.

    Raises:
        InputError: the subject, its transform or the volume is missing, or the array is not on the grid.
    """
    stem = f"sub-{subject.removeprefix('sub-')}"
    folder = Path(derivative_dir) / stem
    record, transform = _read_record(folder), _way_back(folder)
    if record is None or not transform.is_file():
        raise InputError(native_problems(derivative_dir, [subject]))
    if isinstance(volume, str | Path):
        array, affine = read_nifti(volume)
    else:
        template = load_template(record["Settings"]["voxel_size"])
        array, affine = np.asarray(volume, dtype=np.float32), template.affine
        if array.shape != template.shape:
            raise InputError(f"a map of shape {array.shape}: {stem} lies on the grid {template.shape}.")
    grid = record["NativeGrid"]
    native = Scan(np.zeros(grid["Shape"], np.float32), np.array(grid["Affine"]))
    moved = resample(
        Scan(array, affine), native, [transform], interpolation="nearestNeighbor" if labels else "linear"
    ).array
    image = nib.Nifti1Image(np.rint(moved).astype(np.int32) if labels else moved, native.affine)
    image.set_qform(native.affine, code=1)
    image.set_sform(native.affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def native_problems(derivative_dir: str | Path, subjects: Sequence[str]) -> list[str]:
    """What ``to_native`` needs of some subjects and does not find, before any work.

    Args:
        derivative_dir: the folder that ``preprocess`` made.
        subjects: with or without ``sub-``.
    """
    try:
        import_ants()
    except InputError as error:
        return error.problems
    folders = [Path(derivative_dir) / f"sub-{subject.removeprefix('sub-')}" for subject in subjects]
    return [
        f"{path}: no such file, or no record of how it was made; {folder.name} is not a "
        f"finished subject of {derivative_dir}."
        for folder in folders
        for path in (_way_back(folder), _way_there(folder))
        if not path.is_file() or _read_record(folder) is None
    ]


def settings_of(derivative_dir: str | Path) -> dict[str, Any]:
    """The options of ``Options`` that a derivative was made with; empty where it is none of ours."""
    for folder in sorted(Path(derivative_dir).glob("sub-*")):
        if record := _read_record(folder):
            return dict(record["Settings"])
    return {}


# === The cohort ===


def preprocess_subjects(
    subjects: Sequence[bids.RawSubject],
    bids_dir: Path,
    out_dir: Path,
    options: Options,
    jobs: int = 1,
    overwrite: bool = False,
) -> Path:
    """``preprocess`` of subjects that were found already."""
    records = {raw.subject: _plan(raw, bids_dir, options) for raw in subjects}
    waiting = _check(subjects, records, out_dir, options, overwrite)
    # Others may work on other subjects; whoever matches histograms needs all of them, and is alone.
    with hold(out_dir, shared=options.normalisation != "match"):
        failures = _work(subjects, waiting, records, bids_dir, out_dir, options, jobs, overwrite)
    if failures:
        raise InputError(
            [
                *sorted(failures),
                f"{len(failures)} of {len(subjects)} subjects failed; the others are kept"
                + (", and are matched once all are there." if options.normalisation == "match" else "."),
            ]
        )
    return out_dir


def _work(
    subjects: Sequence[bids.RawSubject],
    waiting: Sequence[bids.RawSubject],
    records: Mapping[str, dict[str, Any]],
    bids_dir: Path,
    out_dir: Path,
    options: Options,
    jobs: int,
    overwrite: bool,
) -> list[str]:
    """All subjects that wait, the tables, the page; which subjects failed, and why."""
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    name = f"{bids_dir.resolve().name}, in {TEMPLATE_SPACE} space"
    bids.write_description(out_dir, name, source=bids_dir)
    bids.write_bidsignore(out_dir, [LOCK, "quality.html", "*_xfm.h5"])
    notes = [note for raw in waiting for note in raw.notes]
    for note in [*notes, *_correct_participants(out_dir, records)]:
        stderr.print(note, markup=False, soft_wrap=True)
    left = {raw.subject for raw in waiting}
    failures = []
    # Histograms are matched once all are there: until then, finished subjects wait beside.
    staging = out_dir / UNMATCHED if options.normalisation == "match" else out_dir
    staging.mkdir(exist_ok=True)
    work = (
        joblib.delayed(_attempt)(raw, staging, options, records[raw.subject], overwrite) for raw in waiting
    )
    results = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(work)
    try:
        for subject, failure in track(results, "preprocess", len(waiting)):
            left.remove(subject)
            if failure:
                failures.append(failure)
            _gather_participants(out_dir)
    except TerminatedWorkerError:
        failures += [
            f"sub-{subject}: its process was ended from outside, often for want of memory; start again, with "
            "fewer jobs."
            for subject in left
            if overwrite or not (staging / f"sub-{subject}").is_dir()
        ]
    if staging != out_dir and not failures:
        _match_histograms(staging, out_dir)
    _gather_participants(out_dir)
    if any(out_dir.glob("sub-*")):
        quality.write_page(out_dir)
    return failures


def _plan(raw: bids.RawSubject, bids_dir: Path, options: Options) -> dict[str, Any]:
    """What a finished subject was made of: its record must equal this, or it is not up to date."""
    sources = {**{name: path for name, path in raw.images.items()}, "lesion_mask": raw.lesion_mask}
    who = raw.participant
    age = None if np.isnan(who.age) else who.age
    participant = {"group": who.group, "split": who.split, "age": age, "sex": who.sex, "site": who.site}
    return {
        "Settings": asdict(options),
        "Participant": {name: value or None for name, value in participant.items()},
        "SourceFiles": {
            name: {"File": os.path.relpath(path, bids_dir), "SHA256": _sha256(path)}
            for name, path in sources.items()
            if path is not None
        },
    }


def _check(
    subjects: Sequence[bids.RawSubject],
    plans: Mapping[str, Mapping[str, Any]],
    out_dir: Path,
    options: Options,
    overwrite: bool,
) -> list[bids.RawSubject]:
    """The subjects that wait; everything that stands in the way, at once."""
    again = {raw.subject for raw in subjects} if overwrite else set()
    problems = _folder_problems(out_dir, options, again)
    finished = _finished(out_dir)
    problems += [
        f"{finished[label]}: its raw files have changed since; overwrite it, or remove the folder."
        for label in sorted(plans.keys() & finished.keys() - again)
        if (record := _read_record(finished[label]))
        and record["Settings"] == asdict(options)
        and record.get("SourceFiles") != plans[label]["SourceFiles"]
    ]
    waiting = [raw for raw in subjects if raw.subject in again or raw.subject not in finished]
    learnt = options.normalisation != "match" or (out_dir / LANDMARKS).is_file()
    if not learnt and not any(_trains(raw.participant) for raw in subjects):
        problems.append(
            "normalisation 'match' learns from training controls, and none is among the subjects: "
            "preprocess them first, into the same folder."
        )
    if problems:
        raise InputError(problems)
    return waiting


def _finished(out_dir: Path) -> dict[str, Path]:
    """The folder of each subject that is there, by label."""
    paths = [*out_dir.glob(f"{UNMATCHED}/sub-*"), *out_dir.glob("sub-*")]
    return {path.name.removeprefix("sub-"): path for path in paths}


def _folder_problems(out_dir: Path, options: Options, again: Collection[str]) -> list[str]:
    """Why this folder cannot hold the derivative; subjects that are made ``again`` are in nobody's way."""
    if out_dir.exists() and not out_dir.is_dir():
        return [f"{out_dir}: is a file; the derivative needs a folder."]
    _, problems = bids.read_participants(out_dir)
    for label, folder in sorted(_finished(out_dir).items()):
        if label in again:
            continue
        record = _read_record(folder)
        if record is None:
            problems.append(f"{folder}: not made by epizoo; choose another output folder.")
        elif record["Settings"] != asdict(options):
            changed = [
                f"{name} {record['Settings'].get(name)!r}, now {value!r}"
                for name, value in asdict(options).items()
                if record["Settings"].get(name) != value
            ]
            problems.append(
                f"{folder}: was made with other options ({', '.join(changed)}); "
                "choose another output folder, or overwrite all its subjects."
            )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out_dir):
            pass
    except OSError as error:
        problems.append(f"{out_dir}: cannot be written ({error.strerror}).")
    return problems


def _attempt(
    raw: bids.RawSubject, out_dir: Path, options: Options, record: dict[str, Any], overwrite: bool
) -> tuple[str, str]:
    """One subject, whole or not at all: its label, and what went wrong, or nothing."""
    final = out_dir / f"sub-{raw.subject}"
    partial = partial_of(final)
    try:
        if final.exists() and not overwrite:  # another process was there since
            return raw.subject, ""
        record = {**_preprocess_subject(raw, partial / "anat", options), **record}
        sidecar = (
            f"sub-{raw.subject}_space-{TEMPLATE_SPACE}_res-{options.voxel_size}_desc-preproc_{REFERENCE}.json"
        )
        write_json(partial / "anat" / sidecar, record)
        _publish(partial, final, overwrite)
    except Exception as error:  # ANTs raises its plainest ones; one subject does not end a cohort
        return raw.subject, f"sub-{raw.subject}: {words(error)}"
    finally:
        remove(partial)
    return raw.subject, ""


def _publish(partial: Path, final: Path, overwrite: bool) -> None:
    """Give a whole folder its name; the folder of a process that was faster stays, unless to be replaced."""
    old = partial_of(final)
    try:
        if overwrite:
            with suppress(FileNotFoundError):
                os.rename(final, old)
        os.rename(partial, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        remove(old)


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """What fails in this block names the scan that it failed on."""
    try:
        yield
    except Exception as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {words(error)}") from error


def _gather_participants(out_dir: Path) -> None:
    """Until no other process has finished a subject meanwhile."""
    finished: set[Path] = set()
    while finished != (finished := set(out_dir.glob("sub-*"))):
        _write_participants(out_dir)


def _write_participants(out_dir: Path) -> None:
    """participants.tsv: a row for each finished subject that has none. What was written there since stays."""
    records = {folder.name: _read_record(folder) for folder in sorted(out_dir.glob("sub-*"))}
    rows = [
        {"participant_id": name, **record["Participant"]}
        for name, record in records.items()
        if record is not None
    ]
    bids.add_rows(out_dir / "participants.tsv", rows)


def _correct_participants(out_dir: Path, plans: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Bring finished subjects up to date with the raw table, without registration; say what changed."""
    before, now = {}, {}
    for label, plan in plans.items():
        for folder in (out_dir / f"sub-{label}", out_dir / UNMATCHED / f"sub-{label}"):
            for path, record in _records(folder):
                if record["Participant"] != plan["Participant"]:
                    before[label] = record["Participant"]
                    now[path] = {**record, "Participant": plan["Participant"]}
    said = {label: plans[label]["Participant"] for label in before}
    told = bids.correct_cells(out_dir / "participants.tsv", before, said)
    for path, record in now.items():
        write_json(path, record)
    return told + _landmark_notes(out_dir)


def _landmark_notes(out_dir: Path) -> list[str]:
    """Whether the histograms' landmarks were learnt from people who train no longer."""
    path = out_dir / LANDMARKS
    if not path.is_file():
        return []
    people, _ = bids.read_participants(out_dir)
    learnt = [people[label] for label in read_json(path)["TrainingControls"] if label in people]
    others = ", ".join(f"sub-{person.subject}" for person in learnt if not _trains(person))
    if not others:
        return []
    return [
        f"{path}: was learnt from {others}, no training controls any more; to learn it anew, remove it and "
        "overwrite all subjects."
    ]


# === Histogram matching ===


def _match_histograms(staging: Path, out_dir: Path) -> None:
    """Landmarks (Nyul & Udupa 1999): deciles inside the brain, their means over the training controls.

    They are learnt once and kept: a patient who comes later is matched to the same controls. To learn them
    anew, remove the file.
    """
    standard_file = out_dir / LANDMARKS
    if not standard_file.is_file():
        learnt: dict[str, list[NDArray[np.float64]]] = {}
        controls = []
        for folder in sorted(staging.glob("sub-*")):
            who = (_read_record(folder) or {})["Participant"]
            label = folder.name.removeprefix("sub-")
            if _trains(bids.Participant(subject=label, group=who["group"] or "", split=who["split"] or "")):
                controls.append(label)
                for name, (volume, mask, _) in _preprocessed(folder).items():
                    learnt.setdefault(name, []).append(deciles(volume[mask]))
        standard = {name: np.mean(values, axis=0).tolist() for name, values in learnt.items()}
        write_json(standard_file, {"TrainingControls": controls, "Deciles": standard})
    standard = json.loads(standard_file.read_text())["Deciles"]
    for folder in sorted(staging.glob("sub-*")):
        final = out_dir / folder.name
        partial = partial_of(final)
        shutil.copytree(folder, partial)
        for name, (volume, mask, path) in _preprocessed(partial).items():
            if name not in standard:
                raise InputError(f"{folder.name}: no training control has a {name} image to match to.")
            own = deciles(volume[mask])
            matched = np.where(mask, match_deciles(volume, own, standard[name]), 0)
            write_nifti(path, matched, load_template(_voxel_size(partial)).affine)
            sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
            content = json.loads(sidecar.read_text())
            content["Normalisation"] |= {
                "method": "match",
                "deciles": own.tolist(),
                "standard": standard[name],
            }
            write_json(sidecar, content)
        _publish(partial, final, overwrite=True)
        os.rename(folder, retired := partial_of(folder))  # at once: a half-deleted folder is no subject
        remove(retired)
    staging.rmdir()


def deciles(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The eleven landmarks of intensities in [0, 1]: 0, the nine deciles, 1."""
    return np.array([0, *np.percentile(values, range(10, 100, 10)), 1], dtype=np.float64)


def match_deciles(volume: NDArray[np.floating], own: ArrayLike, standard: ArrayLike) -> NDArray[np.float32]:
    """Intensities mapped piece by piece so that the deciles ``own`` become the ``standard`` ones."""
    steps = np.maximum.accumulate(
        np.asarray(own) + np.arange(len(np.asarray(own))) * 1e-9
    )  # ties stay in order
    return np.asarray(np.interp(volume, steps, np.asarray(standard)), np.float32)


def _preprocessed(folder: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.bool_], Path]]:
    """Image name -> volume, brain mask, file of a subject's folder."""
    (mask_file,) = folder.glob("anat/sub-*_desc-brain_mask.nii.gz")
    mask = read_nifti(mask_file)[0] > 0.5
    return {
        path.name.split("_")[-1].split(".")[0]: (read_nifti(path)[0], mask, path)
        for path in sorted(folder.glob("anat/sub-*_desc-preproc_*.nii.gz"))
    }


def _voxel_size(folder: Path) -> int:
    return int((_read_record(folder) or {})["Settings"]["voxel_size"])


def _trains(participant: bids.Participant) -> bool:
    return participant.group == "control" and bids.split_of(participant) == "train"


# === One subject ===


def _preprocess_subject(raw: bids.RawSubject, anat: Path, options: Options) -> dict[str, Any]:
    """Write a subject's volumes, transforms and sidecars into ``anat``; return the rest of its record."""
    import_ants(options.seed)
    anat.mkdir(parents=True)
    stem = f"sub-{raw.subject}"
    template = load_template(options.voxel_size)
    target = Scan(template.t1, template.affine)

    def warped(scan: Scan, chain: Sequence[Path]) -> NDArray[np.float32]:
        """On the template grid in one interpolation, band-limited first where that grid is coarser."""
        return resample(scan.band_limited(options.voxel_size), target, chain).array

    def transform(source: str, goal: str, ending: str) -> Path:
        return anat / f"{stem}_from-{source}_to-{goal}_mode-image_xfm.{ending}"

    with _about(raw.images[REFERENCE]):
        native, offset = lifted(Scan(*read_nifti(raw.images[REFERENCE])))
        stripped = options.skull == "stripped" or (options.skull == "auto" and looks_stripped(native))
        mask = stripped_brain_mask(native) if stripped else head_brain_mask(native)
        if not mask.any():
            raise InputError(f"{raw.images[REFERENCE]}: no brain was found.")
        box = bounding_box(mask, margin=np.ceil(10 / native.spacing))
        mask = mask[box]
        t1 = correct_bias(native.cropped(box), mask)
        brain = t1.with_array(t1.array * mask)
        to_template = transform(REFERENCE, TEMPLATE_SPACE, "h5")
        register(brain, to_template, transform(TEMPLATE_SPACE, REFERENCE, "h5"))
    brain_mask = warped(t1.with_array(mask), [to_template]) > 0.5
    # What skull stripping left below the brain lies outside the template's, and is no tissue to compare.
    brain_mask &= grown(template.brain_mask, 4, target.spacing)
    if options.region == "cerebrum":
        brain_mask &= _nearer_to(cerebrum_mask(options.voxel_size), template.brain_mask)
    if not brain_mask.any():
        raise InputError(f"{raw.images[REFERENCE]}: the registration left no brain in the template's box.")

    space = f"{stem}_space-{TEMPLATE_SPACE}_res-{options.voxel_size}"
    chains = {REFERENCE: [to_template]}
    volumes, fitted, information = {}, {}, {}
    method = "unit" if options.normalisation == "match" else options.normalisation
    for name, path in raw.images.items():
        with _about(path):
            if name == REFERENCE:
                scan = t1
            else:
                scan, offset = lifted(Scan(*read_nifti(path)))
                to_t1 = transform(name, REFERENCE, "mat")
                information[name] = register_rigid(t1, mask, scan, to_t1)
                if name.lower() != "pet":  # uptake, not coil sensitivity
                    inside = resample(t1.with_array(mask), scan, [to_t1], invert=True).array > 0.5
                    scan = correct_bias(scan, inside)
                chains[name] = [to_template, to_t1]
            volumes[name], found = normalise(warped(scan, chains[name]), brain_mask, method)
        ends = {end: float(found[end]) - offset for end in ("low", "high")}  # in the file's own units
        fitted[name] = {**found, **ends}

    for name, volume in volumes.items():
        write_nifti(anat / f"{space}_desc-preproc_{name}.nii.gz", volume, template.affine)
        if name != REFERENCE:
            write_json(anat / f"{space}_desc-preproc_{name}.json", _sidecar(name, fitted[name], options))
    write_nifti(anat / f"{space}_desc-brain_mask.nii.gz", brain_mask, template.affine, dtype=np.uint8)
    write_json(anat / f"{space}_desc-brain_mask.json", {"Type": "Brain", **_place(options)})
    if raw.lesion_mask is not None:
        lesion, affine = read_lesion_mask(raw.lesion_mask)
        if raw.lesion_modality not in chains:
            raise InputError(f"{raw.lesion_mask}: lies on the grid of none of the images.")
        chain = chains[raw.lesion_modality]
        moved = _lesion_voxels(warped(Scan(lesion.astype(np.float32), affine), chain))
        if not (moved & brain_mask).any():
            raise InputError(f"{raw.lesion_mask}: none of the lesion lies in the brain.")
        write_nifti(anat / f"{space}_label-lesion_mask.nii.gz", moved, template.affine, dtype=np.uint8)
        write_json(anat / f"{space}_label-lesion_mask.json", {"Type": "Lesion", **_place(options)})

    header = open_nifti(raw.images[REFERENCE])
    both = brain_mask & template.brain_mask
    region = template.brain_mask if options.region == "brain" else cerebrum_mask(options.voxel_size)
    return {
        **_sidecar(REFERENCE, fitted[REFERENCE], options),
        "BrainMask": "what is not background" if stripped else "the template's, registered to the head",
        "NativeGrid": {"Shape": list(header.shape[:3]), "Affine": header.affine.tolist()},
        "Quality": {
            "MaskDice": _dice(brain_mask, region),
            "TemplateCorrelation": float(np.corrcoef(volumes[REFERENCE][both], template.t1[both])[0, 1]),
            "MutualInformationWithT1w": information,
        },
    }


def _nearer_to(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels, inside the whole or outside, whose nearest voxel of the whole belongs to the part."""
    nearest = ndimage.distance_transform_edt(~whole, return_distances=False, return_indices=True)
    return np.asarray(part[tuple(nearest)])


def _place(options: Options) -> dict[str, str]:
    return {"SpatialReference": TEMPLATE_SPACE, "Resolution": f"{options.voxel_size} mm, isotropic"}


def _sidecar(name: str, fitted: Mapping[str, float | str], options: Options) -> dict[str, Any]:
    """What was done to one image, in the words of BIDS derivatives."""
    return {
        "SkullStripped": True,
        **_place(options),
        "Units": "arbitrary, 0 to 1",
        "BiasCorrection": "none" if name.lower() == "pet" else "N4 (ANTs)",
        "Registration": "affine and SyN to the template (ANTs)"
        if name == REFERENCE
        else "rigid to the T1w, then the T1w's affine and SyN to the template (ANTs)",
        "Interpolation": "linear, once",
        "Normalisation": dict(fitted),
    }


def _lesion_voxels(share: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Voxels at least half lesion; of a lesion too small for any, the ones that hold the most of it."""
    return np.asarray(share >= min(0.5, max(float(share.max()), 0.01)))


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second)))


# === Files ===


def _way_back(folder: Path) -> Path:
    """The transform from the template to the T1w of a subject's folder."""
    return folder / "anat" / f"{folder.name}_from-{TEMPLATE_SPACE}_to-{REFERENCE}_mode-image_xfm.h5"


def _way_there(folder: Path) -> Path:
    """The transform from the T1w to the template, which takes points back (images are pulled)."""
    return folder / "anat" / f"{folder.name}_from-{REFERENCE}_to-{TEMPLATE_SPACE}_mode-image_xfm.h5"


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The T1w's sidecar of a finished subject: it says from what and how the folder was made."""
    return next((record for _, record in _records(folder)), None)


def _records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The sidecars of T1w images that are such a record: one in a finished subject, none in other folders."""
    paths = sorted(folder.glob(f"anat/sub-*_desc-preproc_{REFERENCE}.json"))
    found = [(path, read_json(path)) for path in paths]
    return [(path, record) for path, record in found if "Settings" in record]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

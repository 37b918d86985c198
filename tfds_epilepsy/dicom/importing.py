"""Chosen series to a raw BIDS data set: dcm2niix, a pseudonym, and of the header what is physics alone."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy import bids
from tfds_epilepsy.dicom.choice import NOT_TAKEN, Choice, choose
from tfds_epilepsy.dicom.series import Series, import_pydicom, patient_of, read_series
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import LOCK, hold, read_json, remove, replacing, write_json, write_table, write_text

# All that a sidecar may say: how the image was made, of whom and where not.
PHYSICS = (
    *("Modality", "MagneticFieldStrength", "ImagingFrequency", "Manufacturer", "ManufacturersModelName"),
    *("SoftwareVersions", "MRAcquisitionType", "ScanningSequence", "SequenceVariant", "ScanOptions"),
    *(
        "PulseSequenceType",
        "NonlinearGradientCorrection",
        "SliceThickness",
        "SpacingBetweenSlices",
        "EchoTime",
    ),
    *("RepetitionTime", "InversionTime", "FlipAngle", "SpoilingState", "PartialFourier", "PercentSampling"),
    *("PercentPhaseFOV", "EchoTrainLength", "PixelBandwidth", "ParallelReductionFactorInPlane"),
    *("ReceiveCoilName", "TracerName", "TracerRadionuclide", "Units", "AttenuationCorrection"),
    *("ReconMethodName", "RandomsCorrectionMethod", "ScatterCorrectionMethod", "FrameDuration"),
    *("DecayCorrected", "Radiopharmaceutical", "RadionuclideHalfLife", "ImageOrientationPatientDICOM"),
    *("ConversionSoftware", "ConversionSoftwareVersion"),
)
OLDEST = 89  # years: at a greater age a date of birth can be guessed
ANGLE = 0.1  # mm by which dcm2niix's corners and those of the headers may differ
MINUTES = 10  # that dcm2niix may take for a series


@dataclass(frozen=True)
class Imported:
    """What an import made.

    Attributes:
        subject: the pseudonym, without ``sub-``.
        choices: what was taken of every series.
        files: the images, none where nothing was to be written.
        others: files of the folder that are no DICOM images.
    """

    subject: str
    choices: tuple[Choice, ...]
    files: tuple[Path, ...]
    others: int


def import_dicom(
    dicom_dir: str | Path,
    bids_dir: str | Path,
    *,
    participant_label: str | None = None,
    session: str | None = None,
    group: str = "patient",
    overrides: Mapping[int, str] | None = None,
    key: str | Path | None = None,
    look: bool = False,
    overwrite: bool = False,
) -> Imported:
    """One patient's DICOM folder to a subject of a raw BIDS data set, without the patient's name.

    The label is a pseudonym, made of the patient's ID by HMAC-SHA256 with a secret key: the same patient
    gets the same label, and without the key nobody gets from one to the other. Voxels are stored as they are:
    a face in them stays a face.

    Args:
        dicom_dir: with one patient's files, at any depth.
        bids_dir: the data set, made where it is absent.
        participant_label: of the subject, in place of the pseudonym.
        session: label of the session, where the subject has others.
        group: ``patient`` or ``control``, for participants.tsv.
        overrides: see ``choose``.
        key: file of the key, made where it is absent; ``default_key()`` if left out.
        look: choose, and write nothing.
        overwrite: replace the subject's (or the session's) scans.

    Raises:
        InputError: what ``read_series`` and ``choose`` say; a label that is none; a key inside the data set;
            nothing to take; the subject is there; series that could not be converted. No message names the
            patient.
    """
    if problems := _problems(bids_dir, participant_label, session, group, key):
        raise InputError(problems)
    converter = _converter()
    series, others = read_series(dicom_dir)
    for word in filter(None, (participant_label, session)):
        if any(secret in word.lower() for secret in series[0].secrets if len(secret) > 2):
            raise InputError(
                "--participant-label, --session: a word of the patient's own header is no pseudonym."
            )
    choices = tuple(choose(series, overrides))
    taken = [choice for choice in choices if choice.kind != NOT_TAKEN]
    if look:
        return Imported(participant_label or "", choices, (), others)
    if not taken:
        raise InputError(["DICOM_DIR: no series can be taken.", *_reasons(choices)])
    if not any(choice.kind == "T1w" for choice in taken):
        raise InputError(["DICOM_DIR: no T1w, which all others are brought to.", *_reasons(choices)])
    folder = Path(bids_dir)
    label = participant_label or pseudonym(patient_of(series[0]), key)
    label = label.removeprefix("sub-")
    session = session and session.removeprefix("ses-")
    place = folder / f"sub-{label}" / f"ses-{session}" if session else folder / f"sub-{label}"
    with hold(folder):
        if place.is_dir() and not overwrite:
            raise InputError(
                f"{place}: is there already; --overwrite replaces it, --session adds scans of another day."
            )
        if session and list((folder / f"sub-{label}").glob("*/*.nii*")):
            raise InputError(
                f"{folder / f'sub-{label}'}: has scans without a session; no session can be added."
            )
        with replacing(place) as partial:
            files = _write(converter, taken, partial, label, session)
            if place.is_dir():
                remove(place)
            bids.write_description(folder, folder.resolve().name, DatasetType="raw")
            bids.write_bidsignore(folder, [LOCK])
            _add_person(folder, label, group, series)
    _keep_table(folder, label, session, choices)
    return Imported(label, choices, tuple(place / name for name in files), others)


def pseudonym(patient: str, key: str | Path | None = None) -> str:
    """Ten letters and digits for a patient: the same ones each time with the same key.

    Args:
        patient: what tells the patient from others.
        key: file of the key, made where it is absent.

    Raises:
        InputError: the key cannot be read or made.
    """
    path = Path(key) if key is not None else default_key()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, secrets.token_hex(32) + "\n")
            path.chmod(0o600)
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: the key of pseudonyms cannot be read or made ({type(error).__name__})."
        ) from error
    if len(secret) < 16:
        raise InputError(f"{path}: {len(secret)} characters are no key; 16 or more are.")
    return hmac.digest(secret.encode(), patient.encode(), "sha256").hex()[:10]


def default_key() -> Path:
    """The key of this account: in its folder of settings, outside of any data set."""
    if sys.platform == "win32":
        home = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    else:
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "epizoo" / "pseudonyms.key"


def _keep_table(folder: Path, label: str, session: str | None, choices: Sequence[Choice]) -> Path:
    """Keep what was taken as what, and why, beside the data: ``code/import_sub-..._series.tsv``."""
    name = f"import_sub-{label}" + (f"_ses-{session}" if session else "")
    return write_table(folder / "code" / f"{name}_series.tsv", [choice.row() for choice in choices])


def _problems(
    bids_dir: str | Path, label: str | None, session: str | None, group: str, key: str | Path | None
) -> list[str]:
    problems = [
        f"{name} {word!r}: letters and digits alone."
        for name, word, prefix in (("--participant-label", label, "sub-"), ("--session", session, "ses-"))
        if word is not None and not re.fullmatch(r"[0-9A-Za-z]+", word.removeprefix(prefix))
    ]
    if group not in ("patient", "control"):
        problems.append(f"--group {group!r}: patient or control.")
    if key is not None and Path(bids_dir).resolve() in Path(key).resolve().parents:
        problems.append(f"--key {key}: lies in the data set; whoever has both can name the patients.")
    if key is not None and label is not None:
        problems.append("--key: without effect beside --participant-label.")
    return problems


def _reasons(choices: Sequence[Choice]) -> list[str]:
    return [
        f"series {choice.series.number} ({choice.series.description or 'no description'}): {choice.why}."
        for choice in choices
    ] + ["--take NUMBER=T1w (FLAIR, pet) names a series that was not recognised."]


def _converter() -> str:
    import_pydicom()
    try:
        import dcm2niix
    except ImportError as error:
        raise InputError("dcm2niix is not installed; it comes with: pip install 'epizoo[dicom]'") from error
    return str(dcm2niix.bin)


def _write(
    converter: str, taken: Sequence[Choice], folder: Path, label: str, session: str | None
) -> list[Path]:
    """All images and sidecars of a subject or session; their names below ``folder``."""
    names, problems = [], []
    for choice in taken:
        same = [other for other in taken if other.kind == choice.kind]
        run = f"_run-{same.index(choice) + 1}" if len(same) > 1 else ""
        stem = f"sub-{label}" + (f"_ses-{session}" if session else "") + f"{run}_{choice.kind}"
        name = Path("pet" if choice.kind == "pet" else "anat") / f"{stem}.nii.gz"
        try:
            image, sidecar = _convert(converter, choice.series)
        except InputError as error:
            problems += error.problems
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, folder / name)
        write_json(folder / name.parent / f"{stem}.json", sidecar)
        names.append(name)
    if problems:
        raise InputError(problems)
    return names


def _convert(converter: str, series: Series) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """A series as an image whose place was held against the headers, and its sidecar."""
    where = f"series {series.number}"
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "in", Path(scratch) / "out"
        source.mkdir()
        target.mkdir()
        for index, file in enumerate(series.files):
            _stage(file, source / f"{index:06}.dcm")
        # No name of a file, and no comment, of the scanner's comes along: -f and -c.
        arguments = ["-b", "y", "-ba", "y", "-z", "n", "-x", "i", "-m", "y", "-w", "2", "-f", "v", "-c", ""]
        try:
            done = subprocess.run(
                [converter, *arguments, "-o", str(target), str(source)],
                capture_output=True,
                timeout=60 * MINUTES,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{where}: dcm2niix did not end well ({type(error).__name__}).") from None
        # Besides the volume as it is, there may be one with even distances (_Eq) or without tilt (_Tilt).
        made = [path for path in target.glob("*.nii") if "_Eq" not in path.name and "_Tilt" not in path.name]
        if len(made) != 1:
            raise InputError(
                f"{where}: dcm2niix made {len(made) or 'no'} volume{'s' * (len(made) > 1)} of it (exit "
                f"status {done.returncode}); it is damaged, more than one volume, or compressed in a way "
                "that dcm2niix does not know."
            )
        image: Any = nib.load(made[0])
        array, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, np.float64)
        sidecar = read_json(made[0].with_suffix(".json")) if made[0].with_suffix(".json").is_file() else {}
    if array.shape != series.shape:
        raise InputError(
            f"{where}: dcm2niix made a volume of {array.shape} voxels of it, its headers say {series.shape}."
        )
    array, affine = _placed(where, series, array, affine)
    clean = nib.Nifti1Image(array, affine)
    clean.set_qform(affine, code=1)
    clean.set_sform(affine, code=1)
    clean.header.set_xyzt_units("mm")
    return clean, {name: sidecar[name] for name in PHYSICS if name in sidecar}


def _stage(file: Path, place: Path) -> None:
    """A link to a file, or a copy; what dcm2niix does not inflate is inflated."""
    pydicom = import_pydicom()
    meta = pydicom.filereader.read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.save_as(place)
        return
    try:
        place.symlink_to(file.resolve())
    except OSError:  # Windows, without the right to
        shutil.copyfile(file, place)


def _placed(
    where: str, series: Series, array: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The volume with the affine of the headers, which dcm2niix's must equal unless the series is tilted.

    Rows, and slices, run the other way in NIfTI where dcm2niix turned them. A tilted volume, whose axes are
    not at right angles, is resampled to a grid on which they are.
    """
    true = series.affine
    for axis in range(3):
        if affine[:3, axis] @ true[:3, axis] < 0:
            true[:3, 3] += true[:3, axis] * (array.shape[axis] - 1)
            true[:3, axis] *= -1
    corners = np.array(np.meshgrid(*([0, size - 1] for size in array.shape))).reshape(3, -1).T
    apart = nib.affines.apply_affine(affine, corners) - nib.affines.apply_affine(true, corners)
    distance = float(np.linalg.norm(apart, axis=1).max())
    if not series.tilted:
        if distance > ANGLE:
            raise InputError(f"{where}: dcm2niix puts it {distance:.1f} mm away from where its headers do.")
        return array, affine
    from nibabel.processing import resample_from_to

    normal = np.cross(true[:3, 0], true[:3, 1])
    normal *= np.sign(normal @ true[:3, 2]) / np.linalg.norm(normal)
    straight = true.copy()
    straight[:3, 2] = normal * (normal @ true[:3, 2])
    inside = nib.affines.apply_affine(np.linalg.inv(straight) @ true, corners)
    low, high = np.floor(inside.min(axis=0) + 1e-3), np.ceil(inside.max(axis=0) - 1e-3)
    straight[:3, 3] = nib.affines.apply_affine(straight, low)
    shape = tuple(int(x) for x in high - low + 1)
    image = nib.Nifti1Image(np.asarray(array, np.float32), true)
    moved = resample_from_to(image, (shape, straight), order=1)
    return np.asarray(moved.dataobj, np.float32), straight


def _add_person(folder: Path, label: str, group: str, series: Sequence[Series]) -> None:
    first = series[0]
    match = re.fullmatch(r"(\d{3})([YMWD])", first.text("PatientAge"))
    age = min(int(match[1]) / {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]], OLDEST) if match else None
    sex = {"F": "f", "M": "m"}.get(first.text("PatientSex").upper())
    row = {"participant_id": f"sub-{label}", "group": group, "age": age, "sex": sex}
    bids.add_rows(folder / "participants.tsv", [row])

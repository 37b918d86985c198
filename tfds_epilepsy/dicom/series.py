"""The series in a folder of DICOM files, by their headers."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

PLACE = 0.05  # mm: positions that are nearer than this are one
STEP = 0.05  # share of the distance of slices by which it may vary
TILT = 0.5  # degrees between the slices' normal and the way from one to the next
# What names the patient or those who saw them: its words are blanked wherever a header is shown.
NAMING = (
    *("PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName"),
    *("PatientMotherBirthName", "PatientBirthDate", "AccessionNumber", "StudyID", "StudyDate"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "RequestingPhysician"),
    *("InstitutionName", "InstitutionAddress", "PatientAddress", "PatientTelephoneNumbers"),
)


class Frame(NamedTuple):
    """Where a slice lies, in DICOM's patient coordinates (LPS), mm; None where the header does not say.

    Attributes:
        position: ``(3,)``, centre of its first pixel.
        orientation: ``(6,)``, the direction of a row, then of a column.
        spacing: ``(2,)``, between rows, between columns.
    """

    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None


@dataclass(frozen=True, eq=False)
class Series:
    """A series: its files, and of its headers what an import asks.

    Attributes:
        number: by which it is named to the user: 1, 2, ... in the folder.
        study: 1, 2, ... by date.
        files: of it, by instance.
        header: of its first file, without pixels.
        frames: of all files, in their order.
        pixels: whether every file has pixel data.
        secrets: words that name the patient, in lower case.
    """

    number: int
    study: int
    files: tuple[Path, ...]
    header: Dataset
    frames: tuple[Frame, ...]
    pixels: bool
    secrets: frozenset[str]

    def text(self, keyword: str) -> str:
        """A header's value as a line, without what names the patient; empty where there is none."""
        value = _value(self.header, keyword)
        if value is None:
            return ""
        line = "\\".join(map(str, value)) if _is_multiple(value) else str(value)
        return _blanked(line, self.secrets)

    def figure(self, keyword: str) -> float | None:
        """A header's number, or the first of several."""
        value = _value(self.header, keyword)
        try:
            return float(value[0] if _is_multiple(value) else value)
        except (TypeError, ValueError, IndexError):
            return None

    @property
    def description(self) -> str:
        return self.text("SeriesDescription") or self.text("ProtocolName")

    @property
    def kind(self) -> str:
        """DICOM's word for the modality: MR, PT, CT, ..."""
        return self.text("Modality").upper()

    @property
    def voxel(self) -> tuple[float, float, float] | None:
        """Millimetres along a row, along a column, from slice to slice; None where that is unknown."""
        if self.problem:
            return None
        along_row, along_column, between = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(along_row), float(along_column), float(between)

    @property
    def problem(self) -> str:
        """Why the series is no single volume whose place is known, or nothing."""
        if not self.pixels:
            return "has no pixel data"
        if any(None in frame for frame in self.frames):
            return "says nowhere where its slices lie (geometry is missing)"
        if len({frame.orientation for frame in self._rounded}) > 1:
            return "has slices in several directions, as a localiser has"
        if len({frame.spacing for frame in self._rounded}) > 1:
            return "has slices of several pixel sizes"
        if len(self.frames) < 2:
            return "is a single picture"
        along = self._along
        if np.diff(along).min() < PLACE:
            return "holds more than one volume (several slices at one place: echoes, times, phase)"
        steps = np.diff(along)
        step = float(np.median(steps))
        if (wide := np.flatnonzero(steps > (1 + STEP) * step)).size:
            lost = int(np.rint(steps[wide] / step - 1).sum())
            return f"lacks slices: {max(lost, 1)} of {len(along) + max(lost, 1)} or more are not there"
        if steps.min() < (1 - STEP) * step:
            return "has slices at uneven distances"
        positions = self._positions[self._order]
        if (
            np.abs(np.diff(positions, axis=0) - (positions[-1] - positions[0]) / (len(along) - 1)).max()
            > step
        ):
            return "has slices that do not lie on a line"
        return ""

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(4, 4)`` from (column, row, slice along the normal) to the world, RAS+ mm; sheared if tilted."""
        row, column, _ = self._axes
        assert self.frames[0].spacing is not None
        between_rows, between_columns = self.frames[0].spacing
        positions = self._positions[self._order]
        lps = np.eye(4)
        lps[:3, 0], lps[:3, 1] = row * between_columns, column * between_rows
        lps[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
        lps[:3, 3] = positions[0]
        return np.diag([-1.0, -1, 1, 1]) @ lps

    @property
    def tilted(self) -> bool:
        """Whether slices are shifted along their plane from one to the next (a tilted gantry)."""
        step, normal = np.diag([-1.0, -1, 1]) @ self.affine[:3, 2], self._axes[2]
        return bool(step @ normal < np.cos(np.deg2rad(TILT)) * np.linalg.norm(step))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return int(self.header.Columns), int(self.header.Rows), len(self.frames)

    @property
    def _rounded(self) -> list[Frame]:
        return [
            Frame(*(None if value is None else tuple(round(x, 3) for x in value) for value in frame))
            for frame in self.frames
        ]

    @property
    def _positions(self) -> NDArray[np.float64]:
        return np.array([frame.position for frame in self.frames], dtype=np.float64)

    @property
    def _axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        directions = np.array(self.frames[0].orientation, dtype=np.float64).reshape(2, 3)
        row, column = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        return row, column, np.cross(row, column)

    @property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self._positions @ self._axes[2], kind="stable")

    @property
    def _along(self) -> NDArray[np.float64]:
        return np.sort(self._positions @ self._axes[2])


def read_series(folder: str | Path) -> tuple[list[Series], int]:
    """The series of the one patient in a folder and below, and how many files are no DICOM images.

    No message holds the name of a file or a header's value: both may name the patient.

    Raises:
        InputError: pydicom is not installed; no such folder; no DICOM in it; two patients in it.
    """
    import_pydicom()
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            "DICOM_DIR: no such folder (its name is not repeated here: it may name the patient)."
        )
    found: dict[str, list[tuple[Path, Dataset]]] = {}
    patients: dict[str, None] = {}
    others = 0
    with _silent():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            header = _read(path)
            if header is None:
                others += 1
                continue
            patients[_patient(header)] = None
            found.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
        if not found:
            raise InputError(f"DICOM_DIR: none of its {others} files is a DICOM image.")
        if len(patients) > 1:
            raise InputError(
                f"DICOM_DIR: files of {len(patients)} patients lie in it; give the folder of one at a time."
            )
        secrets = frozenset(
            word for members in found.values() for _, header in members for word in _secrets(header)
        )
        studies = sorted({_study(members[0][1]) for members in found.values()})
        ordered = sorted(found.values(), key=lambda members: _rank(members[0][1]))
        series = [
            _series(number, studies.index(_study(members[0][1])) + 1, members, secrets)
            for number, members in enumerate(ordered, 1)
        ]
    return series, others


def patient_of(series: Series) -> str:
    """What tells the patient from others, to make a pseudonym of; never to be shown."""
    return _patient(series.header)


def import_pydicom() -> Any:
    """pydicom, or an error that says how to install it."""
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{error.name or 'pydicom'} is not installed; it comes with: pip install 'epizoo[dicom]'"
        ) from error
    return pydicom


@contextmanager
def _silent() -> Iterator[None]:
    """pydicom complains of odd headers by quoting them."""
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _read(path: Path) -> Dataset | None:
    """The header of an image with its pixels left on disk, or None for anything else."""
    pydicom = import_pydicom()
    try:
        header: Dataset = pydicom.dcmread(path, defer_size=2**16)
        for keyword in ("SeriesInstanceUID", "Modality", "Rows", "Columns"):
            if _value(header, keyword) is None:
                return None
        int(header.Rows), int(header.Columns)
    except Exception:  # a damaged file can raise anything; what is said of it may quote it
        return None
    return header


def _value(header: Dataset, keyword: str) -> Any:
    """A value from the top of a header, or from its shared or first functional group."""
    value = header.get(keyword)
    if value not in (None, ""):
        return value
    for group in _groups(header, 0):
        for sequence in group:
            if sequence.VR == "SQ" and sequence.value and keyword in sequence.value[0]:
                return sequence.value[0].get(keyword)
    # The words of an enhanced header for two of these.
    other = {"EchoTime": "EffectiveEchoTime", "InversionTime": "InversionTimes"}.get(keyword)
    return _value(header, other) if other else None


def _is_multiple(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _groups(header: Dataset, frame: int) -> Iterator[Dataset]:
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if frame < len(per_frame):
        yield per_frame[frame]
    yield from header.get("SharedFunctionalGroupsSequence") or []


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(x) for x in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _frames(header: Dataset) -> list[Frame]:
    count = header.get("NumberOfFrames")
    frames = []
    for index in range(int(count or 1)):
        found: dict[str, tuple[float, ...] | None] = {}
        for keyword, length in (
            ("ImagePositionPatient", 3),
            ("ImageOrientationPatient", 6),
            ("PixelSpacing", 2),
        ):
            values = [header.get(keyword)] if count is None else []
            values += [
                sequence.value[0].get(keyword)
                for group in (_groups(header, index) if count is not None else ())
                for sequence in group
                if sequence.VR == "SQ" and sequence.value
            ]
            found[keyword] = next((n for n in (_numbers(v, length) for v in values) if n), None)
        frame = Frame(*found.values())
        directions = np.reshape(frame.orientation or (0,) * 6, (2, 3))
        right = (
            abs(np.linalg.norm(directions, axis=1) - 1).max() < 0.01
            and abs(directions[0] @ directions[1]) < 0.01
        )
        frames.append(frame if right and min(frame.spacing or (0,)) > 0 else Frame(None, None, None))
    return frames


def _series(
    number: int, study: int, members: Sequence[tuple[Path, Dataset]], secrets: frozenset[str]
) -> Series:
    def instance(member: tuple[Path, Dataset]) -> tuple[float, Path]:
        value = member[1].get("InstanceNumber")
        return (float(value) if value not in (None, "") else 0.0, member[0])

    members = sorted(members, key=instance)
    sizes = {(int(header.Rows), int(header.Columns)) for _, header in members}
    frames = [frame for _, header in members for frame in _frames(header)]
    if len(sizes) > 1:  # pictures of several sizes are no volume: as if nothing were known of their place
        frames = [Frame(None, None, None)] * len(frames)
    return Series(
        number=number,
        study=study,
        files=tuple(path for path, _ in members),
        header=members[0][1],
        frames=tuple(frames),
        pixels=all("PixelData" in header for _, header in members),
        secrets=secrets,
    )


def _patient(header: Dataset) -> str:
    """The ID; without one, name and birth date."""
    identity = str(header.get("PatientID") or "").strip()
    return identity or f"{header.get('PatientName') or ''}|{header.get('PatientBirthDate') or ''}"


def _study(header: Dataset) -> tuple[str, str]:
    return str(header.get("StudyDate") or ""), str(header.get("StudyInstanceUID") or "")


def _rank(header: Dataset) -> tuple[tuple[str, str], float, str]:
    number = header.get("SeriesNumber")
    return _study(header), float(number) if number not in (None, "") else 0.0, str(header.SeriesInstanceUID)


def _secrets(header: Dataset) -> Iterator[str]:
    for keyword in NAMING:
        value = header.get(keyword)
        for one in value if _is_multiple(value) else [value]:
            for word in re.split(r"[\^=\s,;/]+", str(one or "")):
                if len(word) > 1:
                    yield word.lower()


def _blanked(line: str, secrets: frozenset[str]) -> str:
    for word in sorted(secrets, key=len, reverse=True):
        if len(word) > 3:
            line = re.sub(re.escape(word), "***", line, flags=re.IGNORECASE)
        else:
            line = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", "***", line, flags=re.IGNORECASE)
    return "".join(character for character in line if character.isprintable())

"""The NIfTI files of a BIDS data set, by what their names say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfds_epilepsy.errors import InputError

MODALITIES = ("T1w", "FLAIR", "T2w", "T1map", "T2map", "pet")  # found unasked, in this order; others by name
NATIVE_SPACES = ("orig", "individual", "native", *(name.lower() for name in MODALITIES))


@dataclass(frozen=True, kw_only=True)
class ScanFile:
    """A NIfTI file and what its name says: ``sub-01_acq-a_FLAIR_roi`` is a ``roi`` drawn on ``of`` FLAIR.

    Attributes:
        path: the file.
        entities: ``{"sub": "01", "acq": "a"}``.
        suffix: last word of the name.
        of: last word but one, or empty.
        derived: found under ``derivatives/``.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    of: str = ""
    derived: bool = False

    @classmethod
    def parse(cls, path: Path, derived: bool = False) -> ScanFile | None:
        """None for a name that is not that of a NIfTI, or of nothing but entities."""
        match = re.fullmatch(r"(.+)\.nii(\.gz)?", path.name, re.IGNORECASE)
        if match is None:
            return None
        parts = match[1].split("_")
        words = [part for part in parts if "-" not in part]
        if not words:
            return None
        return cls(
            path=path,
            entities=dict(part.split("-", 1) for part in parts if "-" in part),
            suffix=words[-1],
            of=words[-2] if len(words) > 1 else "",
            derived=derived,
        )

    @property
    def session(self) -> str:
        return self.entities.get("ses", "")

    @property
    def native(self) -> bool:
        return self.entities.get("space", "orig").lower() in NATIVE_SPACES

    @property
    def _about(self) -> set[str]:
        return {self.entities.get("label", "").lower(), self.entities.get("desc", "").lower()}

    @property
    def is_lesion(self) -> bool:
        about = any(word.startswith("lesion") for word in self._about)
        return self.suffix.lower() == "roi" or (self.suffix.lower() in ("mask", "dseg") and about)

    @property
    def is_brain(self) -> bool:
        return self.suffix.lower() == "mask" and "brain" in self._about

    @property
    def modality(self) -> str:
        return next((name for name in MODALITIES if self.is_image(name)), "")

    def is_image(self, modality: str) -> bool:
        return self.suffix.lower() == modality.lower() and not any(
            word.startswith("lesion") for word in self._about
        )

    def matches(self, filters: Mapping[str, Mapping[str, str]] | None) -> bool:
        for modality, wanted in (filters or {}).items():
            if self.is_image(modality):
                return all(self.entities.get(key) == value for key, value in wanted.items())
        return True

    def named_after(self, image: ScanFile) -> bool:
        """Whether this mask's name is that of the image and a suffix."""
        ignored = ("label", "desc")
        own = {key: value for key, value in self.entities.items() if key not in ignored}
        return self.of.lower() == image.suffix.lower() and own == dict(image.entities)


def find_files(
    folder: Path, labels: Sequence[str] | None = None, *, derivatives: bool = True
) -> tuple[dict[str, list[ScanFile]], list[str]]:
    """The NIfTI files of each subject, sorted by name, and what is wrong with folders and names.

    Args:
        folder: that holds ``sub-*``.
        labels: with or without ``sub-``; None takes all.
        derivatives: look under ``derivatives/*/`` too.

    Raises:
        InputError: there is no such folder, or no subject in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    found = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    if not found:
        raise InputError(f"{folder}: no subject folder (sub-*); is it the root of a BIDS data set?")
    names = [path.name.removeprefix("sub-") for path in found]
    problems = _doubled(found)
    if labels is not None:
        asked = [label.removeprefix("sub-") for label in labels]
        problems += [
            f"{folder / f'sub-{name}'}: no such subject ({len(names)} are there)."
            for name in asked
            if name not in names
        ]
        names = [name for name in names if name in asked]
    subjects = {}
    for name in names:
        files = _files_of(folder, name, derivatives)
        problems += [
            f"{file.path}: its name does not say sub-{name}, the subject of its folder."
            for file in files
            if file.entities.get("sub") != name
        ]
        subjects[name] = [file for file in files if file.entities.get("sub") == name]
    return subjects, problems


def sessions_of(files: Sequence[ScanFile]) -> tuple[str, ...]:
    """Labels of all sessions, sorted; the empty one where a name has none."""
    return tuple(sorted({file.session for file in files}))


def best_session(files: Sequence[ScanFile], modalities: Sequence[str]) -> str:
    """The first session that holds most of the modalities."""

    def held(session: str) -> int:
        own = [file for file in files if file.session == session]
        return sum(any(file.is_image(modality) for file in own) for modality in modalities)

    return max(sessions_of(files), key=held, default="")


def session_note(label: str, files: Sequence[ScanFile], chosen: str) -> list[str]:
    """What to tell of a choice among several sessions."""
    count = len(sessions_of(files))
    return [f"sub-{label}: session {chosen or 'without a name'} taken of {count}."] if count > 1 else []


def is_derivative(folder: Path) -> bool:
    """Whether all images lie in a template's space, and there are some."""
    scans, _ = find_files(folder, derivatives=False)
    images = [file for files in scans.values() for file in files if file.modality]
    return bool(images) and not any(file.native for file in images)


def listed(files: Sequence[ScanFile]) -> str:
    """The first file's path and the others' names."""
    return ", ".join([str(files[0].path), *(file.path.name for file in files[1:])])


def sidecar_of(path: Path) -> Path | None:
    """The JSON beside a NIfTI, if there is one."""
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return next((p for e in (".json", ".JSON") if (p := path.with_name(stem + e)).is_file()), None)


def _doubled(found: Sequence[Path]) -> list[str]:
    problems = []
    for folded, count in Counter(path.name.lower() for path in found).items():
        if count > 1:
            same = [str(path) for path in found if path.name.lower() == folded]
            problems.append(f"{', '.join(same)}: two subjects of one name, but for upper and lower case.")
    return problems


def _files_of(folder: Path, name: str, derivatives: bool) -> list[ScanFile]:
    patterns = [f"sub-{name}/{place}/*" for place in ("anat", "pet", "ses-*/anat", "ses-*/pet")]
    paths = [(path, False) for pattern in patterns for path in sorted(folder.glob(pattern))]
    if derivatives:
        places = [f"derivatives/*/{pattern}" for pattern in patterns]
        paths += [(path, True) for place in places for path in sorted(folder.glob(place))]
    return [file for path, derived in paths if (file := ScanFile.parse(path, derived)) is not None]

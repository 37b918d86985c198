"""The NIfTI files of a BIDS data set, by what their names say."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import absent

MODALITIES = ("T1w", "FLAIR", "T2w", "T1map", "T2map", "pet")  # found unasked, in this order; others by name
NATIVE_SPACES = ("orig", "individual", "native", *(name.lower() for name in MODALITIES))
MASKS = ("mask", "dseg", "probseg", "seg", "label")  # suffixes of a lesion mask, where the name says lesion
LESION = re.compile(r"(?<!no)(?<!non)lesion|fcd|dysplasia")
SCOUT = re.compile(r"locali[sz]er|scout|survey|^loc\d*$")


@dataclass(frozen=True, kw_only=True, eq=False)
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
        """None for a name that is not that of a NIfTI, or of nothing but entities, and for hidden files."""
        match = re.fullmatch(r"([^.].*)\.nii(\.gz)?", path.name, re.IGNORECASE)
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
        suffix, about = self.suffix.lower(), self._about
        named = "l" in about or any(LESION.search(word) for word in about)  # label-L: BIDS for a lesion
        if suffix == "roi":
            return named or about == {""}
        if suffix in MASKS:
            return named or LESION.search(self.of.lower()) is not None
        return LESION.search(suffix) is not None

    @property
    def is_brain(self) -> bool:
        return self.suffix.lower() == "mask" and "brain" in self._about

    @property
    def modality(self) -> str:
        return next((name for name in MODALITIES if self.is_image(name)), "")

    def is_image(self, modality: str) -> bool:
        """Whether it is an image of this modality: no lesion mask, no phase, no real or imaginary part."""
        return (
            self.suffix.lower() == modality.lower()
            and self.entities.get("part", "mag") == "mag"
            and not any(LESION.search(word) for word in self._about)
        )

    @property
    def oddity(self) -> str:
        """Why a plain image of its modality is to be preferred, or nothing."""
        if "ce" in self.entities:
            return f"contrast-enhanced (ce-{self.entities['ce']})"
        if "inv" in self.entities:
            return f"one inversion of several (inv-{self.entities['inv']})"
        words = (self.entities.get(name, "").lower() for name in ("acq", "rec", "desc"))
        return "a localizer" if any(SCOUT.search(word) for word in words) else ""

    def matches(self, filters: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether it carries the entities that the filters demand of its modality."""
        for modality, wanted in filters.items():
            if self.is_image(modality):
                return all(self.entities.get(key) == value for key, value in wanted.items())
        return True

    def named_after(self, image: ScanFile) -> bool:
        """Whether this mask's name is that of the image and a suffix; it may be silent on the session."""
        own = {key: value for key, value in self.entities.items() if key not in ("label", "desc")}
        others = {key: value for key, value in image.entities.items() if key != "ses" or key in own}
        return self.of.lower() == image.suffix.lower() and own == others

    def says(self, modality: str) -> bool:
        """Whether this mask's name says that it was drawn on an image of this modality."""
        name = modality.lower()
        in_desc = re.match(rf"{name.removesuffix('w')}w?lesion", self.entities.get("desc", "").lower())
        return name in (self.of.lower(), self.entities.get("space", "").lower()) or in_desc is not None


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
    problems = _doubled(found)
    names = [path.name.removeprefix("sub-") for path in found]
    if labels is not None:
        asked = [label.removeprefix("sub-") for label in labels]
        problems += [
            f"{folder / f'sub-{name}'}: no such subject ({len(names)} are there){_meant(name, names)}."
            for name in asked
            if name not in names
        ]
        names = [name for name in names if name in asked]
    problems += [
        f"{folder / f'sub-{name}'}: a label holds no '_'; rename the folder and its files, or move it out of "
        "the data set."
        for name in names
        if "_" in name
    ]
    names = [name for name in names if "_" not in name]
    subjects = {}
    for name in names:
        files = _files_of(folder, name, derivatives)
        misplaced = {file.path: problem for file in files if (problem := _misplaced(file, name))}
        problems += [f"{path}: {problem}" for path, problem in misplaced.items()]
        subjects[name] = [file for file in files if file.path not in misplaced]
    return subjects, problems


def sessions_of(files: Sequence[ScanFile]) -> tuple[str, ...]:
    """Labels of all sessions, sorted; the empty one where a name has none."""
    return tuple(sorted({file.session for file in files}))


def best_session(
    files: Sequence[ScanFile],
    modalities: Sequence[str],
    required: Sequence[str],
    with_mask: Collection[str] = (),
) -> str:
    """The first session that holds all that is required, then a lesion mask, then most of the modalities.

    Args:
        files: images of all sessions.
        modalities: wanted.
        required: needed.
        with_mask: sessions that a lesion mask was drawn in.
    """

    def rank(session: str) -> tuple[bool, bool, int]:
        own = [file for file in files if file.session == session]
        held = [name for name in modalities if any(file.is_image(name) for file in own)]
        return set(required) <= set(held), session in with_mask, len(held)

    return max(sessions_of(files), key=rank, default="")


def session_note(label: str, files: Sequence[ScanFile], chosen: str) -> list[str]:
    """What to tell of a choice among several sessions."""
    count = len(sessions_of(files))
    return [f"sub-{label}: session {chosen or 'without a name'} taken of {count}."] if count > 1 else []


def is_derivative(folder: Path) -> bool:
    """Whether it holds images in template space, and none in native space or a description that says so."""
    scans, _ = find_files(folder, derivatives=False)
    images = [file for files in scans.values() for file in files if file.modality]
    if all(file.native for file in images):
        return False
    try:
        said = read_object(folder / "dataset_description.json").get("DatasetType") == "derivative"
    except InputError:
        said = False
    return said or not any(file.native for file in images)


def lookalike(label: str, others: Iterable[str]) -> str:
    """Another label that may be meant.

    It is equal but for case, leading zeros, ``sub-``, a session after it, and what is no letter.
    """

    def plain(text: str) -> str:
        person = re.sub(r"_ses-?[^_]*$", "", text.lower())
        letters = re.sub(r"[^0-9a-z]", "", person).removeprefix("sub")
        return re.sub(r"(?<!\d)0+(?=\d)", "", letters)

    return next((other for other in others if other != label and plain(other) == plain(label)), "")


def listed(files: Sequence[ScanFile]) -> str:
    """The first file's path and the others' names."""
    return ", ".join([str(files[0].path), *(file.path.name for file in files[1:])])


def lacking(where: Path, label: str, modality: str, name: str) -> str:
    """The problem of a subject without an image, and what there is in its place.

    Args:
        where: folder of the subject, or of its session.
        label: of the subject.
        modality: that is not there.
        name: of the file that is missing, a pattern.
    """
    hints = [
        f"{path.name} is no NIfTI"
        for path in sorted(where.rglob(f"[!.]*_{modality}.*"))
        if ScanFile.parse(path) is None and path.suffix.lower() != ".json"
    ]
    if modality == "T1w":
        hints += [f"{path.name} may be named so" for path in sorted(where.rglob("[!.]*_UNIT1.nii*"))]
    there = f": {', '.join(hints)}" if hints else ""
    return f"{where}: no {modality} ({name}) of sub-{label}{there}."


def sidecar_of(path: Path) -> Path | None:
    """The JSON beside a NIfTI, if there is one; a link to one that is not there is one too."""
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    beside = (path.with_name(stem + ending) for ending in (".json", ".JSON"))
    return next((one for one in beside if one.is_file() or one.is_symlink()), None)


def read_object(path: Path) -> Mapping[str, Any]:
    """The object of a JSON file.

    Raises:
        InputError: there is no such file, it is not JSON, or no object.
    """
    if not path.is_file():
        raise InputError(f"{path}: {absent(path)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: cannot be read as JSON of names and values (it is a {type(content).__name__})."
        )
    return content


def _doubled(found: Sequence[Path]) -> list[str]:
    problems = []
    for folded, count in Counter(path.name.lower() for path in found).items():
        if count > 1:
            same = [str(path) for path in found if path.name.lower() == folded]
            problems.append(f"{', '.join(same)}: two subjects of one name, but for upper and lower case.")
    return problems


def _misplaced(file: ScanFile, name: str) -> str:
    """Why a file does not belong where it lies, or nothing."""
    if file.entities.get("sub") != name:
        return f"its name does not say sub-{name}, the subject of its folder."
    session = file.path.parent.parent.name
    if session.startswith("ses-") and file.session != session.removeprefix("ses-"):
        return f"its name does not say {session}, the session of its folder."
    return ""


def _meant(name: str, names: Sequence[str]) -> str:
    other = lookalike(name, names)
    return f"; sub-{other} is" if other else ""


def _files_of(folder: Path, name: str, derivatives: bool) -> list[ScanFile]:
    places = ("anat", "pet", "ses-*/anat", "ses-*/pet")
    roots = [(folder / f"sub-{name}", False)]
    if derivatives:
        roots += [
            (one / f"sub-{name}", True)
            for one in sorted(folder.glob("derivatives/*"))
            if not one.name.startswith(".")
        ]
    paths = [
        (path, derived)
        for root, derived in roots
        for place in places
        for path in sorted(root.glob(f"{place}/*"))
    ]
    return [file for path, derived in paths if (file := ScanFile.parse(path, derived)) is not None]

"""The lesions that a search is judged by: annotated validation patients, or lesions put in held-out controls.

They are written once, as files that every trial reads. A search sees training controls and validation
subjects through :class:`Visible`; there is no way from it to a test subject.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tfds_epilepsy
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, replacing, write_json
from tfds_epilepsy.lesions import LesionSpec, implant_in_subject
from tfds_epilepsy.volumes import Subject

VISIBLE_SPLITS = ("train", "validation")
# Of lesions that are put in controls; the other kinds of the library are for judging (``benchmarks.cases``).
KINDS = ("fcd_1", "fcd_2a", "fcd_2b", "heterotopia", "hippocampal_sclerosis")
LESIONS_PER_CONTROL = 2  # lesions that a held-out control gets, one at a time


class Visible:
    """The part of a cohort that a search may see: training and validation subjects.

    Args:
        data: a config's name or a template-space derivative.
        data_dir: where prepared data sets live.
        **reading: ``modalities``, ``space``, ``group_column``, ``groups``, as in ``tfds_epilepsy.load``.

    Raises:
        InputError: problems of the data set.
    """

    def __init__(self, data: str, data_dir: str | Path | None = None, **reading: Any):
        self._builder = tfds_epilepsy.load(data, data_dir, **reading)

    @property
    def modalities(self) -> tuple[str, ...]:
        return self._builder.modalities

    @property
    def fingerprint(self) -> str:
        return self._builder.fingerprint

    @property
    def test_families(self) -> set[str]:
        """Kinds of lesion that the test set is known to hold: the table's word, no image is read."""
        known = self._builder.lesions()
        test = tfds_epilepsy.subjects(self._builder, "test")
        return {known[subject]["type"] for subject in test if subject in known}

    def subjects(self, split: str) -> list[str]:
        return tfds_epilepsy.subjects(self._builder, self._seen(split))

    def read(self, split: str) -> Iterator[Subject]:
        """The subjects of a split.

        Raises:
            PermissionError: the test split.
        """
        return tfds_epilepsy.read(self._builder, self._seen(split))

    def controls(self, split: str) -> Iterator[Subject]:
        return (subject for subject in self.read(split) if subject.group == "control")

    def _seen(self, split: str) -> str:
        if split not in VISIBLE_SPLITS:
            raise PermissionError(
                f"the {split} split is not for a search: it sees {' and '.join(VISIBLE_SPLITS)}."
            )
        return split


def write_cases(cohort: Visible, folder: Path, seed: int) -> dict[str, Any]:
    """Write the subjects that trials are scored on; what is there already stays.

    Returns:
        The content of ``cases.json``: ``kind`` (``annotated`` or ``implanted``), ``families`` of implanted
        lesions, and the names of the ``cases``.

    Raises:
        InputError: neither an annotated patient nor a control in the validation split, or no family of
            lesions that the test set does not use.
    """
    listing = folder / "cases.json"
    if listing.is_file():
        return dict(read_json(listing))
    names, families, kind = [], [], "annotated"
    for subject in cohort.read("validation"):
        if subject.lesion_mask.any():
            names.append(_write(folder, subject))
    if not names:
        kind, families = "implanted", unused_families(cohort)
        for number, control in enumerate(cohort.controls("validation")):
            made = _with_lesions(control, cohort.modalities, families, number, seed)
            names += [_write(folder, patient) for patient in made]
    if not names:
        raise InputError(
            "the validation split holds no annotated patient and no control to put a lesion in: set 'split' "
            "in participants.tsv."
        )
    content = {"kind": kind, "families": families, "cases": names}
    write_json(listing, content)
    return content


def read_cases(folder: Path) -> Iterator[Subject]:
    """The subjects that ``write_cases`` wrote, one at a time."""
    for name in read_json(folder / "cases.json")["cases"]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
            values = {key: value if value.ndim else value.item() for key, value in stored.items()}
        yield Subject(**values)


def unused_families(cohort: Visible) -> list[str]:
    """Kinds of lesion that no test subject has; where their kinds are unknown, those that are no dysplasia.

    Raises:
        InputError: the test set uses all.
    """
    test = cohort.test_families
    families = [kind for kind in KINDS if kind not in test and (test or not kind.startswith("fcd"))]
    if not families:
        raise InputError(
            f"the test set holds lesions of every kind ({', '.join(sorted(test))}): none is left to put in "
            "validation controls; annotate validation patients."
        )
    return families


def _with_lesions(
    control: Subject, modalities: Sequence[str], families: Sequence[str], number: int, seed: int
) -> Iterator[Subject]:
    """Control ``number`` with one subtle lesion after another, the families taking turns."""
    seeds = [[seed, zlib.crc32(control.subject.encode()), i] for i in range(LESIONS_PER_CONTROL)]
    kinds = [families[(number * LESIONS_PER_CONTROL + i) % len(families)] for i in range(LESIONS_PER_CONTROL)]
    specs = [
        LesionSpec.draw(np.random.default_rng(own), kind) for own, kind in zip(seeds, kinds, strict=True)
    ]
    made = implant_in_subject(control, modalities, zip(specs, seeds, strict=True))
    for i, patient in enumerate(made, start=1):
        yield dataclasses.replace(patient, subject=f"{control.subject}lesion{i}")


def _write(folder: Path, subject: Subject) -> str:
    path = folder / f"{subject.subject}.npz"
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **dataclasses.asdict(subject))
    return subject.subject

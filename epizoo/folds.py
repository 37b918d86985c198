"""Cross-validation over controls, where there are no patients: each is held out once, with a lesion too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tfds_epilepsy import bids
from tfds_epilepsy.bids.participants import FEWEST_CONTROLS
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_table
from tfds_epilepsy.lesions import implant_in_dataset

VALIDATION = 2  # controls of each fold that calibrate its threshold and neither train nor test
LESION = "lesion"  # ends the label of the twin that has one


def make_folds(
    data: str | Path, folder: str | Path, folds: int, *, seed: int = 0, **reading: Any
) -> list[Path]:
    """Split the controls of a derivative into folds; the held-out ones also get a lesion.

    In each fold, its subjects are the test set twice: as they are (controls) and with an implanted lesion
    (patients, ``sub-66lesion`` of ``sub-66``). Of the others two controls, others in each fold, calibrate the
    threshold and all further ones train. No scan of a test subject, with or without lesion, is in another
    split of its fold.
    Every subject is in the test set of one fold. Called again it finds what is there.

    Args:
        data: a template-space derivative of controls.
        folder: gets ``implanted`` and, in ``fold-1``, ``fold-2``, ..., a derivative ``data`` each, of links.
        folds: how many; at least 2.
        seed: of the lesions, and of who is in which fold.
        **reading: ``modalities``, ``space``, ``group_column``, ``groups``, as in ``bids.template_subjects``.

    Returns:
        The derivatives, one per fold.

    Raises:
        InputError: ``data`` is no folder, has problems or patients, or is too small for so many folds.
    """
    source, folder = Path(data).absolute(), Path(folder)
    if not source.is_dir():
        raise InputError(f"{data}: folds are made of a folder, a template-space derivative of controls.")
    everyone, problems = bids.template_subjects(source, **reading)
    problems += [
        f"{data}: sub-{one.subject} is a patient; folds are made of controls alone, patients are tested on."
        for one in everyone
        if one.participant.group != "control"
    ]
    most = len(everyone) - VALIDATION - FEWEST_CONTROLS
    if not problems and (folds < 2 or -(-len(everyone) // folds) > most):
        problems.append(
            f"{data}: {folds} folds of {len(everyone)} controls; at least 2 folds are needed, and beside the "
            f"test subjects of each {VALIDATION} controls for the threshold and {FEWEST_CONTROLS} for "
            "training."
        )
    if problems:
        raise InputError(problems)

    twins = folder / "twins"
    people = []
    for one in everyone:
        for label in (one.subject, one.subject + LESION):
            _link_twin(one, source, twins, label)
            who = one.participant
            about = {"age": who.age, "sex": who.sex, "site": who.site}
            people.append({"participant_id": f"sub-{label}", "group": "control", "split": "test", **about})
    write_table(twins / "participants.tsv", people)
    labels = [one.subject for one in everyone]
    with_lesion = [label + LESION for label in labels]
    implanted = implant_in_dataset(twins, folder / "implanted", subjects=with_lesion, seed=seed).absolute()

    order = [labels[i] for i in np.random.default_rng(seed).permutation(len(labels))]
    made = []
    for number in range(folds):
        test = order[number::folds]
        first = number * folds % len(order)
        rest = [label for label in order[first:] + order[:first] if label not in test]
        splits = dict.fromkeys(rest[:VALIDATION], "validation") | dict.fromkeys(rest[VALIDATION:], "train")
        splits |= dict.fromkeys([*test, *(label + LESION for label in test)], "test")
        made.append(_write_fold(implanted, folder / f"fold-{number + 1}" / "data", splits, people))
    return made


def _link_twin(one: bids.TemplateSubject, source: Path, twins: Path, label: str) -> None:
    """The files of a subject and their sidecars under another label."""
    for path in one.files:
        for file in (path, path.with_name(path.name.split(".")[0] + ".json")):
            if file.is_file():
                there = str(file.relative_to(source)).replace(f"sub-{one.subject}", f"sub-{label}")
                _link(file, twins / there)


def _write_fold(implanted: Path, out: Path, splits: dict[str, str], people: list[dict[str, object]]) -> Path:
    for label in splits:
        _link(implanted / f"sub-{label}", out / f"sub-{label}")
    rows = []
    for person in people:
        label = str(person["participant_id"]).removeprefix("sub-")
        if label in splits:
            group = "patient" if label.endswith(LESION) else "control"
            rows.append({**person, "group": group, "split": splits[label]})
    write_table(out / "participants.tsv", rows)
    _link(implanted / "lesions.tsv", out / "lesions.tsv")
    bids.write_description(out, "one fold of a cross-validation", made_by="epizoo benchmark")
    return out


def _link(target: Path, link: Path) -> None:
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, link)

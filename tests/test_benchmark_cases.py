"""The lists to choose on and to judge by, and the patients that they make (``benchmarks/cases.py``)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import cases
from benchmarks.cases import CHOOSING, JUDGING, patients
from tfds_epilepsy import phantom


def test_every_family_has_a_kind_to_judge_by_that_is_not_chosen_on():
    for family in ("loss", "folding", "misplaced", "signal"):
        chosen = [kind for kind in CHOOSING.values() if kind.family == family]
        judged = [kind for kind in JUDGING.values() if kind.family == family]
        assert chosen
        assert any(kind not in chosen for kind in judged)


def test_the_two_lists_have_no_person_in_common():
    assert cases.COHORT.seed != cases.JUDGED.seed
    assert cases.COHORT.conditions != cases.JUDGED.conditions
    assert set(cases.CHOOSING_SCANNED) <= set(CHOOSING)
    assert set(cases.JUDGING_SCANNED) <= set(JUDGING)


@pytest.mark.parametrize("name", ["tuber", "dysplasia, implanted", "spot"])
def test_patients_have_a_lesion_each_on_an_anatomy_of_their_own(name):
    config = replace(cases.COHORT, seed=11)
    (first, second) = patients(config, name, JUDGING[name], 2, first=3001)
    for kind, patient in (first, second):
        assert (kind, patient.group) == (name, "patient")
        assert patient.lesion_mask.any()
    assert first[1].subject != second[1].subject
    assert not np.array_equal(first[1].brain_mask, second[1].brain_mask)


def test_what_is_written_is_read_back(tmp_path, monkeypatch):
    for name, n in (("CASES", 1), ("TRAIN", 1), ("HEALTHY", 1), ("LOCAL", 1), ("LOCAL_HEALTHY", 1)):
        monkeypatch.setattr(cases, name, n)
    monkeypatch.setattr(cases, "LOCAL_CASES", 4)
    made = phantom.subject(cases.COHORT, "control001")
    monkeypatch.setattr(phantom, "subject", lambda _, label: replace(made, subject=label))
    cases.choosing(tmp_path)
    names = ("train", "healthy", "scanner_train", "scanner_healthy")
    people = [one.subject for name in names for one in cases.read(tmp_path, name)]
    found = cases.read(tmp_path, "cases")
    assert [name for name, _ in found] == list(CHOOSING)
    people += [case.subject for _, case in [*found, *cases.read(tmp_path, "scanner_cases")]]
    assert len(set(people)) == len(people)  # nobody twice

"""The ceiling of each kind that judges (``benchmarks/ceilings.py``)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import ceilings
from benchmarks.cases import CHOOSING, JUDGED, _save
from tfds_epilepsy import phantom
from tfds_epilepsy.files import read_json

SMALL = replace(JUDGED, seed=3)


@pytest.fixture(scope="module")
def patient():
    return phantom.subject(SMALL, "patient001")


def test_teachers_are_other_people_and_every_kind_has_its_ceiling(tmp_path, monkeypatch, patient):
    taught = []

    class Reference:
        """Knows where the lesion is."""

        def score(self, subject):
            return subject.lesion_mask.astype("float32")

    def learn(subjects, **_):
        taught[:] = subjects
        return Reference()

    made = []

    def subject(config, label):
        made.append((config.seed, label))
        return replace(patient, subject=label)

    monkeypatch.setattr(phantom, "subject", subject)
    monkeypatch.setattr(ceilings, "fit_supervised", learn)
    monkeypatch.setattr(ceilings, "EACH", 2)
    _save(tmp_path, "cases", [(kind, patient) for kind in ceilings.TAUGHT])
    ceilings.main(str(tmp_path), str(tmp_path / "out"))
    assert len(taught) == 2 * len(ceilings.TAUGHT)
    assert {seed for seed, _ in made} == {JUDGED.seed + 1}
    assert len({label for _, label in made}) == len(made)
    assert read_json(tmp_path / "out" / "ceilings.json") == {
        kind: [[1.0, 1.0, True]] for kind in ceilings.TAUGHT
    }
    before = len(made)
    ceilings.main(str(tmp_path), str(tmp_path / "out"))  # goes on: its patients are there
    assert len(made) == before


def test_what_is_taught_is_on_no_list_to_choose_on_but_dysplasia():
    assert set(ceilings.TAUGHT) & set(CHOOSING) == {"dysplasia"}

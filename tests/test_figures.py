"""Figures as dataclasses: metrics.json keeps its layout; what cannot be read is refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from epizoo.evaluation import Interval, Metrics, Scored, evaluate, pool
from tests.scored import cohort, scored
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json
from tfds_epilepsy.volumes import Subject

RECORDED = Path(__file__).parent / "data" / "metrics-2.json"  # written when figures were dictionaries


def everyone():
    """Patients, controls and a patient without a lesion mask, as when ``RECORDED`` was written."""
    one = scored("p9", 3)
    unannotated = Subject(**(vars(one.subject) | {"group": "patient"}))
    return [
        *list(cohort(contrast=0.3, patients=4))[:6],
        Scored(unannotated, one.score_map, one.clusters, one.labels),
    ]


def leaves(value, path=()):
    """Path and value of each number or text, in their order."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def test_figures_have_the_recorded_layout_and_numbers():
    made = json.loads(json.dumps(evaluate(everyone(), threshold=3.0, resamples=50).to_json()))
    paths, values = zip(*leaves(made), strict=True)
    recorded_paths, recorded = zip(*leaves(json.loads(RECORDED.read_text())), strict=True)
    assert paths == recorded_paths
    assert [type(value) for value in values] == [type(value) for value in recorded]
    numbers = [i for i, value in enumerate(recorded) if isinstance(value, float)]
    assert [values[i] for i in numbers] == pytest.approx([recorded[i] for i in numbers], rel=1e-6)
    assert all(values[i] == recorded[i] for i in set(range(len(recorded))) - set(numbers))


def test_reading_and_writing_gives_the_same_file(tmp_path):
    metrics = Metrics.read(RECORDED)
    assert write_json(tmp_path / "metrics.json", metrics).read_text() == RECORDED.read_text()
    repeated = pool([metrics], resamples=50)  # every figure is made of the rows that were read
    assert list(leaves(repeated.to_json())) == [
        (path, pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)
        for path, value in leaves(metrics.to_json())
    ]


def test_what_json_does_not_have_comes_back():
    content = evaluate([*cohort(contrast=-5, patients=2)], resamples=20).to_json()
    row = content["rows"][0]
    assert row["strict"]["rank"] is None
    assert row["dice"] is None
    back = Metrics.from_json(content).annotated[0]
    assert back.lesion["strict"].rank == math.inf
    assert math.isnan(back.voxel.dice)
    assert back.lesion["strict"].found_at_threshold is None


def test_figures_of_another_version_are_refused_with_what_to_do(tmp_path):
    path = write_json(tmp_path / "metrics.json", json.loads(RECORDED.read_text()) | {"version": 1})
    with pytest.raises(
        InputError, match=r"metrics\.json: figures of version 1.*reads version 2: 'epizoo eval"
    ):
        Metrics.read(path)


@pytest.mark.parametrize("damaged", [{}, [], {"version": 2, "patients": 3}])
def test_what_is_no_figures_is_refused(tmp_path, damaged):
    with pytest.raises(InputError, match=r"metrics\.json: not the figures of a test set"):
        Metrics.read(write_json(tmp_path / "metrics.json", damaged))


def test_an_interval_writes_itself():
    assert f"{Interval(0.5, 0.25, 0.75, 20):.2f}" == "0.50 (0.25 to 0.75)"
    assert f"{Interval(0.1, -0.2, 0.4, 20):+.1f}" == "+0.1 (-0.2 to +0.4)"
    assert f"{Interval(0.5, math.nan, math.nan, 1):.2f}" == "0.50"
    assert f"{Interval(math.nan, math.nan, math.nan, 0):.2f}" == "–"


def test_figures_of_before_there_were_resections_are_of_lesions(tmp_path):
    content = json.loads(RECORDED.read_text())
    del content["reference"]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert Metrics.read(tmp_path / "metrics.json").reference == "lesion"

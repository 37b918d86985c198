"""The whole evaluation of a cohort: lesions that are found or not, chance, strata, folds, streams."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from epizoo.detection.tail import Tail
from epizoo.evaluation import Metrics, Scored, evaluate, pool
from tests.scored import AFFINE, cohort, scored
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json
from tfds_epilepsy.volumes import Subject


def test_a_strong_lesion_is_found_first_and_above_chance():
    metrics = evaluate(cohort(contrast=5), threshold=3.0, resamples=200)
    assert (metrics.patients, metrics.controls, metrics.unannotated) == (8, 4, 0)
    assert metrics.voxel.auroc.value > 0.99
    for figures in metrics.lesion.values():
        first = figures.sensitivity[1]
        assert (first.interval.value, first.interval.high, first.interval.n) == (1, 1, 8)
        assert first.interval.low < 1
        assert first.chance < 0.5
        assert first.p < 1e-3
        assert figures.mean_rank.value == 1
        assert figures.froc.area.value == 1
        assert figures.at_threshold.sensitivity.value == 1
        assert figures.at_threshold.false_positives.value == 0
    assert metrics.false_positives.clusters.value > 0
    assert metrics.false_positives.clusters_at_threshold.value == 0
    assert metrics.false_positives.controls_with_none_at_threshold.value == 1


def test_maps_that_ignore_the_lesion_stay_at_chance():
    metrics = evaluate(cohort(contrast=0, patients=40), resamples=200)
    assert metrics.voxel.auroc.low < 0.5 < metrics.voxel.auroc.high
    for rule in ("overlap", "strict"):
        for figure in metrics.lesion[rule].sensitivity.values():
            assert figure.interval.low <= figure.chance <= figure.interval.high
            assert figure.p > 0.01


def test_strata_hold_each_patient_once():
    metrics = evaluate(cohort(contrast=5), resamples=100)
    assert set(metrics.strata) == {"type", "site", "size"}
    for groups in metrics.strata.values():
        assert sum(group.n for group in groups.values()) == 8
    assert metrics.strata["type"]["fcd_iib"].n == 4
    assert set(metrics.strata["size"]) <= {"under 15 mm", "15 mm or more"}
    assert len(metrics.annotated) == 8
    for row in metrics.annotated:
        diameter = (6 * row.lesion_mm3 / np.pi) ** (1 / 3)
        assert row.strata["size"] == ("under 15 mm" if diameter < 15 else "15 mm or more")
    assert metrics.strata["site"]["a"].sensitivity_at_5["overlap"].value == 1


def test_result_is_json_without_nan_and_the_same_each_time(tmp_path):
    metrics = evaluate(cohort(contrast=1), resamples=100)
    path = write_json(tmp_path / "metrics.json", metrics)
    content = json.loads(path.read_text())
    assert content == metrics.to_json() == evaluate(cohort(contrast=1), resamples=100).to_json()
    assert metrics.lesion["overlap"].at_threshold is None
    assert np.isnan(metrics.voxel.dice.value)
    assert content["voxel"]["dice"]["value"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_controls_alone_give_false_positives_and_no_sensitivity():
    metrics = evaluate([scored("c0", 1), scored("c1", 2)], threshold=0.0, resamples=50)
    assert metrics.patients == 0
    assert np.isnan(metrics.lesion["overlap"].sensitivity[5].interval.value)
    assert metrics.false_positives.clusters.n == 2
    json.dumps(metrics.to_json(), allow_nan=False)


def test_folds_pool_to_what_one_test_set_gives():
    everyone = list(cohort(contrast=2))
    whole = evaluate(everyone, threshold=3.0, resamples=50)
    parts = [evaluate(everyone[i::2], threshold=3.0, resamples=50) for i in (0, 1)]
    pooled = pool([Metrics.from_json(json.loads(json.dumps(part.to_json()))) for part in parts], resamples=50)
    for name, figure in vars(whole.voxel).items():
        assert vars(pooled.voxel)[name].value == pytest.approx(figure.value)
    for rule in ("overlap", "strict"):
        one, other = whole.lesion[rule], pooled.lesion[rule]
        for rank, figure in one.sensitivity.items():
            assert other.sensitivity[rank].to_json() == pytest.approx(figure.to_json())
        assert one.froc.area.value == pytest.approx(other.froc.area.value)
        assert one.froc.false_positives == other.froc.false_positives
    for name, figure in vars(whole.false_positives).items():
        assert vars(pooled.false_positives)[name].value == pytest.approx(figure.value)
    with pytest.raises(InputError, match="more than once"):
        pool([parts[0], parts[0]])


def test_a_mean_rank_that_no_patient_has_has_no_interval():
    metrics = evaluate(cohort(contrast=-5), resamples=50)
    figure = metrics.lesion["strict"].mean_rank
    assert np.isnan([figure.value, figure.low, figure.high]).all()
    assert (figure.n, f"{figure:.1f}") == (8, "–")


def test_a_patient_without_a_lesion_mask_is_counted_apart():
    one = scored("p9", 3)
    unannotated = Scored(
        Subject(**(vars(one.subject) | {"group": "patient"})), one.score_map, one.clusters, one.labels
    )
    metrics = evaluate([unannotated], resamples=50)
    assert (metrics.patients, metrics.controls, metrics.unannotated) == (0, 0, 1)


def test_subjects_stream_one_at_a_time():
    alive = []

    def stream():
        for one in cohort(contrast=2, patients=6):
            alive.append(weakref.ref(one.score_map))
            yield one
            del one
            assert sum(ref() is not None for ref in alive) <= 2

    evaluate(stream(), resamples=50)
    assert len(alive) == 10


def test_unusable_test_sets_are_refused():
    with pytest.raises(InputError, match="empty"):
        evaluate([])
    with pytest.raises(InputError, match="more than once: c0"):
        evaluate([scored("c0", 1), scored("c0", 2)])
    one = scored("c0", 1)
    with pytest.raises(InputError, match="sub-c0"):
        evaluate([Scored(one.subject, one.score_map[1:], one.clusters, one.labels)])


def test_example_of_the_documentation_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    subjects = {one.subject.subject: one for one in cohort(contrast=3, patients=3)}

    class Normative:
        subjects: ClassVar = ["t0"]
        tail = Tail(4.0, 0.5, controls=20)

        def score(self, subject):
            return subjects[subject.subject].score_map

    monkeypatch.chdir(tmp_path)
    names = {
        "normative": Normative(),
        "affine": AFFINE,
        "test_subjects": list(subjects),
        "test": [one.subject for one in subjects.values()],
        "validation_controls": [one.subject for name, one in subjects.items() if name.startswith("c")],
    }
    exec(code, names)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["patients"], metrics["controls"]) == (3, 4)
    assert metrics["threshold"] == names["threshold"]
    assert metrics["false_positives"]["clusters_at_threshold"]["value"] <= 1

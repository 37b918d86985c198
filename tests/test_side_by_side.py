from epizoo.evaluation import Metrics, evaluate
from epizoo.evaluation.side_by_side import as_table, side_by_side
from epizoo.report.report import _missing, _summary
from epizoo.run_config import RunConfig
from tests.scored import cohort, scored


def test_methods_are_compared_where_no_patient_is_annotated():
    metrics = evaluate([scored("c0", 1), scored("c1", 2)], threshold=0.0, resamples=50)
    table = side_by_side({"a": metrics, "b": metrics})
    assert table.columns == ["figure", "a", "b"]
    assert len(table.rows) > 5
    assert {len(row) for row in table.rows} == {3}
    assert as_table({"a": metrics}).row_count == len(table.rows)


def test_overlap_with_a_resection_is_not_called_finding_a_lesion():
    config = RunConfig.resolve("data", model="none", detector="zscore")
    for reference, said in (("resection", "overlap with the resection"), ("lesion", "sensitivity")):
        metrics = evaluate(cohort(contrast=5), resamples=50, reference=reference)
        metrics = Metrics.from_json(metrics.to_json())
        names = " ".join(row[0] for row in side_by_side({"a": metrics}).rows)
        assert (f"{said} at rank 5" in names, "overlap with the resection" in names) == (
            True,
            reference == "resection",
        )
        shown = " ".join(row[0] for row in _summary(metrics)["summary"]) + " ".join(_missing(metrics, config))
        assert ("lesions found" in shown) == (reference == "lesion")
        assert ("what was resected" in shown) == (reference == "resection")

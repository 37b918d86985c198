from epizoo.evaluation import evaluate
from epizoo.evaluation.side_by_side import as_table, side_by_side
from tests.scored import scored


def test_methods_are_compared_where_no_patient_is_annotated():
    metrics = evaluate([scored("c0", 1), scored("c1", 2)], threshold=0.0, resamples=50)
    table = side_by_side({"a": metrics, "b": metrics})
    assert table.columns == ["figure", "a", "b"]
    assert len(table.rows) > 5
    assert {len(row) for row in table.rows} == {3}
    assert as_table({"a": metrics}).row_count == len(table.rows)

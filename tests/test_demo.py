from epizoo.demo import comparison
from epizoo.evaluation import evaluate
from tests.scored import scored


def test_methods_are_compared_where_no_patient_is_annotated():
    metrics = evaluate([scored("c0", 1), scored("c1", 2)], threshold=0.0, resamples=50)
    table = comparison({"a": metrics, "b": metrics})
    assert len(table.columns) == 3
    assert table.row_count > 5

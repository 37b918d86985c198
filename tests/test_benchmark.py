import pandas as pd

from epizoo.benchmark import benchmark
from epizoo.demo import comparison
from epizoo.evaluation import evaluate
from tests.test_evaluate import scored
from tests.test_run import cohort, data_dir

__all__ = ["cohort", "data_dir"]  # fixtures


def test_every_method_has_its_row_and_detectors_share_an_encoder(cohort, data_dir, tmp_path):
    def run():
        return benchmark(
            str(cohort),
            tmp_path,
            ["siamese"],
            ["gaussian", "knn"],
            ["zscore"],
            seeds=1,
            data_dir=data_dir,
            epochs=1,
            steps_per_epoch=3,
            batch_size=16,
        )

    table = run()
    rows = pd.read_csv(tmp_path / "leaderboard.tsv", sep="\t")
    assert set(rows["method"]) == {"siamese + gaussian", "siamese + knn", "zscore"}
    for method in rows["method"]:
        assert method in table.read_text()
    models = [(tmp_path / f"siamese-{name}-0" / "model.keras").read_bytes() for name in ("gaussian", "knn")]
    assert models[0] == models[1]
    report = tmp_path / "zscore" / "report.html"
    before = report.stat().st_mtime_ns
    run()
    assert report.stat().st_mtime_ns == before


def test_methods_are_compared_where_no_patient_is_annotated():
    metrics = evaluate([scored("c0", 1), scored("c1", 2)], threshold=0.0, resamples=50)
    table = comparison({"a": metrics, "b": metrics})
    assert len(table.columns) == 3
    assert table.row_count > 5

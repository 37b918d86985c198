"""The README's Python example runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

import tfds_epilepsy


@pytest.mark.slow
def test_the_readmes_example_runs(cohort, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    load = tfds_epilepsy.load
    monkeypatch.setattr(
        tfds_epilepsy,
        "load",
        lambda data, data_dir=None, *rest, **options: load(data, tmp_path, *rest, **options),
    )

    monkeypatch.chdir(tmp_path)
    assert '"phantom_2mm"' in example
    names: dict = {}
    exec(example.replace('"phantom_2mm"', repr(str(cohort))), names)
    subject, score_map = names["subject"], names["score_map"]
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert names["done"].metrics.patients == 1
    np.testing.assert_array_equal(score_map, names["done"].score_map(subject.subject))
    assert score_map[subject.brain_mask].any()
    assert names["labels"].max() == len(names["clusters"])

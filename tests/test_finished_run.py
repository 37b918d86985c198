"""Opening a run: what is missing or damaged is told at once, and what there is is read."""

import pytest

from epizoo.finished_run import open_run
from epizoo.run_config import RunConfig
from epizoo.run_metadata import Metadata, Step
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import read_json, write_json


@pytest.fixture
def folder(tmp_path):
    """Of a run that was trained, and no more."""
    write_json(tmp_path / "config.json", RunConfig.resolve("phantom_2mm", model="siamese").to_json())
    Metadata(
        versions={"epizoo": "0"},
        data_hash="d",
        split_hash="s",
        modalities=["T1w"],
        space="MNI",
        splits={"train": ["a"], "validation": [], "test": ["b"]},
        steps={"train": Step(5.0, 1.5), "score": Step(2.0, 2.5)},
    ).write(tmp_path / "metadata.json")
    (tmp_path / "history.csv").write_text("epoch,loss\n1,0.5\n")
    return tmp_path


def test_a_run_is_read_as_far_as_it_came(folder):
    run = open_run(folder, needs=[])
    assert (run.seconds, run.peak_gib) == ({"train": 5.0, "score": 2.0}, 2.5)
    assert (run.history, run.subjects, run.has_metrics) == ({"epoch": [1.0], "loss": [0.5]}, [], False)
    told = run.describe()
    assert (told["train subjects"], told["train took"]) == ("1", "5.0 s, 1.5 GiB")
    with pytest.raises(InputError, match=r"metrics\.json"):
        _ = run.metrics
    with pytest.raises(InputError, match="no fitted detector"):
        _ = run.detector


def test_all_that_is_missing_is_told_at_once(folder):
    with pytest.raises(InputError) as error:
        open_run(folder)
    words = ["metrics.json", "detector/manifest.json", "model.keras"]
    assert [problem.split("(no ")[1].split(")")[0] for problem in error.value.problems] == words
    with pytest.raises(InputError, match="not a run"):
        open_run(folder / "elsewhere")


def test_all_that_is_damaged_is_told_at_once(folder):
    content = read_json(folder / "metadata.json")
    del content["split_hash"]
    write_json(folder / "metadata.json", content)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError) as error:
        open_run(folder, needs=[])
    assert len(error.value.problems) == 2
    assert "not JSON" in error.value.problems[0]
    assert "'split_hash'" in error.value.problems[1]


def test_metadata_are_read_as_they_were_written_and_earlier_ones_completed(folder):
    path = folder / "metadata.json"
    metadata = Metadata.read(path)
    assert metadata.with_step("fit", Step(1.0, 1.0)).steps["train"] == metadata.steps["train"]
    content = read_json(path)
    for later in ("supervised", "fitted_on", "machine"):
        del content[later]
    write_json(path, {**content, "of_a_later_version": 1})
    assert Metadata.read(path) == metadata

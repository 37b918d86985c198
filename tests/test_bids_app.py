"""epizoo BIDS_DIR OUT_DIR participant|group: its words, and a patient from raw scans to the page."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from epizoo import bids_app, cli
from epizoo.run import Run
from tests.bids_files import raw_scan
from tests.small_cohort import AFFINE, SHAPE, SPACE, short_run, write_cohort
from tests.test_cli import run_main
from tfds_epilepsy import bids, preprocessing
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("B O participant --participant-label 1 2", "B O participant {0} 1 {0} 2"),
        ("B O participant --participant_label 1 2 --n_procs 2", "B O participant {0} 1 {0} 2 --n-procs 2"),
        ("--participant-label 1 B O participant -w W", "{0} 1 B O participant -w W"),
        ("B O group", "B O group"),
    ],
)
def test_words_of_bids_apps_are_understood(given, meant):
    assert cli.one_by_one(given.split()) == meant.format("--participant-label").split()


def test_the_levels_reach_their_functions(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(bids_app, "participant", lambda *a, **o: calls.append((a, o)) or ["page"])
    monkeypatch.setattr(bids_app, "group", lambda *a, **o: calls.append((a, o)) or "report")
    words = "B O participant --participant-label 1 2 --controls RUN --n_procs 3 --mem 9 -w W"
    assert run_main(monkeypatch, *words.split()) == 0
    assert run_main(monkeypatch, "B", "O", "group") == 0
    (first, options), (second, _) = calls
    assert list(map(str, first)) == list(map(str, second)) == ["B", "O"]
    assert options["labels"] == ["1", "2"]
    assert (str(options["controls"]), options["n_procs"], options["mem"]) == ("RUN", 3, 9)
    assert run_main(monkeypatch, "B", "O", "group", "--controls", "RUN") == 2
    assert "without effect on the level group" in capsys.readouterr().err


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run on controls that 'epizoo preprocess' could have made."""
    folder = tmp_path_factory.mktemp("fitted")
    cohort = write_cohort(folder / "cohort")
    run = Run(short_run(cohort, model="none", detector="zscore"), folder / "run", data_dir=folder / "tfds")
    run.evaluate()
    return folder / "run"


@pytest.fixture
def quick(monkeypatch):
    """In place of ANTs: a participant of another cohort in template space appears."""
    made = []

    def preprocess(bids_dir, out_dir, *, participant_labels, jobs, **options):
        made.append((tuple(participant_labels), jobs, options))
        for label in participant_labels:
            one = write_cohort(
                out_dir.parent / f"making{label}", {label: ("patient", "test")}, seed=int(label)
            )
            shutil.rmtree(out_dir / f"sub-{label}", ignore_errors=True)
            shutil.copytree(one / f"sub-{label}", out_dir / f"sub-{label}")
        bids.add_rows(
            out_dir / "participants.tsv",
            [{"participant_id": f"sub-{label}", "group": "patient"} for label in participant_labels],
        )
        return out_dir

    monkeypatch.setattr(preprocessing, "preprocess", preprocess)
    monkeypatch.setattr(preprocessing, "native_problems", lambda *_: [])
    monkeypatch.setattr(
        preprocessing,
        "to_native",
        lambda volume, *_, **__: nib.Nifti1Image(np.asarray(volume, np.float32), AFFINE),
    )
    monkeypatch.setattr(bids_app, "TEMPLATE_SPACE", SPACE)
    monkeypatch.setattr("epizoo.report.patient.viewer", lambda *_, **__: "<p>viewer</p>")
    monkeypatch.setattr("epizoo.report.figures.lightbox", lambda *_, **__: b"slices")
    monkeypatch.setattr("epizoo.outputs._in_native_space", lambda clusters, *_: clusters)
    return made


def raw(folder, labels=("1", "2"), modalities=("T1w", "FLAIR")):
    for label in labels:
        for name in modalities:
            raw_scan(folder, f"sub-{label}_{name}.nii.gz", SHAPE)
    return folder


def test_participants_one_by_one_give_what_all_at_once_give(fitted, quick, tmp_path):
    data = raw(tmp_path / "raw")
    for label in ("1", "2"):
        bids_app.participant(data, tmp_path / "a", labels=[label], controls=fitted)
    pages = bids_app.participant(data, tmp_path / "b", controls=fitted, n_procs=4, mem=9)
    assert [page.parent.name for page in pages] == ["sub-1", "sub-2"]
    assert quick[-1][1] == 2  # 9 GiB hold two participants
    assert quick[-1][2] == {
        "modalities": ["T1w", "FLAIR"],
        "voxel_size": 2,
        "normalisation": "unit",
        "region": "brain",
    }
    for label in ("1", "2"):
        name = f"sub-{label}/anat/sub-{label}_space-{SPACE}_desc-clusters.tsv"
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
        page = (tmp_path / "a" / f"sub-{label}" / "report.html").read_text()
        assert "Research only" in page


def test_a_run_of_other_modalities_is_told_before_any_work(fitted, quick, tmp_path):
    data = raw(tmp_path / "raw", modalities=("T1w",))
    with pytest.raises(InputError, match="FLAIR"):
        bids_app.participant(data, tmp_path / "out", controls=fitted)
    assert not quick
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_space_is_refused(fitted, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(bids_app, "TEMPLATE_SPACE", "MNI305")
    with pytest.raises(InputError, match="was fitted in space"):
        bids_app.participant(raw(tmp_path / "raw"), tmp_path / "out", controls=fitted)
    with pytest.raises(InputError, match="--mem 1"):
        bids_app.participant(raw(tmp_path / "raw"), tmp_path / "out", mem=1)


def test_the_group_waits_for_its_participants(quick, tmp_path):
    data = raw(tmp_path / "raw")
    with pytest.raises(InputError, match="2 of 2 participants are not preprocessed"):
        bids_app.group(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_of_a_derivative_are_those_of_its_subjects(tmp_path):
    assert preprocessing.settings_of(tmp_path) == {}
    record = {"Settings": {"region": "cerebrum"}, "Participant": {}}
    write_json(tmp_path / "sub-1" / "anat" / "sub-1_space-x_desc-preproc_T1w.json", record)
    assert preprocessing.settings_of(tmp_path) == {"region": "cerebrum"}

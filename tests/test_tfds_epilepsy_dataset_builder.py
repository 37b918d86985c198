import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfds_epilepsy
from tests.bids_files import write_participants, write_subject
from tfds_epilepsy import bids, phantom
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder, EpilepsyConfig, config_for


def write_cohort(folder):
    rows = []
    for label, group, split in [
        ("c1", "control", "train"),
        ("c2", "control", "train"),
        ("c3", "control", "validation"),
        ("p1", "patient", "test"),
    ]:
        write_subject(folder, label, lesion=group == "patient")
        rows.append([f"sub-{label}", group, split, "30", "f", "A"])
    write_participants(folder, rows)
    return folder


@pytest.fixture
def cohort(tmp_path):
    return write_cohort(tmp_path / "data")


class BidsConfigTest(tfds.testing.DatasetBuilderTestCase):
    """The config of a folder, as TFDS tests its builders."""

    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("bids",)
    SPLITS = {"train": 2, "validation": 1, "test": 1}  # noqa: RUF012
    SKIP_CHECKSUMS = True
    SKIP_TF1_GRAPH_MODE = True

    @classmethod
    def setUpClass(cls):
        import tempfile
        from pathlib import Path

        cls.EXAMPLE_DIR = write_cohort(Path(tempfile.mkdtemp()) / "data")
        super().setUpClass()


def test_what_is_read_is_what_the_folder_holds(cohort, tmp_path):
    builder = tfds_epilepsy.load(cohort, tmp_path / "tfds")
    assert builder.modalities == ("T1w", "FLAIR")
    assert builder.info.metadata["space"] == "MNI152NLin2009aSym"
    found = bids.read_derivative(cohort)
    assert builder.fingerprint == found.fingerprint
    for split, labels in (("train", ["c1", "c2"]), ("validation", ["c3"]), ("test", ["p1"])):
        assert tfds_epilepsy.subjects(builder, split) == labels
        for subject in tfds_epilepsy.read(builder, split):
            source = bids.read_subject(found.subjects[subject.subject], builder.modalities)
            for name, value in vars(source).items():
                assert np.array_equal(value, getattr(subject, name)), name
                assert np.asarray(value).dtype.kind == np.asarray(getattr(subject, name)).dtype.kind, name


def test_some_subjects_of_a_split_can_be_read(cohort, tmp_path):
    builder = tfds_epilepsy.load(cohort, tmp_path / "tfds")
    assert [s.subject for s in tfds_epilepsy.read(builder, "train", ["c2"])] == ["c2"]
    assert list(tfds_epilepsy.read(builder, "train", [])) == []


def test_a_split_without_subjects_is_empty(cohort, tmp_path):
    write_participants(
        cohort, [[f"sub-{s}", "control", "test", "", "", ""] for s in ("c1", "c2", "c3", "p1")]
    )
    builder = tfds_epilepsy.load(cohort, tmp_path / "tfds")
    assert tfds_epilepsy.subjects(builder, "train") == []
    assert list(tfds_epilepsy.read(builder, "train")) == []


def test_a_changed_source_is_prepared_again(cohort, tmp_path):
    first = tfds_epilepsy.load(cohort, tmp_path / "tfds")
    before = next(tfds_epilepsy.read(first, "train", ["c1"])).image
    write_subject(cohort, "c1", seed=7)
    second = tfds_epilepsy.load(cohort, tmp_path / "tfds")
    assert second.fingerprint != first.fingerprint
    assert not np.array_equal(next(tfds_epilepsy.read(second, "train", ["c1"])).image, before)


def test_modalities_can_be_chosen(cohort, tmp_path):
    builder = tfds_epilepsy.load(cohort, tmp_path / "tfds", modalities=["FLAIR"])
    assert builder.modalities == ("FLAIR",)
    assert next(tfds_epilepsy.read(builder, "train")).image.shape[-1] == 1


def test_problems_of_a_folder_stop_it_before_anything_is_written(cohort, tmp_path):
    next((cohort / "sub-c1").glob("anat/*FLAIR*")).unlink()
    with pytest.raises(InputError, match="no FLAIR"):
        tfds_epilepsy.load(cohort, tmp_path / "tfds")
    assert not list((tmp_path / "tfds").glob("**/*.tfrecord*"))


def test_neither_a_config_nor_a_folder(tmp_path):
    with pytest.raises(InputError, match="phantom_2mm"):
        tfds_epilepsy.load(tmp_path / "nowhere")


def test_the_phantom_is_generated_and_its_splits_are_the_cohorts(tmp_path, capsys):
    sizes = dict.fromkeys(("n_validation_controls", "n_validation_patients", "n_test_controls"), 0)
    config = phantom.PhantomConfig(**sizes, n_train=1, n_test_patients=1)
    builder = Builder(
        config=EpilepsyConfig(name="tiny", phantom=config), data_dir=str(tmp_path / "tfds")
    ).prepare()
    said = capsys.readouterr()
    assert "tiny, train" in said.err
    assert said.out == ""  # results alone go there
    assert {split: tfds_epilepsy.subjects(builder, split) for split in bids.SPLITS} == phantom.cohort(config)
    (patient,) = (s for s in tfds_epilepsy.read(builder, "test") if s.group == "patient")
    again = phantom.subject(config, patient.subject)
    assert np.array_equal(patient.image, again.image)
    assert np.array_equal(patient.lesion_mask, again.lesion_mask)
    assert patient.lesion_mask.any()
    assert json.loads(json.dumps(builder.info.metadata))["fingerprint"] == builder.fingerprint


def test_the_embedded_configs_are_known_by_name():
    assert config_for("phantom_2mm") == "phantom_2mm"
    assert {c.name for c in Builder.BUILDER_CONFIGS} >= {"phantom_2mm", "phantom_1mm", "bids"}


def test_what_is_known_of_lesions_comes_with_the_data(cohort, tmp_path):
    assert tfds_epilepsy.load(cohort, tmp_path / "without").lesions() == {}
    (cohort / "lesions.tsv").write_text("participant_id\tkind\tcontrast\nsub-p1\tfcd_2b\t0.5\n")
    builder = tfds_epilepsy.load(cohort, tmp_path / "with")
    assert builder.lesions() == {"p1": {"type": "fcd_2b", "contrast": "0.5"}}


@pytest.mark.parametrize(
    "content", ["", "lesion\tvolume\nleft\t12\n", "participant_id\tkind\nsub-p1\tfcd_2b\n"]
)
def test_a_table_of_lesions_of_other_columns_tells_no_strata(cohort, tmp_path, content):
    (cohort / "lesions.tsv").write_text(content)
    assert tfds_epilepsy.load(cohort, tmp_path / "tfds").lesions() == {}


@pytest.mark.parametrize(
    "content",
    [
        b"participant_id\tkind\tcontrast\nsub-p1\tfcd_2b\tstrong\n",
        b"participant_id\tkind\tcontrast\nsub-p1\n",
        b"\xff\xfe\x00\x01",
    ],
)
def test_a_damaged_table_of_lesions_is_named(cohort, tmp_path, content):
    (cohort / "lesions.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"lesions\.tsv: cannot be read as a table of lesions"):
        tfds_epilepsy.load(cohort, tmp_path / "tfds")


def test_a_data_directory_that_cannot_be_used_is_named(cohort, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/.*cannot be written to \(Not a directory\).*data_dir"):
        tfds_epilepsy.load(cohort, tmp_path / "file")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfds_epilepsy.load(cohort, "~/mine").data_dir.startswith(str(tmp_path / "mine"))


PREPARING = """
import sys, tfds_epilepsy

builder = tfds_epilepsy.load(*sys.argv[1:])
print(len(list(tfds_epilepsy.read(builder, "train"))), builder.fingerprint)
"""


def test_two_processes_prepare_one_data_set_once(cohort, tmp_path):
    halves = tmp_path / "tfds" / "tfds_epilepsy" / config_for(cohort).name
    (halves / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)  # of a killed one
    command = [sys.executable, "-c", PREPARING, str(cohort), str(tmp_path / "tfds")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    expected = f"2 {bids.read_derivative(cohort).fingerprint}"
    assert [out.splitlines()[-1] for out, _ in said] == [expected] * 2
    assert sum("data, train: 2 of 2" in progress for _, progress in said) == 1
    assert sorted(path.name for path in halves.iterdir()) == [".lock", "1.0.0"]


def test_a_prepared_source_is_not_read_again(cohort, tmp_path, monkeypatch):
    first = tfds_epilepsy.load(cohort, tmp_path / "tfds")
    monkeypatch.setattr(bids, "read_derivative", None)
    second = tfds_epilepsy.load(cohort, tmp_path / "tfds")
    assert second.fingerprint == first.fingerprint
    assert [s.subject for s in tfds_epilepsy.read(second, "train")] == ["c1", "c2"]


def test_too_few_training_controls_are_said_with_all_other_problems(cohort, tmp_path):
    write_participants(
        cohort, [[f"sub-{s}", "control", "test", "", "", ""] for s in ("c1", "c2", "c3", "p1")]
    )
    tfds_epilepsy.load(cohort, tmp_path / "tfds")  # to be scored, it needs none
    with pytest.raises(InputError, match="0 controls in split 'train'"):
        tfds_epilepsy.load(cohort, tmp_path / "tfds", require_controls=True)
    next((cohort / "sub-c1").glob("anat/*FLAIR*")).unlink()
    with pytest.raises(InputError) as caught:
        tfds_epilepsy.load(cohort, tmp_path / "new", require_controls=True)
    assert ["no FLAIR" in p or "0 controls in split" in p for p in caught.value.problems] == [True, True]


@pytest.mark.slow
def test_apache_beam_with_two_workers_makes_the_same_records_in_the_same_order(tmp_path, monkeypatch):
    pytest.importorskip("apache_beam", reason="apache-beam (the beam extra) is not installed")
    labels = [f"c{number}" for number in range(12)]
    for label in labels:
        write_subject(tmp_path / "data", label)
    write_participants(tmp_path / "data", [[s, "control", "train", "", "", ""] for s in labels])
    plain = tfds_epilepsy.load(tmp_path / "data", tmp_path / "plain")
    monkeypatch.setattr(bids, "read_subject", None)  # in this process: the workers have their own
    options = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    beam = tfds_epilepsy.load(tmp_path / "data", tmp_path / "beam", beam_options=options)

    def records(builder):
        dataset = builder.as_dataset(split="train", shuffle_files=False)
        return [{k: np.asarray(v).tobytes() for k, v in r.items()} for r in tfds.as_numpy(dataset)]

    assert [record["subject"].decode() for record in records(beam)] == sorted(labels)
    assert records(beam) == records(plain)
    assert beam.info.metadata == plain.info.metadata


def test_groups_spaces_and_modalities_of_a_folder_can_be_told(tmp_path):
    for label in ("a", "b", "c"):
        write_subject(tmp_path / "der", label, modalities=("T1w",) if label == "c" else ("T1w", "FLAIR"))
    rows = [["sub-a", "typ", "train"], ["sub-b", "typ", "train"], ["sub-c", "case", "test"]]
    write_participants(tmp_path / "der", rows, "participant_id\tarm\tsplit")
    reading = {"modalities": ["T1w"], "group_column": "arm", "groups": {"typ": "control"}}
    builder = tfds_epilepsy.load(tmp_path / "der", tmp_path / "data", **reading)
    assert tfds_epilepsy.subjects(builder, "train") == ["a", "b"]
    assert builder.modalities == ("T1w",)
    assert (
        tfds_epilepsy.load(tmp_path / "der", tmp_path / "data", **reading).fingerprint == builder.fingerprint
    )
    with pytest.raises(InputError, match="space: without effect on phantom_2mm"):
        tfds_epilepsy.load("phantom_2mm", tmp_path / "data", space="MNI")


@pytest.mark.parametrize("ending", ["T1w.nii.gz", "T1w.json"])
def test_a_file_whose_content_was_dropped_since_is_named(cohort, tmp_path, ending):
    copy = shutil.copytree(cohort, tmp_path / "copy")
    tfds_epilepsy.load(copy, tmp_path / "data")
    path = next((copy / "sub-p1" / "anat").glob("*T1w.nii.gz"))
    path = path.with_name(path.name.replace("T1w.nii.gz", ending))
    path.unlink(missing_ok=True)
    path.symlink_to(".git/annex/objects/x")
    with pytest.raises(InputError, match=rf"{ending}: a link to .* get the file's content first"):
        tfds_epilepsy.load(copy, tmp_path / "data")

"""OpenNeuro ds004199 from a server on this machine: choice of scans, derivative, records."""

import gzip

import nibabel as nib
import numpy as np
import pytest

import tfds_epilepsy
from tests.bucket import PEOPLE
from tfds_epilepsy import bids, bonn, preprocessing
from tfds_epilepsy.bonn import BonnConfig
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.openneuro import list_files
from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder, EpilepsyConfig
from tfds_epilepsy.volumes import TEMPLATE_SPACE, normalise, read_nifti, write_nifti


@pytest.fixture
def quick(monkeypatch):
    """In place of registration: the scans cut to one grid. The subjects that were worked on."""
    pytest.importorskip("ants", reason="antspyx (the preprocessing extra) is not installed")
    done = []

    def work(raw, anat, options):
        done.append(raw.subject)
        stem = anat / f"sub-{raw.subject}_space-{TEMPLATE_SPACE}_res-{options.voxel_size}"
        affine, brain = np.diag([2.0, 2, 2, 1]), np.ones((10, 11, 5), bool)
        for name, path in raw.images.items():
            volume, fitted = normalise(read_nifti(path)[0][:10, :11, :5], brain, "unit")
            write_nifti(f"{stem}_desc-preproc_{name}.nii.gz", volume, affine)
        write_nifti(f"{stem}_desc-brain_mask.nii.gz", brain, affine, dtype=np.uint8)
        if raw.lesion_mask:
            lesion = read_nifti(raw.lesion_mask)[0][:10, :11, :5] > 0
            write_nifti(f"{stem}_label-lesion_mask.nii.gz", lesion, affine, dtype=np.uint8)
        return {"Quality": {"MaskDice": 1.0, "TemplateCorrelation": 1.0, "MutualInformationWithT1w": {}},
                "Normalisation": dict(fitted)}  # fmt: skip

    monkeypatch.setattr(preprocessing, "_preprocess_subject", work)
    monkeypatch.setattr(preprocessing.quality, "write_page", lambda *_: None)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # the work above is known to this process alone
    return done


def test_the_scan_with_the_lesion_counts_then_the_protocol_of_the_controls(bucket):
    scans = bonn.scans_of(list_files("ds004199", server=bucket.address))
    assert sorted(scans) == ["00001", "00002", "00003", "00004", "00005"]  # 00006 has no FLAIR
    names = {label: [file.path.split("_", 1)[1] for file in s if file] for label, s in scans.items()}
    assert names["00002"] == [
        f"acq-{n}.nii.gz" for n in ("iso08_T1w", "tse3dvfl_FLAIR", "tse3dvfl_FLAIR_roi")
    ]
    assert names["00005"] == ["acq-iso08_T1w.nii.gz", "acq-T2sel_FLAIR.nii.gz"]
    assert [label for label, s in scans.items() if not s.matched] == ["00002"]


def test_age_classes_are_years_and_training_patients_validate():
    assert [bonn.age(text) for text in ("1", "5", "10")] == [3, 23, 48]  # 1 to 5, 21 to 25, 46 to 50
    assert np.isnan(bonn.age("n/a"))

    def person(label, group, split=""):
        return bids.Participant(subject=label, group=group, split=split)

    assert bonn.split(person("a", "patient", "train")) == "validation"
    assert bonn.split(person("a", "patient", "test")) == "test"
    assert bonn.split(person("a", "control", "train")) == "train"
    assert bonn.split(person("a", "patient")) == "test"
    assert {bonn.split(person(f"{i}", "control")) for i in range(50)} == {"train", "validation", "test"}


def load(bucket, tmp_path, matched=False, **options):
    name = "bonn_matched_replica" if matched else "bonn_replica"
    config = EpilepsyConfig(name=name, cohort=BonnConfig(matched=matched, server=bucket.address))
    return Builder(config=config, data_dir=str(tmp_path / "tfds")).prepare(**options)


def test_the_config_downloads_preprocesses_and_is_read_as_any_other(bucket, tmp_path, quick, capsys):
    builder = load(bucket, tmp_path, require_controls=True)
    assert builder.modalities == ("T1w", "FLAIR")
    assert "sub-00006: no T1w or no FLAIR" in capsys.readouterr().err
    splits = {split: tfds_epilepsy.subjects(builder, split) for split in ("train", "validation", "test")}
    assert splits == {"train": ["00003", "00004", "00005"], "validation": ["00001"], "test": ["00002"]}
    [patient] = tfds_epilepsy.read(builder, "test")
    assert (patient.group, patient.age, patient.sex) == ("patient", 38, "f")
    key = "ds004199/sub-00002/anat/sub-00002_acq-tse3dvfl_FLAIR_roi.nii.gz"
    drawn = nib.Nifti1Image.from_bytes(gzip.decompress(bucket.files[key])).get_fdata()
    assert np.array_equal(patient.lesion_mask, drawn[:10, :11, :5] > 0)
    assert np.isnan(next(tfds_epilepsy.read(builder, "train", ["00004"])).age)
    fetched = {path.name for path in (tmp_path / "tfds/downloads/ds004199").glob("**/*.*")}
    assert not fetched & {"large.bin", "sub-00002_acq-T2sel_FLAIR.nii.gz", "sub-00005_acq-anat_T1w.nii.gz"}
    assert "sub-00003_acq-iso08_T1w.json" in fetched

    quick.clear()
    bucket.requests.clear()
    again = load(bucket, tmp_path)
    assert again.fingerprint == builder.fingerprint
    matched = load(bucket, tmp_path, matched=True)
    assert tfds_epilepsy.subjects(matched, "validation") == ["00001"]
    assert tfds_epilepsy.subjects(matched, "test") == []
    assert (quick, bucket.requests) == ([], [])  # a subset of what is there


def test_the_matched_subset_fetches_no_more_than_it_needs(bucket, tmp_path, quick):
    builder = load(bucket, tmp_path, matched=True)
    assert sorted(quick) == ["00001", "00003", "00004", "00005"]
    assert not any("sub-00002" in key for key, _ in bucket.requests)
    assert tfds_epilepsy.subjects(builder, "train") == ["00003", "00004", "00005"]


def test_without_a_split_column_the_rule_decides(bucket, tmp_path, quick):
    rows = [line.rsplit("\t", 1)[0] for line in PEOPLE.splitlines()]
    bucket.files["ds004199/participants.tsv"] = "\n".join(rows).encode()
    builder = load(bucket, tmp_path)

    def person(label, group, split=""):
        return bids.Participant(subject=label, group=group, split=split)

    for split in ("train", "validation", "test"):
        for label in tfds_epilepsy.subjects(builder, split):
            group = "patient" if label in ("00001", "00002") else "control"
            assert bids.split_of(person(label, group)) == split


def test_too_few_controls_stop_it_before_records_are_made(bucket, tmp_path, quick):
    for label in ("00004", "00005"):
        for key in [key for key in bucket.files if f"sub-{label}" in key]:
            del bucket.files[key]
    with pytest.raises(InputError, match="1 controls in split 'train'"):
        load(bucket, tmp_path, require_controls=True)
    assert not list((tmp_path / "tfds").glob("**/*.tfrecord*"))


def test_the_embedded_configs_point_to_the_public_bucket():
    configs = {config.name: config for config in Builder.BUILDER_CONFIGS}
    assert configs["bonn"].cohort == BonnConfig(server="https://s3.amazonaws.com/openneuro.org")
    assert configs["bonn_matched"].cohort.matched

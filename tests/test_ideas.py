"""OpenNeuro ds005602 from a server on this machine: scans, tables and masks beside it, resections."""

import gzip

import nibabel as nib
import numpy as np
import pytest

import tfds_epilepsy
from tests.bucket import nifti
from tests.test_bonn import quick  # noqa: F401
from tfds_epilepsy import bids, ideas
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.ideas import IdeasConfig
from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder, EpilepsyConfig

PATIENTS = """\
ID,Sex,Binned_Onset_Age,Op_Side,Op_Type,Pathology,Number_ASMs,Binned_Age_at_Scan,ILAE_Year1
1,F,5 to 7,L,T Lx,HS,2,30 to 34,1
2,M,1 to 2,R,F Lx,FCD,3,Over 55,NA
2,M,1 to 2,R,F Lx,FCD,3,Over 55,NA
3,F,8 to 9,R,T Lx,NA,1,20 to 24,1
"""
CONTROLS = "ID,Sex,Binned_Age_at_Scan\n" + "".join(f"{n},M,25 to 29\n" for n in range(4001, 4009))


@pytest.fixture
def replica(bucket):
    """As the data set is: no participants.tsv, no masks; a thick FLAIR; a patient without one."""
    bucket.files.clear()
    bucket.files["ds005602/dataset_description.json"] = b'{"Name": "IDEAS", "BIDSVersion": "1.8.0"}'
    bucket.files["ds005602/README"] = b"demographics lie elsewhere"
    for label in ("1", "2", "3", *(str(n) for n in range(4001, 4009))):
        for name in ("T1w", "FLAIR"):
            if (label, name) != ("3", "FLAIR"):
                key = f"ds005602/sub-{label}/anat/sub-{label}_{name}.nii.gz"
                bucket.files[key] = nifti(seed=int(label) + 5000 * (name == "FLAIR"))
    return bucket


def put_tables(folder, masks=("1",)):
    place = folder / "tfds" / "downloads" / ideas.TABLES
    place.mkdir(parents=True)
    (place / ideas.PATIENTS).write_text(PATIENTS, encoding="utf-8-sig")
    (place / ideas.CONTROLS).write_text(CONTROLS)
    for label in masks:
        mask = place / "masks" / label / f"{label}_MaskInRawData.nii.gz"
        mask.parent.mkdir(parents=True)
        mask.write_bytes(nifti(seed=9, mask=True))
    return place


def load(replica, tmp_path):
    config = EpilepsyConfig(name="ideas_replica", cohort=IdeasConfig(server=replica.address))
    return Builder(config=config, data_dir=str(tmp_path / "tfds")).prepare()


def test_scans_tables_and_masks_become_records(replica, tmp_path, quick, capsys):  # noqa: F811
    put_tables(tmp_path)
    builder = load(replica, tmp_path)
    assert "sub-3: no T1w or no FLAIR in ds005602" in capsys.readouterr().err
    assert builder.modalities == ("T1w", "FLAIR")
    assert builder.reference == "resection"
    people = {
        one.subject: one
        for split in ("train", "validation", "test")
        if tfds_epilepsy.subjects(builder, split)
        for one in tfds_epilepsy.read(builder, split)
    }
    assert {name: one.group for name, one in people.items()} == {
        "1": "patient",
        "2": "patient",
        **{str(n): "control" for n in range(4001, 4009)},
    }
    assert (people["1"].age, people["1"].sex) == (32, "f")
    assert np.isnan(people["2"].age)  # an open bin
    drawn = nib.Nifti1Image.from_bytes(gzip.decompress(nifti(seed=9, mask=True))).get_fdata()
    assert np.array_equal(people["1"].lesion_mask, drawn[:10, :11, :5] > 0)
    assert not people["2"].lesion_mask.any()
    assert builder.lesions() == {"1": {"type": "HS"}, "2": {"type": "FCD"}}
    derivative = tmp_path / "tfds" / "downloads" / "ds005602_2mm"
    assert bids.reference_of(derivative) == "resection"
    # The folder alone says so too.
    assert tfds_epilepsy.load(derivative, tmp_path / "again").reference == "resection"


def test_without_tables_numbers_tell_controls_and_nobody_has_a_mask(replica, tmp_path, quick):  # noqa: F811
    builder = load(replica, tmp_path)
    read = [s for split in ("train", "validation", "test") for s in tfds_epilepsy.subjects(builder, split)]
    assert sorted(read) == sorted(["1", "2", *(str(n) for n in range(4001, 4009))])
    assert tfds_epilepsy.subjects(builder, "test")[:2] == ["1", "2"]
    assert not any(one.lesion_mask.any() for one in tfds_epilepsy.read(builder, "test"))
    assert builder.lesions() == {}


def test_a_mask_on_another_grid_and_conflicting_tables_are_refused(replica, tmp_path, quick):  # noqa: F811
    place = put_tables(tmp_path)
    (place / ideas.CONTROLS).write_text(CONTROLS + "1,F,20 to 24\n")
    with pytest.raises(InputError, match="two different rows of sub-1"):
        load(replica, tmp_path)
    (place / ideas.CONTROLS).write_text("number,Sex\n1,F\n")
    with pytest.raises(InputError, match="needs the columns Binned_Age_at_Scan, ID, Sex"):
        load(replica, tmp_path)
    (place / ideas.CONTROLS).write_text(CONTROLS + "2000,F,20 to 24\n")
    (place / "masks" / "1" / "1_MaskInRawData.nii.gz").write_bytes(nifti(seed=9, mask=True, shape=(5, 6, 7)))
    with pytest.raises(InputError, match="T1w_roi"):
        load(replica, tmp_path)
    assert not quick


@pytest.mark.parametrize(("words", "years"), [("20 to 24", 22), ("15 to 20", 17.5), ("1 - 2", 1.5)])
def test_a_bins_age_is_its_middle(words, years):
    assert ideas.age(words) == years
    assert np.isnan(ideas.age("Less than 20"))
    assert np.isnan(ideas.age("70+"))


def test_a_description_of_masks_is_lesion_or_resection(tmp_path):
    bids.write_description(tmp_path, "a", LesionMasks="tumour")
    with pytest.raises(InputError, match="write lesion or resection"):
        bids.reference_of(tmp_path)

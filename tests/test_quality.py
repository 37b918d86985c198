"""Registration figures, the outliers among them, and the page that shows every subject."""

import json
import re

import numpy as np
import pytest

from tfds_epilepsy import quality
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.volumes import load_template, write_nifti


def put(folder, label, dice, correlation, images=("T1w",), lesion=False):
    template = load_template(2)
    stem = folder / f"sub-{label}" / "anat" / f"sub-{label}_space-MNI152NLin2009aSym_res-2"
    for image in images:
        write_nifti(f"{stem}_desc-preproc_{image}.nii.gz", template.t1, template.affine)
    if lesion:
        spot = np.zeros(template.shape, np.uint8)
        spot[40:50, 50:60, 35:45] = 1
        write_nifti(f"{stem}_label-lesion_mask.nii.gz", spot, template.affine, dtype=np.uint8)
    information = {image: 0.5 for image in images if image != "T1w"}
    record = {"MaskDice": dice, "TemplateCorrelation": correlation, "MutualInformationWithT1w": information}
    path = stem.with_name(stem.name + "_desc-preproc_T1w.json")
    path.write_text(json.dumps({"Settings": {}, "Quality": record}))


def test_outliers_lie_far_below_the_median_or_failed_outright():
    values = {
        label: {"MaskDice": dice, "TemplateCorrelation": 0.8 + 0.001 * number}
        for number, (label, dice) in enumerate(
            zip("abcdef", [0.980, 0.982, 0.984, 0.981, 0.983, 0.960], strict=True)
        )
    }
    # median 0.9815, MAD 0.0015, spread 0.0022: 0.960 lies at -9.7, nothing above the median is ever marked
    assert quality.outliers(values) == {"f": ["MaskDice"]}
    values["b"]["MaskDice"] = 1.0
    assert quality.outliers(values) == {"f": ["MaskDice"]}
    few = {"a": {"MaskDice": 0.95}, "b": {"MaskDice": 0.89}}
    assert quality.outliers(few) == {"b": ["MaskDice"]}


def test_the_page_stands_alone_and_shows_outliers_first(tmp_path):
    put(tmp_path, "01", 0.97, 0.8, ("T1w", "FLAIR"), lesion=True)
    put(tmp_path, "02", 0.70, 0.8)
    page = quality.write_page(tmp_path).read_text()
    assert re.findall(r"<h2>sub-(\d+)", page) == ["02", "01"]
    assert page.count("look at this one") == 1
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "http" not in page
    assert "mutual information, FLAIR" in page
    assert "2 subjects. Median Dice of the brain mask with the template's 0.835 (lowest 0.700)" in page
    assert not list(tmp_path.glob(".partial*"))


def test_slices_are_taken_at_their_millimetres_and_stand_upright():
    template = load_template(2)
    world_z = np.broadcast_to(template.affine[2, 3] + 2 * np.arange(template.shape[2]), template.shape)
    cuts = quality.slices(world_z, template.affine)
    assert [cut[0, 0] for cut in cuts[:3]] == [-20, 4, 36]  # the nearest planes to -20, 5 and 35 mm
    for cut in cuts[3:]:
        assert cut[0, 0] > cut[-1, 0]  # superior is on top


def test_a_folder_without_subjects_is_refused(tmp_path):
    with pytest.raises(InputError, match="no preprocessed subject"):
        quality.write_page(tmp_path)

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


MEASURED = {  # of real scans and of what became of them, registered in earnest
    "ds002748 sub-52": (0.985, 0.829, None),
    "lowest of ds002748": (0.973, 0.776, None),
    "open_ms sub-07": (0.991, 0.830, 0.520),
    "open_ms sub-19": (0.990, 0.703, 0.600),
    "open_ms sub-26": (0.989, 0.809, 0.480),
    "noise": (0.989, 0.298, 0.185),
    "shuffled": (0.989, 0.273, 0.189),
    "shuffled slices": (0.968, 0.218, 0.033),
    "upside down": (0.981, 0.433, 0.049),
    "back to front": (0.983, 0.434, 0.066),
    "upper half": (0.913, 0.638, 0.269),
    "of another head": (0.989, 0.703, 0.170),
}


@pytest.mark.parametrize("name", MEASURED)
def test_failures_are_marked_even_where_all_failed_and_real_scans_are_not(name):
    dice, correlation, information = MEASURED[name]
    figures = {"MaskDice": dice, "TemplateCorrelation": correlation}
    if information is not None:
        figures["FLAIR to T1w"] = information
    marked = quality.outliers({"a": figures, "b": figures})
    assert bool(marked) == (not name.startswith(("ds002748", "lowest", "open_ms")))
    if marked and name != "of another head":
        assert {"MaskDice", "TemplateCorrelation"} & set(marked["a"])
    if marked:
        assert "FLAIR to T1w" in marked["a"]
    assert quality.outliers({"a": {"pet to T1w": 0.1}}) == {}


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

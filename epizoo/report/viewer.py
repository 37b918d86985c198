"""An interactive viewer of a brain, as one HTML page that needs no network."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tfds_epilepsy.volumes import Subject, voxel_to_world

OPACITY = 0.8  # of the score at the beginning


def viewer(
    subject: Subject,
    score_map: NDArray[np.float32],
    centre_mm: Sequence[float] | None = None,
    *,
    modalities: Sequence[str] = ("image",),
    transparent_below: float = 2.0,
    limit: float = 6.0,
) -> str:
    """Make nilearn's viewer (brainsprite) of a score map over the image, with a switch between modalities.

    Args:
        subject: image and affine.
        score_map: ``(x, y, z)``.
        centre_mm: where the cross begins; the middle of the brain if None.
        modalities: names of the image's channels; the first is shown at the beginning.
        transparent_below: lower scores leave the anatomy uncovered.
        limit: score at the top of the colour bar.

    Returns:
        A whole HTML page, for the ``srcdoc`` of an ``iframe``; at 2 mm it has some 0.4 MB and another 0.5 MB
        per modality.
    """
    if centre_mm is None:
        centre_mm = voxel_to_world([np.argwhere(subject.brain_mask).mean(axis=0)], subject.affine)[0]
    nothing = np.zeros_like(score_map)  # of further modalities, the anatomy is all that is taken
    page, *others = (
        _page(subject, channel, nothing if channel else score_map, centre_mm, transparent_below, limit)
        for channel in range(len(modalities))
    )
    page = re.sub(r"<link[^>]*>", "", page)  # nilearn's icon would be fetched from its site
    page = page.replace("brain = brainsprite(", "brain = window.brain = brainsprite(")  # for goTo
    page = page.replace('value="100"', f'value="{100 * OPACITY:.0f}"')  # its slider begins elsewhere
    sprites = ["", *(_SPRITE.findall(other)[0] for other in others)]
    switch = "".join(
        f'<label><input type="radio" name="modality" value="{sprite}"{"" if sprite else " checked"}>'
        f"{html.escape(name)}</label>\n"
        for name, sprite in zip(modalities, sprites, strict=True)
    )
    return page.replace("<p>Opacity</p>", (switch if others else "") + _SWITCH)


_SPRITE = re.compile(r'id="spriteImg[^>]*?src="([^"]*)"')
# The slider's own handler draws the planes again from whatever the sprite holds.
_SWITCH = """<style>body { font: 15px system-ui, sans-serif; }</style>
<script>
(() => {
  const sprite = document.querySelector('img[id^="spriteImg"]'), first = sprite.src;
  document.querySelectorAll('input[name="modality"]').forEach(input => input.onchange = () => {
    sprite.onload = () => document.querySelector("input.slider").oninput();
    sprite.src = input.value || first;
  });
  // To a position in template millimetres, for the page around; brainsprite's affine counts slices from 1.
  window.goTo = (...position) => {
    const brain = window.brain;
    ["X", "Y", "Z"].forEach((axis, i) => {
      const slice = Math.round((position[i] - brain.affine[i][3]) / brain.affine[i][i] - 1);
      brain.numSlice[axis] = Math.min(Math.max(slice, 0), brain.nbSlice[axis] - 1);
    });
    brain.init();
    brain.drawAll();
  };
})();
</script>
<span>Score</span>"""


def _page(
    subject: Subject,
    channel: int,
    score_map: NDArray[np.float32],
    centre_mm: Sequence[float],
    transparent_below: float,
    limit: float,
) -> str:
    from nilearn import plotting

    with warnings.catch_warnings():
        # A map that is transparent everywhere shows the anatomy alone; nilearn warns.
        warnings.filterwarnings("ignore", "The given float value must not exceed", UserWarning)
        view = plotting.view_img(
            _nifti(np.maximum(score_map, 0), subject.affine),
            bg_img=_nifti(subject.image[..., channel], subject.affine),
            cut_coords=tuple(centre_mm),
            threshold=transparent_below,
            vmin=0.0,
            vmax=limit,
            symmetric_cmap=False,
            cmap="hot",
            black_bg=True,
            resampling_interpolation="nearest",
            title="",
            opacity=OPACITY,
        )
    return str(view.get_standalone())


def _nifti(volume: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(volume, dtype=np.float32), affine)

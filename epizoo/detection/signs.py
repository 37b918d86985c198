"""The signs that readers look for, held against the controls at every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.classical import ZScore
from epizoo.detection.codes import Codes
from epizoo.detection.detector import check_latents
from epizoo.detection.head import Head
from epizoo.maps.signs import directions, sign_maps, sign_names
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.lesions import DIRECTIONS
from tfds_epilepsy.volumes import Subject

if TYPE_CHECKING:
    from epizoo.maps.deviations import Deviations


class Signs(ZScore):
    """The sum of the signs of a lesion, each in z units of the controls at the voxel and one-sided.

    - the signal, less its mean over the surround: darker T1w, brighter FLAIR and T2w, less PET uptake;
    - the width of the junction of grey and white matter in the first modality, where it is blurred;
    - what the model itself holds to be abnormal, where it has a ``head``.

    These are the signs of focal cortical dysplasia that readers are taught (Blümcke et al. 2011, Epilepsia
    52:158-174; Colombo et al. 2009, AJNR 31:658-664). All count alike, ``sum z_k / sqrt(k)`` (Stouffer), so
    there is nothing to fit to lesions. The two halves make up for each other: the sum sees weak changes of
    any form, as the locally most powerful test does; a model that was taught sees strong ones in the form of
    a lesion.

    Args:
        modalities: names of the image's channels; those that ``DIRECTIONS`` does not know add no sign.

    Attributes:
        mean_, sd_: ``(v, k)`` float32, of the controls; an sd under 1e-3 is raised to it.

    Raises:
        InputError: no modality whose direction is known.
    """

    name: ClassVar[str] = "signs"
    reads: ClassVar[frozenset[str]] = frozenset({"codes", "image"})
    map_fwhm: ClassVar[float] = 8.0

    def __init__(self, modalities: Sequence[str] = ("T1w", "FLAIR")):
        self.modalities = list(modalities)
        if not any(name in DIRECTIONS for name in self.modalities):
            raise InputError(
                f"modalities {', '.join(self.modalities) or 'none'}: 'signs' knows how a lesion changes "
                f"{', '.join(DIRECTIONS)}; take another detector ('head', for a model that has one)."
            )

    @property
    def directions(self) -> NDArray[np.float32]:
        """Of the features that come from the image: the modalities, then the junction."""
        return np.array(directions(self.modalities), np.float32)

    def codes(self, encoder: Any) -> Codes:
        """The signs, and of a ``PatchModel`` what its head makes of a voxel.

        Raises:
            InputError: a model without a head.
        """
        if isinstance(encoder, Codes):
            return encoder
        return SignMaps(None if encoder is None else Head().codes(encoder))

    def score(self, latents: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return self._z(latents) @ self.weights(latents.shape[2])

    def parts(self, latents: NDArray[np.floating]) -> dict[str, NDArray[np.float32]]:
        """The z of each sign in its direction; the score is their weighted sum, see above."""
        z = self._z(latents)
        signs = np.sign(self.weights(z.shape[2]))
        named = zip([*sign_names(self.modalities), "model"], signs, strict=False)
        return {name: sign * z[..., k] for k, (name, sign) in enumerate(named) if sign}

    def _z(self, latents: NDArray[np.floating]) -> NDArray[np.float32]:
        latents = check_latents(latents, len(self.mean_))
        return (latents - self.mean_[:, None]) / self.sd_[:, None]

    def weights(self, features: int) -> NDArray[np.float32]:
        """What each feature's z counts for, with its direction; after the signs, a model's own score.

        Raises:
            InputError: fewer features than signs.
        """
        own = features - len(self.directions)
        if own < 0:
            raise InputError(
                f"{features} features: modalities {', '.join(self.modalities)} and their junction are "
                f"{len(self.directions)}."
            )
        signs = np.concatenate([self.directions, np.ones(own, np.float32)])
        return signs / np.linalg.norm(signs)


class SignMaps(Codes):
    """Each modality less its surround and the width of the junction; then what a model makes of the voxel.

    Of a model that reads the deviations of these signs from the controls', the deviations are taken.

    Args:
        inner: of the model; None for the signs alone.
    """

    version: ClassVar[int] = 3  # 1 held the gradient in place of the width, 2 counted a model's opinion half

    def __init__(self, inner: Codes | None = None):
        self.inner = inner

    @property
    def deviations(self) -> Deviations | None:
        """Of the signs, where the model reads them."""
        return getattr(self.inner, "deviations", None)

    def volume(self, subject: Subject) -> NDArray[np.float32]:
        """``(x, y, z, 2 m + 1)``: the image, which the model reads, and the signs; or ``(x, y, z, m + 1)``,
        their deviations, which it reads."""
        if self.inner is not None and self.deviations is not None:
            return self.inner.volume(subject)
        signs = sign_maps(subject.image, subject.brain_mask, subject.affine)
        return np.concatenate([subject.image, signs], -1, dtype=np.float32)

    def latents(self, volume: NDArray[np.float32], mask: NDArray[np.bool_], z: slice) -> NDArray[np.float32]:
        m = volume.shape[-1] // 2
        first, read = (m, slice(m)) if self.deviations is None else (0, slice(None))
        signs = volume[:, :, z, first:][mask[:, :, z]]
        if self.inner is None:
            return signs
        own = self.inner.latents(volume[..., read], mask, z)
        return np.concatenate([signs, own], axis=1, dtype=np.float32)

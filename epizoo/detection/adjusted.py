"""A detector behind steps that are fitted on each voxel's controls: covariates out, features on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes
from epizoo.detection.detector import LARGEST, Detector, check_codes, create_detector
from epizoo.detection.gaussian import LocalGaussian
from tfds_epilepsy.errors import InputError

SCALES = ("none", "standard", "whiten")
COVARIATES = ("age", "sex")
SMALLEST = 1e-3  # of the mean sd of a voxel's features: constant ones are not blown up


class Adjusted(Detector):
    """Regress age and sex out of the codes, scale or whiten them, then detect.

    All of it is learnt on the controls alone, in each fold anew.

    Example:
        >>> detector = Adjusted("gaussian", covariates=["age"])
        >>> codes = np.random.default_rng(0).normal(size=(4, 20, 3))
        >>> detector.fit(codes, age=np.linspace(20, 60, 20)).score(codes, age=np.full(20, 40.0)).shape
        (4, 20)

    Args:
        detector: the name of the detector.
        options: of the detector.
        covariates: of ``age`` (years) and ``sex``; a linear effect each, and none where they are unknown,
            do not vary, or the controls are fewer than three more than them.
        scale: ``none``; ``standard``, each feature by its sd; or ``whiten``, by the shrunk covariance
            (see ``LocalGaussian``).

    Raises:
        InputError: an unknown option.
    """

    name: ClassVar[str] = "adjusted"
    working: ClassVar[float] = 7.5  # each step's result, of the controls and of those held out

    def __init__(
        self,
        detector: str = "ocsvm",
        options: Mapping[str, Any] | None = None,
        covariates: Sequence[str] = (),
        scale: str = "none",
    ):
        if scale not in SCALES:
            raise InputError(f"scale={scale!r}: choose one of {', '.join(SCALES)}.")
        if set(covariates) - set(COVARIATES):
            raise InputError(f"covariates={list(covariates)}: choose of {', '.join(COVARIATES)}.")
        self.detector, self.options, self.covariates, self.scale = detector, options, list(covariates), scale
        self._inner = create_detector(detector, **(options or {}))

    def codes(self, model: Any, modalities: Sequence[str] | None = None) -> Codes:
        return super().codes(model, modalities) if self.views else self._inner.codes(model, modalities)

    def told(self, codes: Codes) -> Self:
        self._inner.told(codes)
        return super().told(codes)

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        codes = check_codes(codes)
        n = codes.shape[1]
        known = self._known(covariates, n)
        self.centre_, self.spread_ = _mean_and_sd(known)
        design = np.column_stack([np.ones(n), self._standard(known)])
        if n < design.shape[1] + 3:
            design[:, 1:] = 0
        # (1 + c, n) x (v, n, d) -> (v, 1 + c, d); the pseudo-inverse gives 0 to what does not vary
        self.effects_ = np.einsum("cn,vnd->vcd", np.linalg.pinv(design), codes).astype(np.float32)
        rest = self._without_effects(codes, known)
        if self.scale == "standard":
            sd = rest.std(1, ddof=min(1, n - 1))
            floor = SMALLEST * sd.mean(1, keepdims=True)
            self.sd_ = np.where(floor > 0, np.maximum(sd, floor), 1).astype(np.float32)
        elif self.scale == "whiten":
            self.gaussian_ = LocalGaussian().fit(rest)
        self._inner.fit(self._scaled(rest))
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        codes = check_codes(codes, len(self.effects_), self.effects_.shape[2])
        known = self._known(covariates, codes.shape[1])
        return self._inner.score(self._scaled(self._without_effects(codes, known)))

    def state(self) -> dict[str, NDArray[Any]]:
        state = {"effects": self.effects_, "centre": self.centre_, "spread": self.spread_}
        if self.scale == "standard":
            state["sd"] = self.sd_
        elif self.scale == "whiten":
            state |= {f"gaussian.{name}": array for name, array in self.gaussian_.state().items()}
        return state | {f"detector.{name}": array for name, array in self._inner.state().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        adjusted = cls(**config)
        adjusted.effects_, adjusted.centre_, adjusted.spread_ = (
            state["effects"],
            state["centre"],
            state["spread"],
        )
        if adjusted.scale == "standard":
            adjusted.sd_ = state["sd"]
        elif adjusted.scale == "whiten":
            adjusted.gaussian_ = LocalGaussian.from_state(_part(state, "gaussian."))
        inner = adjusted._inner
        adjusted._inner = type(inner).from_state(_part(state, "detector."), **inner.get_config())
        return adjusted

    def _known(self, covariates: Mapping[str, NDArray[np.floating]], n: int) -> NDArray[np.float64]:
        """``(n, c)``, NaN where unknown."""
        known = np.full((n, len(self.covariates)), np.nan)
        for c, name in enumerate(self.covariates):
            if name in covariates:
                known[:, c] = covariates[name]
        return known

    def _standard(self, known: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.nan_to_num((known - self.centre_) / self.spread_)

    def _without_effects(
        self, codes: NDArray[np.float32], known: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        design = np.column_stack([np.ones(len(known)), self._standard(known)]).astype(np.float32)
        rest: NDArray[np.float32] = codes - np.einsum("mc,vcd->vmd", design, self.effects_)
        return rest

    def _scaled(self, rest: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.scale == "none":
            return rest
        with np.errstate(over="ignore"):
            scaled = rest / self.sd_[:, None] if self.scale == "standard" else self.gaussian_.whiten(rest)
        return np.clip(scaled, -LARGEST, LARGEST, out=scaled)  # controls may vary by next to nothing


def _mean_and_sd(known: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Over what is known; 0 and 1 where nothing is or nothing varies."""
    centre, spread = np.zeros(known.shape[1]), np.ones(known.shape[1])
    for c, values in enumerate(known.T):
        values = values[np.isfinite(values)]
        if len(values):
            centre[c] = values.mean()
            spread[c] = values.std() or 1.0
    return centre, spread


def _part(state: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}

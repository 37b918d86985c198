"""One one-class SVM for the whole brain: of the controls, or of the patient's own brain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from epizoo.detection.codes import Codes, WithPosition
from epizoo.detection.detector import Detector, check_codes
from epizoo.detection.ocsvm import LocalOneClassSVM


class _BrainOneClassSVM(Detector):
    def __init__(
        self,
        nu: float = 0.03,
        gamma: float | str = "scale",
        samples: int = 1500,
        position: float = 0.0,
        seed: int = 0,
    ):
        self.nu, self.gamma, self.samples, self.position, self.seed = nu, gamma, samples, position, seed
        self._svm = LocalOneClassSVM(nu, gamma)

    def codes(self, model: Any, modalities: Sequence[str] | None = None) -> Codes:
        codes = super().codes(model, modalities)
        return WithPosition(codes, self.position) if self.position else codes

    def state(self) -> dict[str, NDArray[Any]]:
        return self._svm.state()

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        detector = cls(**config)
        detector._svm = LocalOneClassSVM.from_state(state, nu=detector.nu, gamma=detector.gamma)
        return detector


class PooledOneClassSVM(_BrainOneClassSVM):
    """One one-class SVM on codes of all controls from all over the brain.

    It sees what is nowhere in a healthy brain; what is at the wrong place only with ``position``.

    Args:
        nu, gamma: see ``LocalOneClassSVM``.
        samples: codes that it is fitted on, drawn evenly from the controls.
        position: weight of the position (three numbers in [-1, 1]) beside the code, in units of the code; 0
            leaves it out.
        seed: of the draw.
    """

    name: ClassVar[str] = "pooled"
    _folds: dict[int, LocalOneClassSVM] | None = None

    @property
    def sampled(self) -> int:
        return self.samples

    def prepare(self, sample: NDArray[np.floating], folds: NDArray[np.integer] | None = None) -> Self:
        if folds is None:  # a subject that is scored: nothing is learnt from it
            return self
        sample = check_codes(sample)
        self._svm = self._learn(sample)
        self._folds = {int(fold): self._learn(sample[:, folds != fold]) for fold in np.unique(folds)}
        return self

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        codes = check_codes(codes)
        if self._folds is None:
            self._svm = self._learn(codes)
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        return _score_all(self._svm, check_codes(codes))

    def cross_scores(
        self, codes: NDArray[np.floating], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        if self._folds is None:
            return super().cross_scores(codes, folds)
        scores = np.empty(codes.shape[:2], np.float32)
        for fold, svm in self._folds.items():
            scores[:, folds == fold] = _score_all(svm, check_codes(codes[:, folds == fold]))
        return scores

    def _learn(self, codes: NDArray[np.float32]) -> LocalOneClassSVM:
        """On a draw of the codes ``(v, n, d)``; all of the voxels count as one."""
        codes = codes.reshape(-1, codes.shape[2])
        if len(codes) > self.samples:
            codes = codes[np.random.default_rng(self.seed).choice(len(codes), self.samples, replace=False)]
        svm = LocalOneClassSVM(self.nu, self.gamma).fit(codes[None])
        scale = np.float32(self.samples / len(codes))  # decision values grow with the number of codes
        svm.alpha_, svm.rho_ = svm.alpha_ * scale, svm.rho_ * scale
        return svm


class PatientOneClassSVM(_BrainOneClassSVM):
    """A one-class SVM on the subject's own brain (Pinon et al. 2023): what is rare in it stands out.

    No control is learnt; they calibrate the map, each by an SVM of its own.

    Args:
        nu, gamma, position, seed: see ``PooledOneClassSVM``.
        samples: codes of the subject that its SVM is fitted on.
    """

    name: ClassVar[str] = "patient"
    _own: LocalOneClassSVM | None = None

    @property
    def sampled(self) -> int:
        return self.samples

    def prepare(self, sample: NDArray[np.floating], folds: NDArray[np.integer] | None = None) -> Self:
        own = LocalOneClassSVM(self.nu, self.gamma).fit(check_codes(sample).transpose(1, 0, 2))
        self._own = own  # a subject each, where a local one has a voxel each
        return self

    def fit(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> Self:
        check_codes(codes)
        return self

    def score(self, codes: NDArray[np.floating], **covariates: NDArray[np.floating]) -> NDArray[np.float32]:
        by_subject = check_codes(codes).transpose(1, 0, 2)
        own = self._own or LocalOneClassSVM(self.nu, self.gamma).fit(by_subject)
        return np.ascontiguousarray(own.score(by_subject).T)

    def cross_scores(
        self, codes: NDArray[np.floating], folds: NDArray[np.integer], **covariates: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        return self.score(codes)

    def state(self) -> dict[str, NDArray[Any]]:
        return {}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], **config: Any) -> Self:
        return cls(**config)


def _score_all(svm: LocalOneClassSVM, codes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores ``(v, m)`` of one SVM at all voxels."""
    voxels, m, d = codes.shape
    return svm.score(codes.reshape(1, -1, d)).reshape(voxels, m)

"""A detector on codes and on a view of the package's own."""

import numpy as np

from epizoo.detection.detector import Detector, check_codes
from epizoo.detection.scorer import Scorer
from epizoo.registry import register_detector


@register_detector("farthest")
class Farthest(Detector):
    """The largest deviation of any number of the code from the controls' mean, in their deviations there."""

    views = ("sharpness",)
    map_fwhm = 4.0
    exportable = True

    def __init__(self, floor=1e-3):
        self.floor = floor

    def fit(self, codes, **covariates):
        codes = check_codes(codes)
        self.mean_ = codes.mean(1)
        self.sd_ = np.maximum(codes.std(1), self.floor).astype(np.float32)
        return self

    def score(self, codes, **covariates):
        codes = check_codes(codes, *self.mean_.shape)
        return (np.abs(codes - self.mean_[:, None]) / self.sd_[:, None]).max(2)

    def graph(self, state, order):
        return FarthestScorer(self, state, order)


class FarthestScorer(Scorer):
    def __init__(self, detector, state, order):
        super().__init__(detector, state, order)
        self.mean, self.sd = (self.keep(state[key][order]) for key in ("mean_", "sd_"))

    def score(self, codes, start, stop):
        import tensorflow as tf

        return tf.reduce_max(tf.abs(codes - self.mean[start:stop]) / self.sd[start:stop], 1)

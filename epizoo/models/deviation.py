"""Self-supervision on deviation maps: where does a scan differ from the controls as no healthy one does?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from epizoo.models.patch_model import register_model
from epizoo.models.synthetic import Synthetic

WEAKEST, STRONGEST = 0.4, 4.0  # changes, in standard deviations of the controls
PRESENT = 0.6  # share of the maps that change together
AS_IN_LESIONS = 6 / 7  # share of the changes that go the way lesions change a map, where it is known


@register_model("deviation")
class Deviation(Synthetic):
    """It finds alterations as :class:`Synthetic` does, on deviation maps in place of images.

    A channel is a sign of the scan in standard deviations from the controls at the voxel (``Deviations``):
    each modality less its surround, and the width of the junction of grey and white matter. What all brains
    share is not in them. They show how healthy people differ from each other, and that has a shape: folds
    that lie elsewhere, vessels, noise. The network learns this shape from controls, each held against the
    others, by finding what does not have it: in half of the patches some maps are raised (or lowered) in a
    soft, irregular blob, each by an amount of its own from .4 to 4 standard deviations, six of seven times in
    the direction in which lesions change it, where that is known:

        d'_k(v) = d_k(v) + w(v) a_k,   w the blob in [0, 1],  log |a_k| ~ U(log .4, log 4) or a_k = 0

    Nothing tells the network what a lesion looks like in an image: no blur, no signal of a tissue, no kind.
    In :class:`Synthetic` the edits must look like real tissue, or the network finds them by what gives them
    away; here a change of the maps is all that there is to find.

    Fed single patches of deviation maps: ``model.view.adapt(controls)``, then ``model.view.seen(subject)``
    gives a subject whose image they are.

    >>> model = Deviation(channels=3, modalities=["T1w", "FLAIR"])  # doctest: +SKIP
    >>> model.view.adapt(controls)  # doctest: +SKIP
    >>> model.fit(patch_dataset([model.view.seen(s) for s in controls], (33, 33, 33)))  # doctest: +SKIP

    The arguments are those of :class:`Synthetic`, but for 16 filters: deviation maps have less in them than
    images, and 24 find no more (docs/results.md). ``channels`` is one more than the number of modalities.
    """

    paper = "Edited deviation maps: Marquand et al. 2016 (normative model), Tan et al. 2020 (edits)"
    views: ClassVar[tuple[str, ...]] = ("deviations",)
    view_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # its changes are in standard deviations
    run_defaults: ClassVar = {**Synthetic.run_defaults, "detector": "profiles"}

    def __init__(
        self,
        patch_shape: Sequence[int] = (33, 33, 33),
        channels: int = 2,
        latent_dim: int = 64,
        *,
        filters: int = 16,
        **kwargs: Any,
    ):
        super().__init__(patch_shape, channels, latent_dim, filters=filters, **kwargs)

    def relight(self, x: Any, training: bool = True) -> Any:
        """Leave the maps as they are: the brightness of each scan is in its deviations already."""
        return x

    def alter(self, x: Any, training: bool = True) -> tuple[Any, Any]:
        n, m = tf.shape(x)[0], self.channels
        ones = (1,) * len(self.patch_shape)

        def draw(name: str, *shape: int) -> Any:
            return self.uniform(name, (n, *ones, *shape), training)

        weight = self.draw_blob(n, training)[2]
        low, high = np.log(WEAKEST), np.log(STRONGEST)
        amount = tf.exp(low + (high - low) * draw("amount", m))
        up = 0.5 + (AS_IN_LESIONS - 0.5) * np.array(self.directions or [0] * m, np.float32)
        amount *= tf.sign(up - draw("direction", m))
        amount *= tf.cast((draw("present", m) < PRESENT) & (draw("altered", 1) < 0.5), tf.float32)
        brain = tf.cast(tf.reduce_any(x != 0, -1, keepdims=True), tf.float32)
        changed = tf.reduce_any(amount != 0, -1, keepdims=True)
        return x + weight * amount * brain, tf.cast((weight > 0.3) & changed, tf.float32)

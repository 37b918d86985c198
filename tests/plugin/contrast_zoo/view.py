"""A view: how sharp each image is around a voxel."""

import numpy as np

from epizoo.maps.junction import gradient, gradient_in_graph
from epizoo.maps.view import Graph, View
from epizoo.registry import register_view


@register_view("sharpness")
class Sharpness(View):
    """The size of the gradient of each modality, per millimetre; blurred cortex has less."""

    @property
    def names(self):
        return tuple(f"sharpness of {modality}" for modality in self.modalities or ())

    @property
    def directions(self):
        return (-1,) * len(self.names)

    def __call__(self, subject):
        maps = [
            gradient(subject.image[..., c], subject.brain_mask, subject.affine)
            for c in range(subject.image.shape[-1])
        ]
        return np.stack(maps, -1).astype(np.float32)

    def graph(self, shape, affine):
        import tensorflow as tf

        def maps(volume, mask):
            volumes = tf.unstack(volume, axis=-1)
            return tf.stack([gradient_in_graph(one, mask, affine) for one in volumes], -1)

        return Graph(maps)

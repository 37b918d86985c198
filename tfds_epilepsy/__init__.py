"""From scans on disk to tf.data patches: the epilepsy data set builder and what it is made of."""

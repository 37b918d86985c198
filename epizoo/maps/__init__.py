"""Maps of a subject, voxel by voxel, that models and detectors read beside its image."""

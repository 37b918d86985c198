from .detection_tuner import DetectionTuner as DetectionTuner
from .trial import SearchFailed as SearchFailed

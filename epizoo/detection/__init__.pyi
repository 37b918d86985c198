from .clusters import Cluster as Cluster
from .clusters import find_clusters as find_clusters
from .detector import DETECTORS as DETECTORS
from .detector import Detector as Detector
from .detector import create_detector as create_detector
from .fitted import FittedDetector as FittedDetector
from .fitted import fit_detector as fit_detector
from .fusion import fuse_maps as fuse_maps

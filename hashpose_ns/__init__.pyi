from hashpose_ns.api import load_run as load_run
from hashpose_ns.api import refined_poses as refined_poses
from hashpose_ns.cameras.alignment import PoseErrors as PoseErrors
from hashpose_ns.cameras.alignment import Similarity as Similarity
from hashpose_ns.cameras.alignment import align_poses as align_poses
from hashpose_ns.cameras.alignment import pose_errors as pose_errors
from hashpose_ns.cameras.pose_optimizer import PoseOptimizer as PoseOptimizer
from hashpose_ns.cameras.pose_optimizer import PoseOptimizerConfig as PoseOptimizerConfig
from hashpose_ns.encoding.hash_encoding import HashEncodingConfig as HashEncodingConfig
from hashpose_ns.encoding.hash_encoding import SmoothedHashEncoding as SmoothedHashEncoding
from hashpose_ns.errors import HashPoseError as HashPoseError

__version__: str

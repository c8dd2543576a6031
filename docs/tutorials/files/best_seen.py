import torch

from probpose.aggregation import Aggregator
from probpose.geometry import reprojection_error, root_of_hypotheses


class BestSeen(Aggregator):
    """The one hypothesis that fits the keypoints best, as it was sampled."""

    needs_camera = True  # a call without keypoints or camera is refused

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps):
        if root is None:
            root = root_of_hypotheses(hypotheses, keypoints_2d, camera, confidence, fps)
        pixels = reprojection_error(hypotheses, keypoints_2d, camera, root)
        best = pixels.mean((2, 3)).argmin(1)  # over frames and joints
        return hypotheses[torch.arange(len(hypotheses)), best]

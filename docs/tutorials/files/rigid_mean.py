from torch.nn.functional import normalize

from probpose.aggregation import Aggregator
from probpose.skeletons import get_skeleton


class RigidMean(Aggregator):
    """The mean of the hypotheses, with bones that keep their length."""

    def __init__(self, skeleton: str = "h36m_17"):
        super().__init__()
        self.bones = get_skeleton(skeleton).bones  # (parent, child), outwards

    def combine(self, hypotheses, keypoints_2d, camera, root, confidence, fps):
        mean = hypotheses.mean(1)  # (batch, frames, joints, 3)
        pose = mean.clone()
        for parent, child in self.bones:
            bone = hypotheses[..., child, :] - hypotheses[..., parent, :]
            length = bone.norm(dim=-1).flatten(1).median(1).values  # of the clip
            direction = mean[..., child, :] - mean[..., parent, :]
            bone = length[:, None, None] * normalize(direction, dim=-1)
            pose[..., child, :] = pose[..., parent, :] + bone
        return pose

"""Small data sets, a stand-in for a pipeline whose errors are known, and a tiny real one."""

import torch

from probpose.data.datasets import PoseClip, PoseDataset
from probpose.geometry import h36m_camera
from probpose.models import FrameTransformerModel
from probpose.pipelines import D3DPPipeline, ProbPosePipelineOutput
from probpose.schedulers import D3DPScheduler
from probpose.skeletons import convert, get_skeleton

# Human3.6M-17 joints of a person who faces the camera: metres right, down and towards the back from the pelvis.
STANDING = torch.tensor(
    [
        [0, 0, 0], [-0.12, 0.03, 0], [-0.12, 0.45, -0.02], [-0.12, 0.87, 0], [0.12, 0.03, 0], [0.12, 0.45, -0.02], [0.12, 0.87, 0],
        [0, -0.25, 0.02], [0, -0.5, 0], [0, -0.63, -0.06], [0, -0.77, -0.02],
        [0.18, -0.5, 0], [0.22, -0.22, 0], [0.24, 0.02, -0.08], [-0.18, -0.5, 0], [-0.22, -0.22, 0], [-0.24, 0.02, -0.08],
    ]
)  # fmt: skip


def clip(name, frames, seed=0, skeleton="h36m_17", lens=None, noise=3.0, valid=None, **tags):
    generator = torch.Generator().manual_seed(seed)
    joints = get_skeleton(skeleton).num_joints
    camera = lens or h36m_camera(0)
    body = 0.02 * torch.randn(joints, 3, generator=generator) + torch.tensor([0.2, 0.1, 5.0])
    body = body + (STANDING if skeleton == "h36m_17" else convert(STANDING, "h36m_17", skeleton))
    positions = body + 0.01 * torch.randn(frames, joints, 3, generator=generator).cumsum(0)
    pixels = camera.project(positions) + noise * torch.randn(frames, joints, 2, generator=generator)
    valid = None if valid is None else torch.tensor(valid, dtype=torch.bool)
    return PoseClip(name, pixels, torch.ones(frames, joints), positions, camera, 50.0, skeleton, valid, tags)


def dataset(*clips, protocol="clips", notes=()):
    return PoseDataset(clips, "tiny", protocol, notes)


class Known:
    """A stand-in for a pipeline: the hypotheses of a frame are its true pose plus `shift(clip, frame)`, `(K, joints, 3)` in metres.

    The estimated root is half a metre too far away. Frames are recognised by their keypoints.
    """

    calibrator = aggregator = None

    def choose_aggregator(self, aggregation):
        return None

    def is_calibrated_for(self, aggregator):
        return False

    def __init__(self, data, shift, skeleton="h36m_17", window=None):
        self.skeleton = self.input_skeleton = skeleton
        self.root_index = get_skeleton(skeleton).root
        self.config = {"default_num_hypotheses": 2, "default_flip": False}
        self.num_frames = window
        self.calls = []
        self.known = {}
        for c in data:
            pose, root = torch.nan_to_num(c.pose), torch.nan_to_num(c.root, nan=5.0)
            for frame in range(len(c)):
                self.known[tuple(c.keypoints_2d[frame, 0].tolist())] = (pose[frame] + shift(c, frame), root[frame])

    def __call__(self, keypoints_2d, confidence, camera=None, image_size=None, **arguments):
        self.calls.append({"keypoints_2d": keypoints_2d, "confidence": confidence, "camera": camera, "image_size": image_size, **arguments})
        found = [[self.known[tuple(frame[0].tolist())] for frame in window] for window in keypoints_2d]
        hypotheses = torch.stack([torch.stack([pose for pose, _ in window], dim=1) for window in found])
        root = torch.stack([torch.stack([root for _, root in window]) for window in found]) + torch.tensor([0.0, 0.0, 0.5])
        camera = camera or h36m_camera(0)
        return ProbPosePipelineOutput(hypotheses=hypotheses, root=root, camera=camera)

    def set_progress_bar_config(self, **_):
        pass


def along_x(*millimetres, joints=17, root=0):
    """Hypotheses moved along x by so many millimetres each, all joints but the root."""
    shift = torch.zeros(len(millimetres), joints, 3)
    shift[..., 0] = torch.tensor(millimetres)[:, None] / 1000
    shift[:, root] = 0
    return shift


def tiny_pipeline(skeleton="h36m_17", window=16):
    torch.manual_seed(0)
    joints = get_skeleton(skeleton).num_joints
    denoiser = FrameTransformerModel(window, joints, width=32, depth=1, num_attention_heads=2, skeleton=skeleton).eval()
    return D3DPPipeline(denoiser, D3DPScheduler(), default_num_hypotheses=3, default_num_inference_steps=2, default_flip="last_step")

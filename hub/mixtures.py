"""The 2D mixtures of DiffPose's release (Gong et al., CVPR 2023, arXiv 2211.16940)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from probpose.data.datasets.pickles import load_npz
from probpose.geometry import check_image_size, h36m_camera
from probpose.mixtures import PoseMixture


def load_original_mixtures(
    path: str | Path, image_sizes: Sequence[tuple[int, int]] | None = None
) -> dict[tuple[str, str, int], PoseMixture]:
    """Read `data_2d_h36m_gt_gmm.npz` or `data_2d_h36m_cpn_ft_h36m_dbb_gmm.npz`, without running anything that is pickled in it.

    The means are pixels. In which unit the standard deviations are is not documented and has not been verified: the release normalises
    the means by the image width (u' = 2u/w - 1) and applies the standard deviations to them unchanged. They are taken for normalised
    here, and multiplied by w/2, so that a mixture is in one unit.

    Args:
        path: the file. Its `positions_2d` is a dict of subjects, each a dict of actions, each a list with one array `(frames, 17,
            components, 5)` per camera: weight, mean u, mean v, standard deviation of u, of v.
        image_sizes: (width, height) of the cameras in the file's order; default those of Human3.6M (54138969, 55011271, 58860488,
            60457274).

    Returns:
        (subject, action, camera 0..3) to mixtures over the frames, in pixels, float32, in the joint order of h36m_17.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, another layout or joint count, or no mixtures (weights that do not sum to one, say); the message names
            subject, action and camera. Also image sizes that are none.
    """
    sizes = [h36m_camera(i).image_size for i in range(4)] if image_sizes is None else [check_image_size(size) for size in image_sizes]
    subjects = load_npz(path, ["positions_2d"])["positions_2d"]
    if not (isinstance(subjects, dict) and subjects and all(isinstance(actions, dict) for actions in subjects.values())):
        raise ValueError(f"{path}, positions_2d: must be a dict of subjects, each a dict of actions, got {type(subjects).__name__}")
    mixtures = {}
    for subject, actions in subjects.items():
        for action, cameras in actions.items():
            where = f"{path}, {subject} {action!r}"
            if not isinstance(cameras, (list, tuple, np.ndarray)) or len(cameras) != len(sizes):
                got = f"{len(cameras)}" if isinstance(cameras, (list, tuple, np.ndarray)) else type(cameras).__name__
                raise ValueError(f"{where}: must be a list with one array for each of {len(sizes)} cameras, got {got}")
            for camera, (array, (width, _)) in enumerate(zip(cameras, sizes)):
                try:
                    mixtures[subject, action, camera] = _mixture(array, width)
                except ValueError as error:
                    raise ValueError(f"{where}, camera {camera}: {error}") from None
    return mixtures


def _mixture(array: object, width: int) -> PoseMixture:
    try:
        array = np.array(array, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"must be numbers, got {type(array).__name__}") from None
    if array.ndim != 4 or array.shape[1] != 17 or array.shape[-1] != 5:
        raise ValueError(f"must have shape (frames, 17, components, 5), got {array.shape}")
    array[..., 3:] *= width / 2
    return PoseMixture.from_array(array, skeleton="h36m_17")

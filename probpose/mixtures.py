"""A pose that is not known exactly: one Gaussian mixture per joint.

    mixture = PoseMixture.from_keypoints(keypoints, confidence, unit=width / 2)     # or from_heatmaps, from_array, fit
    mixture = mixture.transformed(lambda points: normalise_screen(points, (width, height)))
    draws = mixture.sample(20, generator=torch.Generator().manual_seed(0))

DiffPose (Gong et al., CVPR 2023, arXiv:2211.16940, "GMM-based forward diffusion process") starts its reverse process from such a
distribution and diffuses towards it: its noise is centred on the mean of a drawn component and has that component's covariance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probpose.files import replacing
from probpose.geometry import detection_sigma
from probpose.skeletons import get_skeleton

__all__ = ["PoseMixture"]

# The smallest deviation of an axis when the other axes are known, as a fraction of its own: below, float32 cannot tell it from none.
SINGULAR = 1e-6
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the weights' sum
HEATMAP_DRAWS = 2000
FORMAT, VERSION = "probpose.PoseMixture", "1"

Array = Tensor | np.ndarray


@dataclass(frozen=True, eq=False)
class PoseMixture:
    """A Gaussian mixture for each joint; the joints are independent of each other.

    The leading axes `...` are free: none, `(frames,)`, `(batch, frames)`. So is `dim`: 2 for image points, 3 for positions, 5 for both.

    Args:
        weights: `(..., joints, components)`, not negative, one in sum (within 1e-4 in float32, 1e-6 in float64; kept as they are).
        means: `(..., joints, components, dim)`.
        factors: `(..., joints, components, dim, dim)`, any square root of the covariance: `factor @ factor.T`, so that
            `factor @ standard normal` is the component's noise.
        skeleton: name of the joint set.

    Raises:
        ValueError: shapes or types that do not fit each other, values that are not finite, weights that are none, a covariance
            without extent in some direction, a skeleton of another joint count.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor
    skeleton: str | None = None

    def __post_init__(self) -> None:
        tensors = {"weights": self.weights, "means": self.means, "factors": self.factors}
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        if (
            self.weights.ndim < 2
            or self.means.shape[:-1] != self.weights.shape
            or self.factors.shape != (*self.means.shape, self.means.shape[-1])
            or 0 in self.factors.shape[self.weights.ndim - 2 :]
        ):
            raise ValueError(
                "weights, means and factors must have shapes (..., joints, components), (..., joints, components, dim) and "
                f"(..., joints, components, dim, dim) with at least one joint, component and dimension, got {shapes}"
            )
        kinds = {(value.dtype, value.device) for value in tensors.values()}
        if len(kinds) > 1 or self.weights.dtype not in TOLERANCE:
            got = ", ".join(f"{name} {value.dtype} on {value.device}" for name, value in tensors.items())
            raise ValueError(f"weights, means and factors must all be float32 or all float64, on one device, got {got}")
        for axes, (name, value) in enumerate(tensors.items()):
            _refuse(~torch.isfinite(value), f"{name} must be finite", "joint", "component", *["axis"] * axes)
        _refuse(self.weights < 0, "weights must not be negative", "joint", "component")
        off = (self.weights.sum(-1) - 1).abs() > TOLERANCE[self.weights.dtype]
        _refuse(off, f"weights must sum to one within {TOLERANCE[self.weights.dtype]:g}", "joint")
        # Rows in units of their axis, so that pixels beside metres do not count as nearly singular. The diagonal of R is then the part of
        # each axis that the axes before it do not determine.
        scales = self.scales
        _refuse(scales == 0, "the covariance must not be singular: no extent", "joint", "component", "axis")
        remaining = torch.linalg.qr((self.factors / scales[..., None]).mT, mode="r").R.diagonal(dim1=-2, dim2=-1).abs()
        _refuse(remaining <= SINGULAR, "the covariance must not be singular: fixed by the axes before", "joint", "component", "axis")
        if self.skeleton is not None:
            self.check_joints(get_skeleton(self.skeleton).num_joints, f"the skeleton {self.skeleton!r}")

    # -----------------------------------------------------------------------------------------------------------------
    # Where mixtures come from
    # -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_keypoints(
        cls,
        keypoints: Array,
        confidence: Array | None = None,
        scale: float | Array | None = None,
        unit: float = 1.0,
        skeleton: str | None = None,
    ) -> PoseMixture:
        """One round component per joint: the detection and how far it is usually off.

        Without `scale` the standard deviation of each axis is `unit * (0.002 + 0.04 * (1 - confidence))`: root-mean-square errors of a
        detector in screen units (u' = 2u/w - 1, half an image width is 1) as found on rendered training windows.

        Args:
            keypoints: `(..., joints, dim)`, finite.
            confidence: `(..., joints)` in 0..1; not given: 1 everywhere.
            scale: standard deviation in the unit of the keypoints, a number or `(..., joints)`; takes the place of the rule above.
            unit: one screen unit in the unit of the keypoints: 1 for screen units, half the image width for pixels.

        Raises:
            ValueError: keypoints that are not finite, confidence outside 0..1, a scale or unit that is not positive, or shapes that do
                not fit.
        """
        keypoints = _floating(keypoints)
        if keypoints.ndim < 2:
            raise ValueError(f"keypoints must have shape (..., joints, dim), got {tuple(keypoints.shape)}")
        _refuse(~torch.isfinite(keypoints).all(-1), "keypoints must be finite: fill or drop joints that were not observed", "joint")
        shape = keypoints.shape[:-1]
        if not 0 < unit < math.inf:
            raise ValueError(f"unit must be positive and finite, got {unit}")
        if scale is None:
            sure = torch.ones(shape) if confidence is None else torch.as_tensor(confidence)
            if sure.shape != shape:
                raise ValueError(f"confidence must have shape {tuple(shape)} to go with the keypoints, got {tuple(sure.shape)}")
            _refuse(~((sure >= 0) & (sure <= 1)), "confidence must lie in 0..1", "joint")
            scale = unit * detection_sigma(sure.to(keypoints))
        scale = _expanded("scale", scale, shape, keypoints)
        _refuse(~(torch.isfinite(scale) & (scale > 0)), "scale must be positive and finite", "joint")
        identity = torch.eye(keypoints.shape[-1]).to(keypoints)
        return cls(keypoints.new_ones((*shape, 1)), keypoints[..., None, :], scale[..., None, None, None] * identity, skeleton)

    @classmethod
    def from_array(cls, array: Array, image_size: tuple[int, int] | None = None, skeleton: str | None = None) -> PoseMixture:
        """Mixtures in the image as DiffPose's released data store them.

        Args:
            array: `(..., joints, components, 5)`: weight, mean u, mean v, standard deviation of u, of v. A component of weight zero that
                has no extent takes that of its joint's heaviest component; it is never drawn.
            image_size: (width, height). Given: the means are pixels and are brought to screen units (u' = 2u/w - 1, v' = 2v/w - h/w),
                while the standard deviations stay as they are, as in the release. Not given: nothing is changed.

        Raises:
            ValueError: another shape, an image size that is none, negative standard deviations, or no mixtures (see the class).
        """
        array = _floating(array)
        if array.ndim < 3 or array.shape[-1] != 5 or 0 in array.shape[-3:]:
            raise ValueError(f"array must have shape (..., joints, components, 5), got {tuple(array.shape)}")
        _refuse(~torch.isfinite(array), "array must be finite", "joint", "component", "entry")
        weights, means, scales = array[..., 0], array[..., 1:3], array[..., 3:]
        _refuse(scales < 0, "standard deviations must not be negative", "joint", "component", "axis")
        heaviest = torch.take_along_dim(scales, weights.argmax(-1)[..., None, None], dim=-2)
        scales = torch.where(((weights == 0) & (scales == 0).any(-1))[..., None], heaviest, scales)
        if image_size is not None:
            width, height = image_size
            if not (width > 0 and height > 0):
                raise ValueError(f"image_size must be a positive (width, height), got {image_size}")
            means = means * 2 / width - means.new_tensor([1.0, height / width])
        return cls(weights, means, torch.diag_embed(scales), skeleton)

    @classmethod
    def from_heatmaps(
        cls,
        heatmaps: Array,
        box: Sequence[float] | Array,
        num_components: int = 1,
        floor: float = 0.0,
        seed: int = 0,
        skeleton: str | None = None,
        progress: bool = False,
    ) -> PoseMixture:
        """Mixtures of a detector's heatmaps read as densities, constant within each cell.

        Args:
            heatmaps: `(..., joints, height, width)`, not negative; the scale of a map does not matter.
            box: (left, top, right, bottom) in pixels, the part of the image that the maps cover, or `(..., 4)`, one per leading index.
                The centre of cell i is at `(i + 0.5) / width` of it.
            num_components: one takes the mean and covariance of the density; more are fitted to 2000 points drawn from it (see `fit`).
            floor: values below this fraction of a map's largest are ignored; 0..1.
            seed: of the draws and the fit.
            progress: show a bar while several components are fitted.

        Returns:
            Mixtures in pixels.

        Raises:
            ValueError: heatmaps of another shape, with negative or non-finite values or without a positive one; a box without extent.
            ImportError: several components without scikit-learn (`pip install probpose[mixture]`).
        """
        heatmaps = _floating(heatmaps)
        if heatmaps.ndim < 3 or 0 in heatmaps.shape:
            raise ValueError(f"heatmaps must have shape (..., joints, height, width) without empty axes, got {tuple(heatmaps.shape)}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must lie in 0..1, got {floor}")
        _check_count("num_components", num_components)
        *lead, joints, height, width = heatmaps.shape
        if np.shape(box)[-1:] != (4,):
            raise ValueError(f"box must be (left, top, right, bottom) or have shape (..., 4), got shape {np.shape(box)}")
        box = _expanded("box", box, (*lead, 4), heatmaps)
        corner, extent = box[..., None, :2], box[..., None, 2:] - box[..., None, :2]
        _refuse(~(torch.isfinite(extent) & (extent > 0))[..., 0, :].all(-1), "box must have right > left and bottom > top")
        _refuse(~(torch.isfinite(heatmaps) & (heatmaps >= 0)).all(-1).all(-1), "heatmaps must be finite and not negative", "joint")
        largest = heatmaps.amax((-2, -1), keepdim=True)
        _refuse(largest[..., 0, 0] == 0, "heatmaps must have a positive value", "joint")
        density = heatmaps / largest
        density = torch.where(density >= floor, density, 0)

        if num_components == 1:
            density = density / density.sum((-2, -1), keepdim=True)
            x, y = (torch.arange(n).to(density) + 0.5 for n in (width, height))
            along_x, along_y = density.sum(-2), density.sum(-1)
            mean = torch.stack([along_x @ x, along_y @ y], dim=-1)
            dx, dy = x - mean[..., :1], y - mean[..., 1:]
            xx, yy = ((p * d**2).sum(-1) + 1 / 12 for p, d in ((along_x, dx), (along_y, dy)))  # 1/12: variance within a cell
            xy = torch.einsum("...hw,...w,...h->...", density, dx, dy)
            cells = cls._single(mean, torch.stack([xx, xy, xy, yy], dim=-1).unflatten(-1, (2, 2)), skeleton)
        else:
            maps = density.detach().double().cpu().reshape(-1, height, width).numpy()
            fitted = _fit_each((_points(cell, seed) for cell in maps), len(maps), num_components, seed, progress=progress)
            cells = cls(*_shaped(fitted, (*lead, joints), heatmaps), skeleton)
        cell = extent / extent.new_tensor([width, height])
        return replace(
            cells, means=corner[..., None, :] + cells.means * cell[..., None, :], factors=cells.factors * cell[..., None, :, None]
        )

    @classmethod
    def fit(
        cls,
        samples: Array,
        num_components: int = 5,
        seed: int = 0,
        max_iter: int = 50,
        tol: float = 1e-4,
        regularisation: float = 1e-6,
        skeleton: str | None = None,
        progress: bool = False,
    ) -> PoseMixture:
        """Maximum-likelihood mixtures of sampled poses, by expectation maximisation, each joint by itself (DiffPose).

        Runs on the CPU, tens of milliseconds for each joint of each frame; one component is a closed form and instant.

        Args:
            samples: `(num_samples, ..., joints, dim)`, more samples than components.
            num_components: Gaussians per joint.
            seed: of the start (k-means++), the same for every joint, so that a joint's result does not depend on the others.
            max_iter: iterations at most; stopping there is no error.
            tol: the fit ends when the mean log-likelihood of a sample grows by less.
            regularisation: variance added to each axis, in squared units of the samples: 1e-6 is 1 mm² for metres.
            progress: show a bar.

        Raises:
            ValueError: samples of another shape, too few, or not finite; settings out of range.
            ImportError: several components without scikit-learn (`pip install probpose[mixture]`).
        """
        samples = _floating(samples)
        if samples.ndim < 3 or 0 in samples.shape:
            raise ValueError(f"samples must have shape (num_samples, ..., joints, dim) without empty axes, got {tuple(samples.shape)}")
        _check_count("num_components", num_components)
        _check_count("max_iter", max_iter)
        if not (tol >= 0 and 0 < regularisation < math.inf):
            raise ValueError(f"tol must not be negative and regularisation must be positive, got {tol} and {regularisation}")
        if len(samples) <= num_components:
            raise ValueError(f"{num_components} components need at least {num_components + 1} samples, got {len(samples)}")
        _refuse(~torch.isfinite(samples).all(-1).all(0), "samples must be finite", "joint")

        double = samples.detach().cpu().double()  # some devices have no float64
        if num_components == 1:
            mean = double.mean(0)
            off = double - mean
            covariance = torch.einsum("n...i,n...j->...ij", off, off) / len(off) + regularisation * torch.eye(off.shape[-1]).double()
            return cls._single(mean, covariance, skeleton).to(samples)
        clouds = double.flatten(1, -2).transpose(0, 1).numpy()
        fitted = _fit_each(clouds, len(clouds), num_components, seed, max_iter, tol, regularisation, progress)
        return cls(*_shaped(fitted, samples.shape[1:-1], samples), skeleton)

    @classmethod
    def _single(cls, mean: Tensor, covariance: Tensor, skeleton: str | None) -> PoseMixture:
        return cls(mean.new_ones((*mean.shape[:-1], 1)), mean[..., None, :], torch.linalg.cholesky(covariance)[..., None, :, :], skeleton)

    # -----------------------------------------------------------------------------------------------------------------
    # What they are
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        """The leading axes, those before the joints."""
        return self.weights.shape[:-2]

    @property
    def num_joints(self) -> int:
        return self.weights.shape[-2]

    @property
    def num_components(self) -> int:
        return self.weights.shape[-1]

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    @property
    def covariances(self) -> Tensor:
        """Of each component `(..., joints, components, dim, dim)`."""
        return self.factors @ self.factors.mT

    @property
    def scales(self) -> Tensor:
        """Standard deviation of each component along each axis `(..., joints, components, dim)`."""
        return torch.linalg.vector_norm(self.factors, dim=-1)

    def mean(self) -> Tensor:
        """Of the whole mixture `(..., joints, dim)`."""
        return torch.einsum("...m,...mi->...i", self.weights, self.means)

    def covariance(self) -> Tensor:
        """Of the whole mixture `(..., joints, dim, dim)`: the mean covariance of the components and the covariance of their means."""
        off = self.means - self.mean()[..., None, :]
        return torch.einsum("...m,...mij->...ij", self.weights, self.covariances + off[..., :, None] * off[..., None, :])

    def log_prob(self, points: Tensor) -> Tensor:
        """Logarithm of the density of each joint at `points`.

        Args:
            points: `(..., joints, dim)`, or with further axes in front, such as `(draws, ..., joints, dim)`.

        Returns:
            `(..., joints)`, with the further axes in front.

        Raises:
            ValueError: another shape.
        """
        own = (*self.shape, self.num_joints, self.dim)
        try:
            fits = points.shape[-2:] == own[-2:] and torch.broadcast_shapes(points.shape, own) is not None
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"points must have shape {own}, further axes may stand in front, got {tuple(points.shape)}")
        off = points.to(self.means)[..., None, :] - self.means
        normal = torch.einsum("...ij,...j->...i", torch.linalg.inv(self.factors), off)  # one inverse serves all draws
        log_volume = torch.linalg.slogdet(self.factors).logabsdet + 0.5 * self.dim * math.log(2 * math.pi)
        return torch.logsumexp(self.weights.log() - log_volume - 0.5 * normal.square().sum(-1), dim=-1)

    def to_array(self) -> Tensor:
        """The inverse of `from_array` without an image size: `(..., joints, components, 5)`.

        Raises:
            ValueError: `dim` is not 2, or a component whose axes are correlated.
        """
        if self.dim != 2:
            raise ValueError(f"the array's layout holds mixtures of dim 2, got dim {self.dim}")
        correlation = self.covariances[..., 0, 1] / self.scales.prod(-1)
        _refuse(correlation.abs() > SINGULAR, "the array's layout holds diagonal covariances only", "joint", "component")
        return torch.cat([self.weights[..., None], self.means, self.scales], dim=-1)

    def check_joints(self, num_joints: int, what: str = "the model") -> None:
        """ValueError if the mixture is of another joint count than `what`."""
        if self.num_joints != num_joints:
            raise ValueError(f"mixture holds {self.num_joints} joints, {what} has {num_joints}")

    # -----------------------------------------------------------------------------------------------------------------
    # Draws
    # -----------------------------------------------------------------------------------------------------------------

    def sample_components(self, num_draws: int, generator: torch.Generator | None = None, per_pose: bool = False) -> Tensor:
        """Draws components by their weights.

        Args:
            num_draws: how many.
            generator: its device need not be the mixture's; the same generator on the CPU gives the same draws on every device.
            per_pose: False: each joint draws for itself, as in DiffPose's release; True: one draw for all joints of a frame.

        Returns:
            Indices `(num_draws, ..., joints)`, int64.

        Raises:
            ValueError: fewer than one draw; `per_pose` where the joints' weights differ.
        """
        _check_count("num_draws", num_draws)
        weights = self.weights
        if per_pose:
            uneven = (self.weights - self.weights[..., :1, :]).abs().amax(-1) > TOLERANCE[self.weights.dtype]
            _refuse(uneven, "per_pose needs the same weights at all joints of a frame", "joint")
            weights = weights[..., :1, :]
        device = weights.device if generator is None else generator.device
        drawn = torch.rand((num_draws, *weights.shape[:-1]), generator=generator, dtype=weights.dtype, device=device)
        return _inverse(weights, drawn.to(weights.device)).expand(num_draws, *self.weights.shape[:-1])

    def components_at(self, uniform: Tensor) -> Tensor:
        """The components that uniform numbers choose: indices `(draws, ..., joints)` of numbers in 0..1 that broadcast to that shape."""
        return _inverse(self.weights, uniform.expand(len(uniform), *self.weights.shape[:-1]))

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Means `(draws, ..., joints, dim)` and factors `(draws, ..., joints, dim, dim)` of drawn components `(draws, ..., joints)`.

        Raises:
            ValueError: another shape, or an index that is not a component.
        """
        own = tuple(self.weights.shape[:-1])
        if index.dtype.is_floating_point or tuple(index.shape[1:]) != own or index.ndim == 0:
            expected = ", ".join(map(str, ["draws", *own]))
            raise ValueError(f"index must hold integers of shape ({expected}), got {index.dtype} of shape {tuple(index.shape)}")
        if ((index < 0) | (index >= self.num_components)).any():
            raise ValueError(f"index must lie in 0..{self.num_components - 1}, got {int(index.min())}..{int(index.max())}")
        index = index.to(self.weights.device, torch.int64)[..., None, None]
        means = torch.take_along_dim(self.means[None], index, dim=-2)
        factors = torch.take_along_dim(self.factors[None], index[..., None], dim=-3)
        return means.squeeze(-2), factors.squeeze(-3)

    def sample(self, num_draws: int, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Draws poses `(num_draws, ..., joints, dim)`: a component for each joint, then a point of it.

        Args:
            num_draws: how many.
            generator: draws the components, then the noise.
            noise: standard normal noise of the result's shape to use instead of drawing it.

        Raises:
            ValueError: fewer than one draw, or noise of another shape.
        """
        means, factors = self.gather(self.sample_components(num_draws, generator))
        if noise is None:
            device = means.device if generator is None else generator.device
            noise = torch.randn(means.shape, generator=generator, dtype=means.dtype, device=device)
        elif noise.shape != means.shape:
            raise ValueError(f"noise must have shape {tuple(means.shape)}, got {tuple(noise.shape)}")
        return means + torch.einsum("...ij,...j->...i", factors, noise.to(means))

    # -----------------------------------------------------------------------------------------------------------------
    # Changes
    # -----------------------------------------------------------------------------------------------------------------

    def transformed(self, function: Callable[[Tensor], Tensor]) -> PoseMixture:
        """The mixture as seen through a function of points, to first order: exact if the function is affine.

        The function's derivative is taken along the columns of the factors by forward differentiation, which is exact to rounding;
        differences of pixels in float32 would be off by a thousandth. It is called for one component and axis at a time, with points
        of a pose's own shape, so that cameras fit in as they do for poses.

        Args:
            function: takes points `(..., joints, dim)`, each for itself, to points of the same shape; made of differentiable torch
                operations.

        Raises:
            ValueError: the function changes the shape, gives values that are not finite, or flattens a component.
        """
        means, factors = [], []
        for mean, factor in zip(self.means.unbind(-2), self.factors.unbind(-3)):
            images = [torch.func.jvp(function, (mean,), (column,)) for column in factor.unbind(-1)]
            if images[0][0].shape != mean.shape:
                raise ValueError(f"function must keep the shape of the points, {tuple(mean.shape)}, got {tuple(images[0][0].shape)}")
            means.append(images[0][0])
            factors.append(torch.stack([column for _, column in images], dim=-1))
        return replace(self, means=torch.stack(means, dim=-2), factors=torch.stack(factors, dim=-3))

    def __getitem__(self, index: Any) -> PoseMixture:
        """The part at an index of the leading axes: `mixture[3:10]`; joints are chosen by `select`."""
        # Positions first: an index of the tensors themselves could reach the joints.
        positions = torch.arange(self.shape.numel(), device=self.weights.device).reshape(self.shape)[index]
        weights, means, factors = (
            value.reshape(-1, *value.shape[len(self.shape) :])[positions] for value in (self.weights, self.means, self.factors)
        )
        return replace(self, weights=weights, means=means, factors=factors)

    def select(self, joints: int | Sequence[int]) -> PoseMixture:
        """The mixtures of some joints, in the given order, without a skeleton.

        Raises:
            ValueError: an index that is not a joint.
        """
        joints = [joints] if isinstance(joints, int) else [int(joint) for joint in joints]
        if not joints or any(joint not in range(self.num_joints) for joint in joints):
            raise ValueError(f"joints must be indices in 0..{self.num_joints - 1}, got {joints}")
        return PoseMixture(self.weights[..., joints, :], self.means[..., joints, :, :], self.factors[..., joints, :, :, :])

    def to(self, *args: Any, **kwargs: Any) -> PoseMixture:
        """Move or cast every tensor, like `Tensor.to`."""
        weights, means, factors = (value.to(*args, **kwargs) for value in (self.weights, self.means, self.factors))
        if weights.dtype != self.weights.dtype:
            weights = weights / weights.sum(-1, keepdim=True)  # what float32 sums to one need not in float64
        return replace(self, weights=weights, means=means, factors=factors)

    # -----------------------------------------------------------------------------------------------------------------
    # Files
    # -----------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes a `.safetensors` file, whole or not at all.

        Raises:
            FileExistsError: `path` exists and `overwrite` is false.
            FileNotFoundError: the folder around it does not exist.
        """
        metadata = {"format": FORMAT, "version": VERSION} | ({} if self.skeleton is None else {"skeleton": self.skeleton})
        tensors = {"weights": self.weights, "means": self.means, "factors": self.factors}
        # Copies, for tensors that share memory are not written.
        tensors = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
        with replacing(path, overwrite) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> PoseMixture:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a damaged file, another kind or version of file, or no mixtures in it (see the class).
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no mixture file at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no mixture file or is damaged: {error}") from None
        if metadata.get("format") != FORMAT or set(tensors) != {"weights", "means", "factors"}:
            raise ValueError(f"{path} is no mixture file: it must be written by PoseMixture.save, it holds {sorted(tensors)}")
        if metadata.get("version") != VERSION:
            raise ValueError(f"{path}: version of the file must be {VERSION}, got {metadata.get('version')}")
        try:
            return cls(**tensors, skeleton=metadata.get("skeleton"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Expectation maximisation
# ---------------------------------------------------------------------------------------------------------------------


def _fit_each(
    clouds: Iterable[np.ndarray],
    total: int,
    num_components: int,
    seed: int,
    max_iter: int = 50,
    tol: float = 1e-4,
    regularisation: float = 1e-6,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and factors of mixtures of point clouds `(points, dim)`, stacked."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise ImportError("fitting mixtures of several components needs scikit-learn: pip install probpose[mixture]") from None
    from tqdm import tqdm

    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the fit stops after max_iter on purpose
        for cloud in tqdm(clouds, "fitting mixtures", total, disable=not progress):
            model = GaussianMixture(
                num_components, tol=tol, reg_covar=regularisation, max_iter=max_iter, init_params="k-means++", random_state=seed
            ).fit(cloud)
            fits.append((model.weights_, model.means_, np.linalg.cholesky(model.covariances_)))
    return tuple(np.stack(values) for values in zip(*fits))


def _shaped(fitted: tuple[np.ndarray, ...], lead: Sequence[int], like: Tensor) -> Iterable[Tensor]:
    return (torch.from_numpy(values).reshape(*lead, *values.shape[1:]).to(like) for values in fitted)


def _points(density: np.ndarray, seed: int) -> np.ndarray:
    """Points `(draws, 2)` of a density `(height, width)`, x before y, in cells: evenly spread over the cells, anywhere within one."""
    bounds = density.cumsum()
    index = np.searchsorted(bounds, (np.arange(HEATMAP_DRAWS) + 0.5) / HEATMAP_DRAWS * bounds[-1], side="right")
    y, x = np.unravel_index(index, density.shape)
    return np.stack([x, y], axis=-1) + np.random.default_rng(seed).random((HEATMAP_DRAWS, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------------------


def _floating(value: Array) -> Tensor:
    value = torch.as_tensor(value)
    return value if value.dtype in TOLERANCE else value.float()


def _expanded(name: str, value: Any, shape: Sequence[int], like: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    try:
        return value.expand(shape)
    except RuntimeError:
        raise ValueError(f"{name} must fit the shape {tuple(shape)}, got {tuple(value.shape)}") from None


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _refuse(bad: Tensor, message: str, *axes: str) -> None:
    """ValueError that names the first bad entry; `axes` are the names of the last axes, those before them are frames."""
    if bad.any():
        place = bad.nonzero()[0].tolist()
        lead = place[: len(place) - len(axes)]
        words = [f"frame {lead[0] if len(lead) == 1 else tuple(lead)}"] if lead else []
        words += [f"{axis} {number}" for axis, number in zip(axes, place[len(lead) :])]
        raise ValueError(f"{message} ({', '.join(words)})" if words else message)


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Inverse of the cumulative weights `(..., components)` at `uniform (draws, ...)`."""
    bounds = weights.cumsum(-1)
    total = bounds[..., -1:]
    index = torch.searchsorted(bounds, (uniform.movedim(0, -1) * total).contiguous(), right=True)
    # Rounding must not lead past the last component that has any weight.
    return torch.minimum(index, (bounds < total).sum(-1, keepdim=True)).movedim(-1, 0)

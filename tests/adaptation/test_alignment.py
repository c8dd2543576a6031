"""Global position alignment: published numbers, and what must hold wherever a person is placed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probpose.adaptation.alignment import global_position_alignment, plausible_depth
from probpose.geometry import Camera

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"
needs_parity = pytest.mark.skipif(not PARITY.exists(), reason="the full set of reference numbers is not here")
PIXELS = Camera(torch.tensor([1500.0, 1480.0], dtype=torch.float64), torch.tensor([1017.0, 1043.0], dtype=torch.float64))


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(*shape, seed=0, depth=5.0, camera=PIXELS):
    """Absolute poses `(*shape, 17, 3)` and what the camera sees of them."""
    pose = draw(*shape, 17, 3, seed=seed, scale=0.4) + torch.tensor([0.3, -0.2, depth], dtype=torch.float64)
    pose = pose + draw(*shape, 1, 3, seed=seed + 100, scale=0.2)
    return pose, camera.project(pose)


def side(points):
    return (points.amax(-2) - points.amin(-2)).mean(-1)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# Published numbers


def test_by_hand():
    source = torch.tensor([[[0, 0, 0], [0.4, -0.8, 0], [-0.4, 0.8, 0.1]]], dtype=torch.float64)
    target = torch.tensor([[[0.10, -0.05], [0.30, -0.45], [-0.10, 0.35]]], dtype=torch.float64)
    camera = Camera(torch.tensor([1.5, 1.5], dtype=torch.float64), torch.tensor([0.02, -0.01], dtype=torch.float64))
    out = global_position_alignment(source, target, camera)
    close(out[0, 0], torch.tensor([0.16, -0.08, 3.0], dtype=torch.float64))
    close(camera.project(out)[0, 2], torch.tensor([-0.0961290, 0.3383871], dtype=torch.float64), atol=1e-7)


@needs_parity
def test_poseda_parity():
    values = load_file(PARITY / "poseda" / "io.safetensors")
    one = Camera(values["ex1.focal"], values["ex1.center"])
    close(global_position_alignment(values["ex1.source3d"], values["ex1.target2d"], one), values["ex1.out3d"])

    source, target, index = values["ex2.source3d"], values["ex2.target2d"], values["ex2.perm"]
    cameras = Camera(values["ex2.focal"], values["ex2.center"])
    partners = Camera(cameras.focal[index], cameras.centre[index])
    out = global_position_alignment(source, target, cameras, index)
    close(out, values["ex2.out3d"])
    close(partners.project(out), values["ex2.out2d"])
    close(global_position_alignment(source, target, cameras, index, legacy=True), values["ex2.out3d_legacy"])

    before = side(partners.project(out)) / values["ex2.box_target"] - 1
    after = side(partners.project(global_position_alignment(source, target, cameras, index, True))) / values["ex2.box_target"] - 1
    assert before.abs().max() == pytest.approx(0.045, abs=5e-4) and after.abs().max() < 0.0021


@needs_parity
@pytest.mark.parametrize("case", ["gpa.a", "gpa.c"])
def test_posynda_parity(case):
    values = load_file(PARITY / "posynda" / "io.safetensors")
    camera = Camera.from_vector(values[f"{case}.camera"])
    out = global_position_alignment(values[f"{case}.source3d"], values[f"{case}.target2d"], camera, values[f"{case}.index"])
    close(out, values[f"{case}.out3d"], atol=1e-5)
    close(camera.project(out), values[f"{case}.out2d_full"], atol=1e-2)


# Single poses


def test_agrees_with_a_plain_loop():
    source, _ = people(4)
    _, target = people(6, seed=1)
    focal, centre = draw(6, 2, seed=2).abs() * 100 + 1000, draw(6, 2, seed=3) * 10 + 500
    index = torch.tensor([5, 0, 2, 2])
    out = global_position_alignment(source, target, Camera(focal, centre), index, root_index=3)
    for i, partner in enumerate(index.tolist()):
        pose, x, f, c = (value.numpy() for value in (source[i], target[partner], focal[partner], centre[partner]))
        z = (f * np.ptp(pose[:, :2], axis=0)).sum() / np.ptp(x, axis=0).sum()
        expected = pose - pose[3] + z * np.append((x[3] - c) / f, 1)
        np.testing.assert_allclose(out[i].numpy(), expected, atol=1e-9)


def test_projected_root_is_the_targets():
    source, _ = people(5)
    _, target = people(5, seed=1, depth=4.0)
    for refine in (False, True):
        out = global_position_alignment(source, target, PIXELS, refine=refine)
        close(PIXELS.project(out)[:, 0], target[:, 0], atol=1e-8)


def test_the_sources_place_does_not_matter():
    source, _ = people(5)
    _, target = people(5, seed=1)
    moved = source + draw(5, 1, 3, seed=2)
    close(global_position_alignment(source, target, PIXELS), global_position_alignment(moved, target, PIXELS))


@pytest.mark.parametrize("refine", [False, True])
def test_units_of_the_image_do_not_matter(refine):
    source, _ = people(5)
    _, target = people(5, seed=1)
    screen = Camera(PIXELS.focal * 0.001, PIXELS.centre * 0.001 - 1)
    close(
        global_position_alignment(source, target, PIXELS, refine=refine),
        global_position_alignment(source, target * 0.001 - 1, screen, refine=refine),
    )


def test_depth_scales_with_the_focal_length():
    source, _ = people(5)
    _, target = people(5, seed=1)
    far = global_position_alignment(source, target, Camera(2 * PIXELS.focal, PIXELS.centre))
    close(far[:, 0, 2], 2 * global_position_alignment(source, target, PIXELS)[:, 0, 2])
    close(Camera(2 * PIXELS.focal, PIXELS.centre).project(far)[:, 0], target[:, 0], atol=1e-8)


def test_refinement_shrinks_the_boxes_error():
    source, _ = people(20)
    _, target = people(20, seed=1)
    errors = [
        (side(PIXELS.project(global_position_alignment(source, target, PIXELS, refine=refine))) / side(target) - 1).abs()
        for refine in (False, True)
    ]
    assert errors[1].mean() < errors[0].mean() / 3


def test_gradients():
    source, _ = people(3)
    _, target = people(3, seed=1)
    target[1, 5] = torch.nan
    source.requires_grad_()
    assert torch.autograd.gradcheck(lambda pose: global_position_alignment(pose, target, PIXELS, refine=True), source)


def test_a_box_without_size_stays_finite():
    source = torch.zeros(1, 17, 3, requires_grad=True)
    out = global_position_alignment(source, torch.zeros(1, 17, 2), PIXELS, refine=True)
    out.sum().backward()
    assert out.isfinite().all() and source.grad.isfinite().all()


def test_hidden_joints_do_not_count():
    """A partner of whom only the upper body is seen stands where the whole partner stands."""
    source, target = people(2)
    hidden = target.clone()
    hidden[:, 1:7] = torch.nan
    lacking = source[:, [0, *range(7, 17)]], target[:, [0, *range(7, 17)]]
    expected = global_position_alignment(*lacking, PIXELS)
    close(global_position_alignment(source, hidden, PIXELS)[:, 0], expected[:, 0])


def test_plausible_depth():
    pose = torch.zeros(4, 17, 3)
    pose[:, 0, 2] = torch.tensor([0.4, 0.6, 19.0, 21.0])
    assert plausible_depth(pose).tolist() == [False, True, True, False]
    assert plausible_depth(pose[None], limits=(0.0, 0.5)).tolist() == [[True, False, False, False]]


# Clips


def test_a_still_clip_is_a_pose():
    source, _ = people(3)
    _, target = people(3, seed=1)
    clip = global_position_alignment(source[:, None].expand(-1, 4, -1, -1), target[:, None].expand(-1, 4, -1, -1), PIXELS, refine=True)
    close(clip, global_position_alignment(source, target, PIXELS, refine=True)[:, None].expand(-1, 4, -1, -1))


def test_frames_for_themselves_are_poses():
    source, _ = people(3, 4)
    _, target = people(2, 4, seed=1)
    index = torch.tensor([1, 0, 1])
    clip = global_position_alignment(source, target, PIXELS, index, per_frame=True, refine=True)
    poses = global_position_alignment(source.flatten(0, 1), target[index].flatten(0, 1), PIXELS, refine=True)
    close(clip.flatten(0, 1), poses)


def test_a_clip_follows_the_rays_at_one_depth():
    source, _ = people(3, 6)
    _, target = people(3, 6, seed=1)
    out = global_position_alignment(source, target, PIXELS)
    close(PIXELS.project(out)[:, :, 0], target[:, :, 0], atol=1e-8)
    extents = (PIXELS.focal * (source.amax(2) - source.amin(2))[..., :2]).sum(-1)
    depth = np.median(extents.numpy(), axis=1) / (2 * np.median(side(target).numpy(), axis=1))
    np.testing.assert_allclose(out[:, :, 0, 2].numpy(), np.repeat(depth[:, None], 6, axis=1), atol=1e-9)
    close(out - out[:, :, :1], source - source[:, :, :1])
    refined = global_position_alignment(source, target, PIXELS, refine=True)
    ratio = [np.median(side(PIXELS.project(pose)), axis=1) / np.median(side(target), axis=1) - 1 for pose in (out, refined)]
    assert np.abs(ratio[1]).max() < np.abs(ratio[0]).max()


@pytest.mark.parametrize("refine", [False, True])
def test_a_clip_may_keep_its_own_motion(refine):
    source, _ = people(3, 6)
    _, target = people(3, 6, seed=1)
    out = global_position_alignment(source, target, PIXELS, trajectory="source", refine=refine)
    shift = out - source
    close(shift, shift[:, :1, :1].expand_as(shift))
    mean_root, rays = out[:, :, 0].mean(1), PIXELS.unproject(target[:, :, 0]).mean(1)
    close(mean_root[:, :2] / mean_root[:, 2:], rays)
    if not refine:
        close(mean_root[:, 2], global_position_alignment(source, target, PIXELS)[:, 0, 0, 2])


def test_frames_without_a_root_lie_between_their_neighbours():
    source, _ = people(1, 6)
    _, target = people(1, 6, seed=1)
    target[0, [0, 2, 3], 0] = torch.nan
    target[0, 3] = torch.nan
    out = global_position_alignment(source, target, PIXELS)
    rays = out[0, :, 0] / out[0, :, 0, 2:]
    close(rays[0], rays[1])
    close(rays[2], rays[1] * 2 / 3 + rays[4] / 3)
    close(rays[3], rays[1] / 3 + rays[4] * 2 / 3)
    alone = global_position_alignment(source, target, PIXELS, per_frame=True)[0, :, 0, 2]
    close(alone[3], (alone[2] + alone[4]) / 2)


def test_gradients_of_clips():
    source, _ = people(2, 3)
    _, target = people(2, 3, seed=1)
    target[0, 1] = torch.nan
    source.requires_grad_()
    for options in ({}, {"trajectory": "source"}, {"per_frame": True}):
        assert torch.autograd.gradcheck(
            lambda pose, options=options: global_position_alignment(pose, target, PIXELS, refine=True, **options).sum((-3, -2)), source
        )


# Bad input


def test_errors():
    source, target = people(3)
    clips, seen = people(2, 4)
    nowhere, rootless = target.clone(), target.clone()
    nowhere[1], rootless[2, 0] = torch.nan, torch.nan
    two = Camera(torch.ones(2, 2), torch.zeros(2, 2))
    broken = source.clone()
    broken[2, 3, 0] = torch.nan
    cases = [
        (r"none empty, got \(0, 17, 3\)", (source[:0], target[:0], PIXELS), {}),
        ("row by row, got 2 and 3", (source[:2], target, PIXELS), {}),
        ("index must name partners in 0..2, got 0..3", (source, target, PIXELS, torch.tensor([0, 1, 3])), {}),
        ("one integer for each of 3", (source, target, PIXELS, torch.tensor([0, 1])), {}),
        ("one integer for each of 3", (source, target, PIXELS, torch.tensor([True, False, True])), {}),
        (r"partners \[1\] never show", (source, nowhere, PIXELS), {}),
        (r"partners \[2\] never show their root \(joint 0\)", (source, rootless, PIXELS), {}),
        (r"target_keypoints_2d must have shape .*got \(2, 3, 17, 2\)", (clips, seen[:, :3], PIXELS), {}),
        ("camera must be one or one for each of 3", (source, target, two), {}),
        (r"source_pose must be finite, rows \[2\]", (broken, target, PIXELS), {}),
        ("root_index must be a joint in 0..16", (source, target, PIXELS), {"root_index": 17}),
        ("trajectory must be one of", (source, target, PIXELS), {"trajectory": "none"}),
        ("needs absolute poses", (clips - clips[:, :, :1], seen, PIXELS), {"trajectory": "source"}),
        ("per_frame=True", (clips, seen, PIXELS), {"trajectory": "source", "per_frame": True}),
        ("legacy=True", (source, target, PIXELS), {"legacy": True, "refine": True}),
    ]
    for message, inputs, options in cases:
        with pytest.raises(ValueError, match=message):
            global_position_alignment(*inputs, **options)
    # A partner of whom nothing is seen does not matter as long as nobody is paired with it.
    assert global_position_alignment(source[:2], nowhere, PIXELS, torch.tensor([0, 2])).isfinite().all()

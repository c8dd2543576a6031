import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from probpose.geometry import denormalise_screen, h36m_camera, reprojection_error, select_by_reprojection
from probpose.metrics import (
    HP3D_GROUPS,
    acceleration_error,
    auc,
    bone_length_deviation,
    bone_length_error,
    hp3d_scores,
    hypothesis_table,
    j_best,
    joint_groups,
    min_mpjpe,
    min_pa_mpjpe,
    mpjpe,
    mpjve,
    n_mpjpe,
    p_best,
    pa_mpjpe,
    pck,
    score_hypotheses,
    symmetry_error,
)
from probpose.skeletons import get_skeleton

FILES = {
    "golden": Path(__file__).resolve().parent / "golden" / "metrics_d3dp.safetensors",
    "shared": Path(__file__).resolve().parents[1].parent / "shared" / "parity" / "d3dp" / "io.safetensors",
}
PLATYPOSE = Path(__file__).resolve().parents[1].parent / "shared" / "parity" / "platypose" / "io.safetensors"
BENCHMARK = Path(__file__).resolve().parents[1] / "examples" / "benchmark_scoring.py"
H36M = get_skeleton("h36m_17")
HP3D_OF_H36M = [14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4]  # the published permutation
PAIR_METRICS = (mpjpe, pa_mpjpe, n_mpjpe, mpjve, acceleration_error, pck, auc)


def load(name):
    if not FILES[name].exists():
        pytest.skip(f"{FILES[name]} is not here")
    return load_file(FILES[name])


@pytest.fixture(scope="module", params=FILES)
def published(request):
    """Values of the original implementation: an excerpt in the repository, and the full set where it lies beside it."""
    return load(request.param)


@pytest.fixture(scope="module")
def all_published():
    """The full set: what the excerpt is too small for."""
    return load("shared")


@pytest.fixture
def scene():
    """Hypotheses around a person, the person, its keypoints and root trajectory, and the camera in screen units."""
    generator = torch.Generator().manual_seed(3)
    target = 0.4 * torch.randn(2, 6, 17, 3, generator=generator)
    target[..., 0, :] = 0
    hypotheses = target[:, None] + 0.05 * torch.randn(2, 4, 6, 17, 3, generator=generator)
    root = torch.tensor([0.2, -0.1, 4.5]) + 0.1 * torch.randn(2, 6, 3, generator=generator)
    camera = h36m_camera(1).normalised()
    keypoints = camera.project(target + root[:, :, None]) + 0.002 * torch.randn(2, 6, 17, 2, generator=generator)
    return dict(hypotheses=hypotheses, target=target, keypoints_2d=keypoints, camera=camera, root=root)


@pytest.fixture
def pair(scene):
    return scene["hypotheses"][:, 0], scene["target"]


# Agreement with published values --------------------------------------------------------------------------------------


def test_pose_errors_agree_with_the_original(published):
    pred, target = published["agg/hypotheses"][:, -1, 0], published["inputs/pose_3d_gt"]
    for metric, name in ((mpjpe, "mpjpe"), (pa_mpjpe, "p_mpjpe"), (n_mpjpe, "n_mpjpe"), (mpjve, "mpjve")):
        assert metric(pred, target) == pytest.approx(published[f"metrics/{name}"].item(), abs=1e-3)


def inputs(published):
    return {
        "hypotheses": published["agg/hypotheses"],
        "target": published["inputs/pose_3d_gt"],
        "keypoints_2d": published["inputs/keypoints_2d"],
        "camera": published["inputs/camera"],
        "root": published["inputs/root_trajectory"],
    }


def test_hypothesis_table_agrees_with_the_original(published):
    table = hypothesis_table(**inputs(published))
    for name, values in table.items():
        assert values == pytest.approx(published[f"agg/p1_{name}"].tolist(), abs=1e-3), name
    window = hypothesis_table(**inputs(published), p_best_scope="window")
    assert window["p_best"] == pytest.approx(published["agg/p1_p_best_bs1"].tolist(), abs=1e-3)


def test_choices_agree_with_the_original(published):
    hypotheses, target, *projection = inputs(published).values()
    index = select_by_reprojection(reprojection_error(hypotheses, *projection), dim=2)
    assert torch.equal(index[..., 1:], published["agg/jpma_index"].long()[..., 1:])
    _, index = p_best(hypotheses, target)
    assert torch.equal(index[0, :, 0], published["agg/p_best_index"].long())


def test_composite_poses_agree_with_the_original(all_published):
    hypotheses, target, *projection = inputs(all_published).values()
    errors = reprojection_error(hypotheses, *projection)
    assert torch.allclose(errors, all_published["agg/reprojection_error"], atol=1e-5)
    index = select_by_reprojection(errors, dim=2)
    chosen = torch.take_along_dim(hypotheses, index[:, :, None, ..., None], 2)[:, :, 0]
    assert torch.equal(chosen, all_published["agg/jpma_pose"])
    assert torch.equal(j_best(hypotheses, target)[0], all_published["agg/j_best_pose"])


@pytest.mark.parametrize(("sequences", "size"), [("ts1_4", (2048, 2048)), ("ts5_6", (1920, 1080))])
def test_hp3d_choices_agree_with_the_original(all_published, sequences, size):
    pixels = denormalise_screen(all_published[f"hp3d/{sequences}/keypoints_2d"], size)
    hypotheses, root = all_published["hp3d/hypotheses"], all_published["hp3d/root_trajectory"]
    errors = reprojection_error(hypotheses, pixels, all_published[f"hp3d/camera_{sequences}"], root)
    index = select_by_reprojection(errors, dim=2)
    others = [joint for joint in range(17) if joint != 14]
    assert torch.equal(index[..., others], all_published[f"hp3d/{sequences}/jpma_index"][..., others])


def test_hp3d_errors_over_valid_frames_agree_with_the_original(all_published):
    hypotheses, target = all_published["hp3d/hypotheses"] / 1000, all_published["hp3d/gt"] / 1000
    valid = all_published["hp3d/valid_frame"][..., 0]
    best, _ = p_best(hypotheses, target, mask=valid)
    for name, poses in (("p_best", best), ("p_agg", hypotheses.mean(2))):
        errors = [mpjpe(pose, target, valid) for pose in poses.unbind(1)]
        assert errors == pytest.approx(all_published[f"hp3d/{name}"].tolist(), abs=1e-2)


def test_hp3d_scores_agree_with_the_benchmark(published):
    errors = published["hp3d/errors"].double() / 1000
    pred = torch.stack([errors, torch.zeros_like(errors), torch.zeros_like(errors)], dim=-1)
    scores = hp3d_scores(pred, torch.zeros_like(pred))
    for name in ("pck", "auc"):
        groups = [scores[name][group] for group in HP3D_GROUPS]
        assert groups == pytest.approx(published[f"hp3d/{name}_groups"].tolist(), abs=1e-9)
        assert scores[name]["total"] == pytest.approx(published[f"hp3d/{name}_total"].item(), abs=1e-9)
    assert scores["mpjpe"] == pytest.approx(published["hp3d/mpjpe_total"].item(), abs=1e-3)


def test_minimum_errors_agree_with_the_original():
    if not PLATYPOSE.exists():
        pytest.skip(f"{PLATYPOSE} is not here")
    values = {name.removeprefix("metric."): value for name, value in load_file(PLATYPOSE).items() if name.startswith("metric.")}
    hypotheses, target = values["hypotheses"], values["gt"][0]
    assert min_mpjpe(hypotheses, target) == pytest.approx(values["min_mpjpe_sequence"].item(), abs=1e-3)
    assert min_mpjpe(hypotheses, target, level="frame") == pytest.approx(values["min_mpjpe_frame"].item(), abs=1e-3)
    assert min_pa_mpjpe(hypotheses, target) == pytest.approx(values["min_pa_mpjpe_sequence"].item(), abs=1e-3)
    frames = values["pa_per_joint"].mean(-1).amin(0).mean().item()
    assert min_pa_mpjpe(hypotheses, target, level="frame") == pytest.approx(frames, abs=1e-3)
    best = int(values["sequence_mpjpe"].argmin())
    assert mpjve(hypotheses[best], target) == pytest.approx(values["mpjve_best"].item(), abs=1e-3)


# One pose against the truth -------------------------------------------------------------------------------------------


def test_a_perfect_prediction_has_no_error(pair):
    _, target = pair
    for metric in (mpjpe, pa_mpjpe, n_mpjpe, mpjve, acceleration_error):
        assert metric(target, target) == pytest.approx(0, abs=1e-4)
    assert pck(target, target) == 100
    assert auc(target, target) == pytest.approx(100 * 30 / 31)  # nothing lies strictly below 0 mm


def test_a_constant_offset_counts_once(pair):
    _, target = pair
    moved = target + torch.tensor([0.03, 0.0, 0.04])
    assert mpjpe(moved, target) == pytest.approx(50, abs=1e-3)
    assert mpjve(moved, target) == pytest.approx(0, abs=1e-3)
    assert pa_mpjpe(moved, target) == pytest.approx(0, abs=1e-3)


def test_motion_errors_are_norms_of_differences():
    time = torch.arange(5.0)[:, None, None]
    target = torch.zeros(5, 2, 3)
    drift = torch.tensor([0.003, 0.0, 0.004]) * time + target
    curve = torch.tensor([0.0, 0.001, 0.0]) * time**2 + target
    assert mpjve(drift, target) == pytest.approx(5, abs=1e-4)
    assert acceleration_error(drift, target) == pytest.approx(0, abs=1e-4)
    assert acceleration_error(curve, target) == pytest.approx(2, abs=1e-4)


def test_normalised_error_ignores_the_size_of_the_prediction(pair):
    pred, target = pair
    assert n_mpjpe(3 * pred, target) == pytest.approx(n_mpjpe(pred, target), rel=1e-6)
    assert n_mpjpe(0 * pred, target) == pytest.approx(mpjpe(0 * pred, target))


def test_pck_is_strict_and_auc_averages_it(pair):
    pred, target = pair
    edge = torch.zeros(1, 4, 3)
    edge[0, :, 0] = torch.tensor([0.125, 0.0625, 0.25, 0.5])
    assert pck(edge, torch.zeros_like(edge), threshold_mm=125) == 25
    assert pck(edge, torch.zeros_like(edge), threshold_mm=126) == 50
    curve = [pck(pred, target, threshold) for threshold in np.arange(31) * 5]
    assert auc(pred, target) == pytest.approx(np.mean(curve))
    assert all(a <= b for a, b in pairwise(curve))


def test_numpy_and_torch_give_the_same(pair):
    pred, target = pair
    for metric in PAIR_METRICS:
        assert metric(pred.numpy(), target.numpy()) == metric(pred, target)


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_what_the_mask_leaves_out_does_not_count(metric, pair):
    pred, target = pair
    kept = slice(0, 4)
    mask = torch.zeros(2, 6)
    mask[:, kept] = 1
    spoiled = torch.where(mask.bool()[..., None, None], target, torch.nan)
    assert metric(pred, spoiled, mask=mask) == pytest.approx(metric(pred[:, kept], target[:, kept]), abs=1e-6)
    joints = torch.zeros(2, 6, 17, dtype=torch.bool)
    joints[..., 3:] = True
    spoiled = torch.where(joints[..., None], pred, torch.inf)
    assert metric(spoiled, target, mask=joints) == pytest.approx(metric(pred[..., 3:, :], target[..., 3:, :]), abs=1e-6)


def test_errors_are_what_plain_loops_compute(pair):
    pred, target = (pose.double().numpy() for pose in pair)
    aligned, plain_scale, similar = np.empty_like(pred), np.empty(pred.shape[:2]), np.empty(pred.shape[:2])
    for index in np.ndindex(pred.shape[:2]):
        x, y = pred[index], target[index]
        plain_scale[index] = np.sum(x * y) / np.sum(x * x)
        x0, y0 = x - x.mean(0), y - y.mean(0)
        u, s, vt = np.linalg.svd(y0.T @ x0)
        sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
        similar[index] = np.trace(np.diag(s) @ sign) / np.sum(x0 * x0)
        aligned[index] = similar[index] * x0 @ (u @ sign @ vt).T + y.mean(0)

    def error(a, b):
        return pytest.approx(1000 * np.linalg.norm(a - b, axis=-1).mean(), abs=1e-6)

    assert mpjpe(pred, target) == error(pred, target)
    assert pa_mpjpe(pred, target) == error(aligned, target)
    assert pa_mpjpe(pred, target, recentre_root=3) == error(aligned - aligned[..., 3:4, :], target - target[..., 3:4, :])
    assert n_mpjpe(pred, target) == error(plain_scale[..., None, None] * pred, target)
    assert n_mpjpe(pred, target, scale="procrustes") == error(similar[..., None, None] * pred, target)
    assert mpjve(pred, target) == error(np.diff(pred, axis=1), np.diff(target, axis=1))
    assert acceleration_error(pred, target) == error(np.diff(pred, 2, axis=1), np.diff(target, 2, axis=1))


def test_the_published_variants_differ_as_they_say(pair):
    pred, target = pair
    assert acceleration_error(pred, target, divisor="frames") == pytest.approx(acceleration_error(pred, target) * 4 / 6)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()
    turned = 0.5 * target @ rotation.mT
    assert n_mpjpe(turned, target, scale="procrustes") == pytest.approx(mpjpe(2 * turned, target), abs=1e-3)
    assert n_mpjpe(turned, target, scale="procrustes") > n_mpjpe(turned, target) + 1
    assert pa_mpjpe(target, target, recentre_root=0) == pytest.approx(0, abs=1e-6)
    mask = torch.ones(2, 6, 17)
    mask[:, 3:, 0] = 0
    kept = pa_mpjpe(pred[:, :3], target[:, :3], recentre_root=0)
    assert pa_mpjpe(pred, target, mask, recentre_root=0) == pytest.approx(kept)
    for scale in ("least_squares", "procrustes"):
        assert n_mpjpe(pred, target, mask, scale) > 0
    for wrong in (
        lambda: n_mpjpe(pred, target, scale="rotation"),
        lambda: pa_mpjpe(pred, target, recentre_root=17),
        lambda: acceleration_error(pred, target, divisor="N"),
    ):
        with pytest.raises(ValueError, match=r"must be (one of|a joint)"):
            wrong()


def test_the_benchmark_counts_fourteen_joints(pair):
    pred, target = pair
    assert joint_groups("mpi_inf_3dhp_17") == HP3D_GROUPS
    groups = joint_groups("h36m_17")
    assert groups["head"] == (10,) and groups["neck"] == (8,)
    for name, joints in groups.items():
        assert [HP3D_OF_H36M[joint] for joint in joints] == list(HP3D_GROUPS[name])
    counted = sorted(joint for group in groups.values() for joint in group)
    assert len(counted) == 14
    assert pck(pred, target, 80, skeleton="h36m_17") == pck(pred[..., counted, :], target[..., counted, :], 80)
    assert auc(pred, target, skeleton="h36m_17") == auc(pred[..., counted, :], target[..., counted, :])
    assert auc(pred, target, skeleton="h36m_17") != auc(pred, target)
    with pytest.raises(ValueError, match=r"'coco_17' lacks .* known are .*h36m_17.*mpi_inf_3dhp_17"):
        joint_groups("coco_17")
    with pytest.raises(ValueError, match="unknown skeleton"):
        pck(pred, target, skeleton="h36m_71")
    with pytest.raises(ValueError, match="16 joints of 'mpii_16'"):
        auc(pred, target, skeleton="mpii_16")


# Bones ----------------------------------------------------------------------------------------------------------------


def test_bone_errors_know_their_bones():
    pose = torch.zeros(2, 3, 3)
    pose[:, 1, 0], pose[:, 2, 0] = 0.25, 0.75
    longer = pose.clone()
    longer[1, 2, 0] = 0.79
    bones = [(0, 1), (1, 2)]
    assert bone_length_error(longer, pose, bones) == pytest.approx(10, abs=1e-3)
    assert bone_length_deviation(pose, bones) == 0
    assert bone_length_deviation(longer, bones) == pytest.approx(10, abs=1e-3)  # (0 + 20) / 2
    assert bone_length_deviation(longer, bones, mask=torch.tensor([1, 0])) == 0
    assert bone_length_deviation(longer, bones, mask=torch.tensor([[1, 1, 1], [1, 1, 0]])) == 0


def test_bone_metrics_ignore_rigid_motion(pair):
    pose, _ = pair
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    moved = pose @ rotation.mT + 2
    assert bone_length_error(moved, pose, H36M.bones) == pytest.approx(0, abs=1e-3)
    assert symmetry_error(moved, H36M.bones, H36M.flip_pairs) == pytest.approx(symmetry_error(pose, H36M.bones, H36M.flip_pairs), abs=1e-3)


def test_a_mirrored_person_is_as_symmetric(pair):
    pose, _ = pair
    half = pose * torch.tensor([-1.0, 1.0, 1.0])
    mirrored = half[..., list(H36M.flip_index), :]
    symmetric = torch.cat([pose, mirrored], dim=-2)
    assert symmetry_error(mirrored, H36M.bones, H36M.flip_pairs) == pytest.approx(symmetry_error(pose, H36M.bones, H36M.flip_pairs))
    bones = [*H36M.bones, *((a + 17, b + 17) for a, b in H36M.bones)]
    assert symmetry_error(symmetric, bones, [(i, j + 17) for i, j in enumerate(H36M.flip_index)]) == 0


def test_bones_must_be_pairs_of_joints(pair):
    pose, _ = pair
    for bones in ([], [(0, 17)], [(0, 1, 2)]):
        with pytest.raises(ValueError, match="bones must be pairs"):
            bone_length_deviation(pose, bones)
    with pytest.raises(ValueError, match="flip_pairs"):
        symmetry_error(pose, H36M.bones, [(4, 12)])
    with pytest.raises(ValueError, match="flip_pairs"):
        symmetry_error(pose, H36M.bones, [])


# Sets of hypotheses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [1, 2])
def test_the_more_an_oracle_may_choose_the_less_it_errs(scene, protocol):
    batch, window, frame = (hypothesis_table(**scene, protocol=protocol, p_best_scope=scope) for scope in ("batch", "window", "frame"))
    assert frame["p_best"] < window["p_best"] <= batch["p_best"]
    assert batch["j_best"] < frame["p_best"]
    assert batch["j_best"] < batch["j_agg"]


def test_protocol_2_is_what_its_words_say(scene):
    hypotheses = scene["hypotheses"].clone()
    hypotheses[..., 0, :] = 0
    table = hypothesis_table(**scene, protocol=2)
    assert table["p_agg"] == pytest.approx(pa_mpjpe(hypotheses.mean(1), scene["target"]))
    each = [pa_mpjpe(hypotheses[:, k], scene["target"]) for k in range(4)]
    assert table["p_best"] == pytest.approx(min(each))
    single = hypothesis_table(**{**scene, "hypotheses": scene["hypotheses"][:, :1]}, protocol=2)
    for value in single.values():
        assert value == pytest.approx(each[0])


@pytest.mark.parametrize("protocol", [1, 2])
def test_equal_hypotheses_give_four_equal_numbers(scene, protocol):
    scene["hypotheses"] = scene["hypotheses"][:, :1].expand(-1, 5, -1, -1, -1)
    values = list(hypothesis_table(**scene, protocol=protocol).values())
    assert values == pytest.approx([values[0]] * 4)


def test_layouts_of_the_table_agree(scene):
    table = hypothesis_table(**scene, p_best_scope="window")
    assert all(isinstance(value, float) for value in table.values())
    stacked = hypothesis_table(**{**scene, "hypotheses": torch.stack([scene["hypotheses"]] * 2, 1)}, p_best_scope="window")
    assert stacked == {name: [value, value] for name, value in table.items()}
    clips = [
        hypothesis_table(**{k: v if k == "camera" else v[b].numpy() for k, v in scene.items()}, p_best_scope="window") for b in range(2)
    ]
    for name, value in table.items():
        assert value == pytest.approx((clips[0][name] + clips[1][name]) / 2)
    vectors = scene["camera"].to_vector().expand(2, 9)
    other = hypothesis_table(**{**scene, "camera": vectors, "root": scene["root"][:, :, None]}, p_best_scope="window")
    assert other == pytest.approx(table)


def test_the_table_zeroes_the_root(scene):
    expected = hypothesis_table(**scene)
    spoiled = {**scene, "hypotheses": scene["hypotheses"].clone(), "target": scene["target"].clone()}
    spoiled["hypotheses"][..., 0, :] += 7
    spoiled["target"][..., 0, :] += 9
    before = spoiled["hypotheses"].clone()
    assert hypothesis_table(**spoiled) == expected
    assert torch.equal(spoiled["hypotheses"], before)


def test_the_table_can_leave_frames_out(scene):
    mask = torch.ones(2, 6)
    mask[:, 4:] = 0
    short = {name: value[..., :4, :] if name == "root" else value for name, value in scene.items()}
    short |= {name: scene[name][..., :4, :, :] for name in ("hypotheses", "target", "keypoints_2d")}
    for protocol in (1, 2):
        masked = hypothesis_table(**scene, protocol=protocol, mask=mask)
        assert masked == pytest.approx(hypothesis_table(**short, protocol=protocol))


def test_oracles_return_their_choice(scene):
    hypotheses, target = scene["hypotheses"], scene["target"]
    for scope in ("batch", "window", "frame"):
        pose, index = p_best(hypotheses, target, scope)
        assert pose.shape == target.shape and index.shape == target.shape[:2]
        assert torch.equal(pose, torch.take_along_dim(hypotheses, index[:, None, :, None, None], 1)[:, 0])
        best = mpjpe(pose, target)
        assert all(best <= mpjpe(hypotheses[:, k], target) + 1e-9 for k in range(4))
    pose, index = j_best(hypotheses, target)
    assert index.shape == target.shape[:3]
    assert torch.allclose((pose - target).norm(dim=-1), (hypotheses - target[:, None]).norm(dim=-1).amin(1))


def test_oracles_take_every_layout(scene):
    hypotheses, target = scene["hypotheses"], scene["target"]
    pose, index = p_best(hypotheses, target, "window")
    alone = p_best(hypotheses[1].numpy(), target[1].numpy(), "window")
    assert torch.equal(alone[0], pose[1]) and torch.equal(alone[1], index[1])
    several = p_best(torch.stack([hypotheses, hypotheses], 1), target, "window")
    assert torch.equal(several[0], torch.stack([pose, pose], 1)) and several[1].shape == (2, 2, 6)
    joints = j_best(torch.stack([hypotheses[0]] * 3), target[0])
    assert joints[0].shape == (3, 6, 17, 3) and joints[1].shape == (3, 6, 17)


def test_unobserved_keypoints_leave_the_first_hypothesis(scene):
    scene["keypoints_2d"] = torch.full_like(scene["keypoints_2d"], torch.nan)
    first = scene["hypotheses"][:, 0].clone()
    first[..., 0, :] = 0
    assert hypothesis_table(**scene)["j_agg"] == pytest.approx(mpjpe(first, scene["target"]))


def test_minimum_errors_choose_for_a_sequence_or_a_frame(scene):
    hypotheses, target = scene["hypotheses"], scene["target"]
    for least, metric in ((min_mpjpe, mpjpe), (min_pa_mpjpe, pa_mpjpe)):
        each = [[metric(hypotheses[b, k], target[b]) for k in range(4)] for b in range(2)]
        assert least(hypotheses, target) == pytest.approx(np.mean([min(errors) for errors in each]), abs=1e-4)
        frames = [[[metric(hypotheses[b, k, [f]], target[b, [f]]) for k in range(4)] for f in range(6)] for b in range(2)]
        assert least(hypotheses, target, level="frame") == pytest.approx(np.min(frames, axis=-1).mean(), abs=1e-4)
        assert least(hypotheses[:, :, :1], target[:, :1]) == pytest.approx(least(hypotheses[:, :, :1], target[:, :1], "frame"))
        assert least(torch.stack([hypotheses] * 2, 1), target) == pytest.approx([least(hypotheses, target)] * 2)
        assert least(hypotheses[0].numpy(), target[0].numpy()) == pytest.approx(min(each[0]), abs=1e-4)
        with pytest.raises(ValueError, match=r"level must be one of \('sequence', 'frame'\), got 'clip'"):
            least(hypotheses, target, level="clip")


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]])])
def test_one_pass_gives_what_the_single_metrics_give(scene, mask):
    scores = score_hypotheses(**scene, mask=mask)
    for prefix, protocol in (("", 1), ("pa_", 2)):
        table = hypothesis_table(**scene, protocol=protocol, mask=mask)
        assert table == pytest.approx({name: scores[prefix + name] for name in table})
    hypotheses, target = scene["hypotheses"].clone(), scene["target"]
    hypotheses[..., 0, :] = 0
    mean = hypotheses.mean(1)
    expected = {
        **{f"min_mpjpe_{level}": min_mpjpe(hypotheses, target, level, mask) for level in ("sequence", "frame")},
        **{f"min_pa_mpjpe_{level}": min_pa_mpjpe(hypotheses, target, level, mask) for level in ("sequence", "frame")},
        **{metric.__name__: metric(mean, target, mask=mask) for metric in (n_mpjpe, mpjve, pck, auc)},
        "acceleration": acceleration_error(mean, target, mask),
        "p_agg": mpjpe(mean, target, mask),
        "pa_p_agg": pa_mpjpe(mean, target, mask),
        "symmetry": symmetry_error(hypotheses, H36M.bones, H36M.flip_pairs, mask),
        "bone_length_error": bone_length_error(hypotheses, target, H36M.bones, mask),
        "bone_length_deviation": bone_length_deviation(hypotheses, H36M.bones, mask),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-3)


def test_one_pass_takes_what_there_is(scene):
    hypotheses, target = scene["hypotheses"], scene["target"]
    full, blind = score_hypotheses(**scene), score_hypotheses(hypotheses, target)
    assert full.keys() - blind.keys() == {"j_agg", "pa_j_agg"}
    assert {name: full[name] for name in blind} == pytest.approx(blind)
    assert "mpjve" not in score_hypotheses(hypotheses[:, :, :2], target[:, :2])
    clip = score_hypotheses(hypotheses[0].numpy(), target[0].numpy())
    assert clip["p_best"] == pytest.approx(min_mpjpe(hypotheses[0], target[0]), rel=0.1)
    for message, change in {
        "must be given together, missing are .*camera": {"camera": None},
        "16 joints of 'mpii_16'": {"skeleton": "mpii_16"},
        "hypotheses and target must have shapes": {"hypotheses": hypotheses[:, None]},
        "scope must be one of": {"p_best_scope": "clip"},
    }.items():
        with pytest.raises(ValueError, match=message):
            score_hypotheses(**{**scene, **change})


def test_many_pieces_give_what_one_gives(scene, monkeypatch):
    whole = [score_hypotheses(**scene), hypothesis_table(**scene, protocol=2)]
    monkeypatch.setattr("probpose.metrics.hypotheses._PIECE", 1)
    assert [score_hypotheses(**scene), hypothesis_table(**scene, protocol=2)] == [pytest.approx(table) for table in whole]
    roots = scene["root"][:, None].expand(-1, 4, -1, -1)
    assert hypothesis_table(**{**scene, "root": roots}) == pytest.approx(hypothesis_table(**scene))


def test_double_precision_input_keeps_its_precision(scene):
    single = hypothesis_table(**scene, protocol=2)
    double = hypothesis_table(**{name: value if name == "camera" else value.double() for name, value in scene.items()}, protocol=2)
    assert single == pytest.approx(double, abs=1e-3)


def test_scoring_can_be_timed(capsys):
    spec = importlib.util.spec_from_file_location("benchmark_scoring", BENCHMARK)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()
    try:
        assert script.main(["--frames", "30", "--hypotheses", "2", "--rounds", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("30 frames, 2 hypotheses") and len(lines) == 15
    with pytest.raises(SystemExit):
        script.parse_arguments(["--frames", "2"])


# MPI-INF-3DHP ---------------------------------------------------------------------------------------------------------


def test_hp3d_moves_the_truth_to_its_pelvis_and_drops_invalid_frames():
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(8, 17, 3, generator=generator)
    pred = target - target[:, 14:15]
    pred[..., [0, 16], 0] += 0.2
    valid = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0])
    pred[valid == 0] = torch.nan
    scores = hp3d_scores(pred, target, valid)
    assert scores["mpjpe"] == pytest.approx(400 / 17, abs=1e-3)
    assert scores["pck"]["head"] == 0 and scores["pck"]["neck"] == 100
    assert scores["pck"]["total"] == pytest.approx(100 * 13 / 14)
    assert scores["auc"]["ankle"] == pytest.approx(100 * 30 / 31)


def test_hp3d_scores_poses_in_another_order():
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(8, 17, 3, generator=generator)
    pred = target - target[:, 14:15] + 0.1 * torch.randn(8, 17, 3, generator=generator)
    scores = hp3d_scores(pred, target)
    other = hp3d_scores(pred[:, HP3D_OF_H36M], target[:, HP3D_OF_H36M], skeleton="h36m_17")
    assert other["mpjpe"] == pytest.approx(scores["mpjpe"])
    assert other["pck"] == pytest.approx(scores["pck"]) and other["auc"] == pytest.approx(scores["auc"])
    with pytest.raises(ValueError, match="root included"):
        hp3d_scores(target, target, skeleton="openpose_mpi_15")


# Bad input ------------------------------------------------------------------------------------------------------------


def test_bad_poses_are_named(pair):
    pred, target = pair
    for metric in PAIR_METRICS:
        with pytest.raises(ValueError, match="same shape"):
            metric(pred[:1], target)
        with pytest.raises(ValueError, match=r"pred must have shape \(\.\.\., frames, joints, 3\)"):
            metric(pred[..., :2], target)
        with pytest.raises(ValueError, match="mask must have shape"):
            metric(pred, target, mask=torch.ones(3))
        with pytest.raises(ValueError, match="no valid entry"):
            metric(pred, target, mask=torch.zeros(2, 6))
        broken = target.clone()
        broken[0, 0, 0, 0] = torch.nan
        with pytest.raises(ValueError, match="target must be finite, got 1 "):
            metric(pred, broken)
    with pytest.raises(ValueError, match="at least 3 frames, got 2"):
        acceleration_error(pred[:, :2], target[:, :2])
    with pytest.raises(ValueError, match="threshold_mm must not be negative"):
        pck(pred, target, threshold_mm=-1)
    with pytest.raises(ValueError, match="17 joints"):
        hp3d_scores(pred[..., :16, :], target[..., :16, :])


def test_bad_tables_are_named(scene):
    cases = {
        "protocol must be 1 or 2, got 3": {"protocol": 3},
        "scope must be one of .*got 'clip'": {"p_best_scope": "clip"},
        "root_index must be a joint": {"root_index": 17},
        "hypotheses and target must have shapes": {"hypotheses": scene["target"]},
        "hypotheses must be finite": {"hypotheses": scene["hypotheses"] / 0},
        "target must be finite": {"target": scene["target"] * torch.nan},
        "root must be finite": {"root": scene["root"] * torch.nan},
        "root must have shape": {"root": scene["root"][:, :3]},
        "keypoints_2d must have shape": {"keypoints_2d": scene["keypoints_2d"][0]},
        "pose must have shape": {"keypoints_2d": scene["keypoints_2d"][:, :, :5]},
        "a camera vector has 9 numbers": {"camera": torch.ones(4)},
        "camera axes must be": {"camera": scene["camera"].to_vector().expand(3, 9)},
    }
    for message, change in cases.items():
        with pytest.raises(ValueError, match=message):
            hypothesis_table(**{**scene, **change})
    for batch in (slice(0, 1), slice(0, 0)):
        with pytest.raises(ValueError, match="hypotheses and target must have shapes"):
            p_best(scene["hypotheses"][batch], scene["target"])

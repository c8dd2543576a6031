from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from probpose.skeletons import (
    Skeleton,
    bone_lengths,
    conversion_matrix,
    convert,
    convert_with_confidence,
    flip,
    get_skeleton,
    list_skeletons,
    register_skeleton,
    repair_low_confidence_legs,
)

PARITY = Path(__file__).resolve().parents[1].parent / "shared" / "parity" / "skeleton_conversion"
METHODS = ("simple", "demo", "gast")
SPINE, THORAX, NECK, HEAD = 7, 8, 9, 10


def has_conversion(source, target):
    try:
        conversion_matrix(source, target)
    except ValueError:
        return False
    return True


PAIRS = [pair for pair in product(list_skeletons(), repeat=2) if pair[0] != pair[1] and has_conversion(*pair)]
COCO_VARIANTS = [
    (source, target, method)
    for source, target, method in product(
        ("coco_17", "openpose_18", "openpose_25", "mediapipe_33", "halpe_26", "wholebody_133", "sapiens_308"),
        ("h36m_17", "h36m_16", "lsp_14"),
        METHODS,
    )
]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clip(rng, skeleton, channels=2, shape=(3,)):
    return rng.normal(size=(*shape, get_skeleton(skeleton).num_joints, channels))


@pytest.fixture
def coco():
    """An upright person seen from the front, in pixels with y down; the numbers below are computed by hand from it."""
    left = {"eye": (110, 90), "ear": (120, 95), "shoulder": (150, 140), "elbow": (160, 200), "wrist": (165, 250)}
    left |= {"hip": (130, 260), "knee": (132, 340), "ankle": (134, 420)}
    right = {"eye": (94, 92), "ear": (84, 97), "shoulder": (50, 144), "elbow": (40, 204), "wrist": (35, 254)}
    right |= {"hip": (70, 264), "knee": (68, 344), "ankle": (66, 424)}
    return np.array([(102, 100)] + [point for part in left for point in (left[part], right[part])], dtype=np.float64)


# --- skeletons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_skeletons())
def test_registered_skeletons_are_symmetric(name):
    skeleton = get_skeleton(name)
    partner = skeleton.flip_index
    assert skeleton.num_joints == int(name.split("_")[-1].rstrip("b"))
    assert all(partner[partner[joint]] == joint for joint in range(skeleton.num_joints))
    assert len(skeleton.left) == len(skeleton.right) and not set(skeleton.left) & set(skeleton.right)
    bones = set(skeleton.bones)
    assert {(partner[parent], partner[child]) for parent, child in bones} == bones
    for left, right in zip(skeleton.joint_names, [skeleton.joint_names[joint] for joint in partner]):
        assert right == left.replace("left_", "right_") or left.startswith(("right_", "face_"))
    if skeleton.root is not None:
        assert skeleton.joint_names[skeleton.root] == "pelvis"
        assert skeleton.parents[skeleton.root] == -1


def test_h36m_tree():
    skeleton = get_skeleton("h36m_17")
    assert skeleton.parents == (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
    assert skeleton.left == (4, 5, 6, 11, 12, 13) and skeleton.right == (1, 2, 3, 14, 15, 16)
    assert skeleton.bones[:3] == ((0, 1), (1, 2), (2, 3)) and len(skeleton.bones) == 16


def test_names():
    assert get_skeleton("body_25") is get_skeleton("openpose_25")
    assert get_skeleton(get_skeleton("coco_17")) is get_skeleton("coco_17")
    assert "body_25" not in list_skeletons() and len(list_skeletons()) == 24
    with pytest.raises(ValueError, match=r"'coco17'.*did you mean 'coco_17'.*mpii_16"):
        get_skeleton("coco17")
    with pytest.raises(ValueError, match="unknown skeleton None"):
        get_skeleton(None)


def test_register(monkeypatch):
    monkeypatch.setattr("probpose.skeletons._SKELETONS", {name: get_skeleton(name) for name in list_skeletons()})
    stick = Skeleton("stick_2", ["bottom", "top"], [-1, 0], root=0)
    assert register_skeleton(stick) is stick and register_skeleton(stick) is stick
    assert get_skeleton("stick_2") is stick and hash(stick) is not None
    with pytest.raises(ValueError, match="reach nothing"):
        convert(np.zeros((2, 2)), "stick_2", "h36m_17")
    for name in ("stick_2", "body_25", "coco_17"):
        with pytest.raises(ValueError, match="is taken"):
            register_skeleton(Skeleton(name, ["a"], [-1]))


@pytest.mark.parametrize(
    "tables, message",
    [
        ({"joint_names": ["a", "a", "b"]}, "unique"),
        ({"parents": [-1, 0]}, "parents must hold"),
        ({"parents": [-1, 0, 3]}, "parents must hold"),
        ({"parents": [-1, 2, 1]}, "circle"),
        ({"flip_pairs": [(0, 1), (1, 2)]}, "at most once"),
        ({"flip_pairs": [(0, 3)]}, "at most once"),
        ({"root": 3}, "root must be"),
    ],
)
def test_contradicting_tables_are_refused(tables, message):
    good = {"name": "x", "joint_names": ["a", "b", "c"], "parents": [-1, 0, 1]}
    with pytest.raises(ValueError, match=message):
        Skeleton(**{**good, **tables})


# --- numbers computed by hand ----------------------------------------------------------------------------------------


def test_coco_to_h36m_limbs_and_pelvis(coco):
    for method in METHODS:
        pose = convert(coco, "coco_17", "h36m_17", method)
        limbs = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
        assert np.array_equal(pose[limbs], coco[[12, 14, 16, 11, 13, 15, 5, 7, 9, 6, 8, 10]])
        assert np.array_equal(pose[0], [100, 262])


def test_simple_formula(coco):
    pose = convert(coco, "coco_17", "h36m_17")
    assert np.array_equal(pose, convert(coco, "coco_17", "h36m_17", "simple"))
    assert np.array_equal(pose[[SPINE, THORAX, NECK, HEAD]], [[100, 202], [100, 142], [102, 100], [102, 91]])


def test_demo_and_gast_formulas(coco):
    # Middle of the shoulders (100, 142), eyes at height 91, middle of the torso (100, 202).
    thorax_x = 100 + 2 / 3
    thorax = [thorax_x, 142 - 42 / 3 - 2 / 3 * (91 - 100)]
    neck, head = [101.5, 110.5], [(110 + 94 + 120 + 84) / 4, 90 + 92 - 100]
    for method, factor in (("demo", 2.0), ("gast", 0.3)):
        spine = [100 + factor * (100 - (100 + thorax_x) / 2), 202]
        pose = convert(coco, "coco_17", "h36m_17", method)
        np.testing.assert_allclose(pose[[SPINE, THORAX, NECK, HEAD]], [spine, thorax, neck, head], rtol=1e-12)


def test_body_25_prefers_its_own_neck_and_pelvis(rng):
    keypoints = clip(rng, "body_25")
    own = convert(keypoints, "body_25", "h36m_17")
    assert np.array_equal(own[:, 0], keypoints[:, 8]) and np.array_equal(own[:, THORAX], keypoints[:, 1])
    via_coco = convert(convert(keypoints, "body_25", "coco_17"), "coco_17", "h36m_17", "demo")
    np.testing.assert_allclose(convert(keypoints, "body_25", "h36m_17", "demo"), via_coco, atol=1e-12)


def test_directly_labelled_sets():
    aic = np.arange(14.0)[:, None].repeat(2, axis=1)
    expected = [7.5, 6, 7, 8, 9, 10, 11, 4.5, 1.5, 12.75, (5 * 13 + 7 * 12) / 12, 3, 4, 5, 0, 1, 2]
    np.testing.assert_allclose(convert(aic, "aic_14", "h36m_17")[:, 0], expected)
    track = np.arange(17.0)[:, None].repeat(2, axis=1)
    expected = [11.5, 12, 14, 16, 11, 13, 15, (11.5 + 1) / 2, 1, 0, 2, 5, 7, 9, 6, 8, 10]
    np.testing.assert_allclose(convert(track, "posetrack_17", "h36m_17")[:, 0], expected)
    eva = np.arange(15.0)[:, None].repeat(3, axis=1)
    expected = [0, 11, 12, 13, 8, 9, 10, 0.5, 1, 1 + 0.51 * 13, 14, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(convert(eva, "humaneva_15", "h36m_17")[:, 0], expected)


def test_large_sets_reduce_to_their_body(rng):
    for large, body in (("halpe_136", "halpe_26"), ("openpose_134", "openpose_18"), ("wholebody_133", "coco_17")):
        keypoints, joints = clip(rng, large), get_skeleton(body).num_joints
        assert get_skeleton(large).joint_names[:joints] == get_skeleton(body).joint_names
        small = convert(keypoints[:, :joints], body, "h36m_17")
        assert np.array_equal(convert(keypoints, large, "h36m_17"), small)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != ("halpe_136", "halpe_26")])
def test_a_copied_joint_keeps_its_name(pair):
    """Wherever both sets have a limb joint of the same name, it is that joint which is copied."""
    source, target = map(get_skeleton, pair)
    matrix = conversion_matrix(*pair)
    limbs = {f"{side}_{part}" for side in ("left", "right") for part in ["shoulder", "elbow", "wrist", "hip", "knee", "ankle"]}
    for joint in limbs & set(source.joint_names) & set(target.joint_names):
        row = matrix[target.joint_names.index(joint)]
        assert row[source.joint_names.index(joint)] == 1 and row.sum() == 1, joint


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_row_sums_to_one_or_is_unknown(pair):
    matrix = conversion_matrix(*pair)
    assert matrix.shape == (get_skeleton(pair[1]).num_joints, get_skeleton(pair[0]).num_joints)
    total, unknown = matrix.sum(axis=1), ~matrix.any(axis=1)
    np.testing.assert_allclose(total[~unknown], 1, rtol=1e-12)
    assert not unknown.any() or pair[1] == "coco_17"


@pytest.mark.parametrize("source, target, method", COCO_VARIANTS)
def test_variants_are_translation_and_mirror_equivariant(rng, source, target, method):
    np.testing.assert_allclose(conversion_matrix(source, target, method).sum(axis=-1), 1, rtol=1e-12)
    keypoints = clip(rng, source)
    mirrored = convert(flip(keypoints, source), source, target, method)
    np.testing.assert_allclose(mirrored, flip(convert(keypoints, source, target, method), target), atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_conversion_commutes_with_mirroring(rng, pair):
    poses = clip(rng, pair[0], channels=3)
    mirrored = convert(flip(poses, pair[0]), *pair)
    np.testing.assert_allclose(mirrored, flip(convert(poses, *pair), pair[1]), atol=1e-12)


def test_conversion_is_the_matrix_product(rng):
    keypoints = clip(rng, "aic_14", channels=5, shape=(2, 3))
    np.testing.assert_allclose(convert(keypoints, "aic_14", "h36m_17"), conversion_matrix("aic_14", "h36m_17") @ keypoints, atol=1e-12)
    keypoints = clip(rng, "coco_17")
    x_weights, y_weights = conversion_matrix("coco_17", "h36m_17", "gast")
    expected = np.stack([keypoints[..., 0] @ x_weights.T, keypoints[..., 1] @ y_weights.T], axis=-1)
    np.testing.assert_allclose(convert(keypoints, "coco_17", "h36m_17", "gast"), expected, atol=1e-12)


def test_returned_matrices_can_be_changed_without_harm():
    conversion_matrix("coco_17", "h36m_17")[:] = 0
    assert conversion_matrix("coco_17", "h36m_17").sum() == 17
    assert np.array_equal(conversion_matrix("mpii_16", "mpii_16"), np.eye(16))


def test_h36m_and_3dhp_round_trip(rng):
    there, back = ("h36m_17", "mpi_inf_3dhp_17"), ("mpi_inf_3dhp_17", "h36m_17")
    pose = clip(rng, "h36m_17", channels=3)
    assert np.array_equal(convert(convert(pose, *there), *back), pose)
    assert np.array_equal(convert(convert(pose, *back), *there), pose)


def test_limbs_survive_coco_and_humaneva(rng):
    pose = clip(rng, "h36m_17", channels=3)
    limbs = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
    for other in ("coco_17", "humaneva_15"):
        back = convert(convert(pose, "h36m_17", other), other, "h36m_17")
        assert np.array_equal(back[:, limbs], pose[:, limbs])


def test_what_h36m_cannot_know_is_nan(rng):
    pose = torch.from_numpy(clip(rng, "h36m_17")).requires_grad_()
    keypoints = convert(pose, "h36m_17", "coco_17")
    assert keypoints[:, 1:5].isnan().all() and keypoints[:, [0, *range(5, 17)]].isfinite().all()
    keypoints.nansum().backward()
    assert pose.grad.isfinite().all()
    _, confidence, mask = convert_with_confidence(pose, torch.ones(3, 17), "h36m_17", "coco_17")
    assert (confidence[:, 1:5] == 0).all() and not mask[:, 1:5].any() and mask[:, 5:].all()
    # Their absence is passed on: an H36M head made from a COCO body without eyes is unknown as well.
    assert not has_conversion("mpii_16", "coco_17")
    assert convert(keypoints, "coco_17", "h36m_17")[:, HEAD].isnan().all()


def test_flip_is_an_involution(rng):
    for name in list_skeletons():
        pose = clip(rng, name, channels=3)
        assert np.array_equal(flip(flip(pose, name), name), pose)
    pose = clip(rng, "h36m_17", channels=3)
    mirrored = flip(pose, "h36m_17")
    assert np.array_equal(mirrored[:, 1], pose[:, 4] * [-1, 1, 1])
    np.testing.assert_allclose(np.sort(bone_lengths(mirrored, "h36m_17")), np.sort(bone_lengths(pose, "h36m_17")), rtol=1e-12)


def test_bone_lengths():
    pose = np.zeros((2, 17, 3), dtype=np.float32)
    pose[:, 1] = [0.3, 0, 0.4]
    lengths = bone_lengths(pose, "h36m_17")
    assert lengths.shape == (2, 16) and lengths.dtype == np.float32
    np.testing.assert_allclose(lengths[0, :3], [0.5, 0.5, 0], rtol=1e-6)
    stick = Skeleton("loose_2", ["a", "b"], [-1, -1])
    assert bone_lengths(np.zeros((4, 2, 3)), stick).shape == (4, 0)


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_numpy_dtypes_are_kept(coco, dtype):
    out = convert(coco.astype(dtype), "coco_17", "h36m_17")
    assert isinstance(out, np.ndarray) and out.dtype == np.dtype(dtype)
    np.testing.assert_allclose(out, convert(coco, "coco_17", "h36m_17"), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_dtypes_are_kept(coco, dtype):
    out = convert(torch.from_numpy(coco).to(dtype), "coco_17", "h36m_17", "demo")
    assert out.dtype == dtype
    if dtype != torch.float64:
        in_float32 = convert(torch.from_numpy(coco).to(dtype).float(), "coco_17", "h36m_17", "demo")
        assert torch.equal(out, in_float32.to(dtype))


def test_integers_become_float32(coco):
    for pixels in (coco.astype(np.int64), coco.astype(np.uint16), torch.from_numpy(coco).long()):
        out = convert(pixels, "coco_17", "h36m_17")
        assert out.dtype in (np.float32, torch.float32) and tuple(out[SPINE]) == (100, 202)


def test_same_source_and_target_returns_the_input(coco):
    assert convert(coco, "coco_17", "coco_17") is coco
    keypoints = np.zeros((25, 2), dtype=np.int32)
    assert convert(keypoints, "body_25", "openpose_25") is keypoints


def test_input_is_left_alone(rng):
    keypoints = clip(rng, "coco_17")
    keypoints.setflags(write=False)
    before = keypoints.copy()
    convert_with_confidence(keypoints, np.zeros((3, 17)), "coco_17", "h36m_17")
    flip(keypoints[::-1], "coco_17")
    assert np.array_equal(keypoints, before)


@pytest.mark.parametrize("shape", [(), (0,), (2, 1, 3)])
def test_leading_axes(rng, shape):
    keypoints = clip(rng, "mediapipe_33", shape=shape)
    assert convert(keypoints, "mediapipe_33", "h36m_17").shape == (*shape, 17, 2)
    _, confidence, mask = convert_with_confidence(keypoints, None, "mediapipe_33", "h36m_17")
    assert confidence.shape == mask.shape == (*shape, 17)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(rng, method):
    keypoints = torch.from_numpy(clip(rng, "coco_17", shape=(1,))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: convert(x, "coco_17", "h36m_17", method), keypoints)
    confidence = torch.rand(1, 17, dtype=torch.float64) + 0.1
    assert torch.autograd.gradcheck(lambda x: convert_with_confidence(x, confidence, "coco_17", "h36m_17", method)[0], keypoints)
    assert torch.autograd.gradcheck(lambda x: bone_lengths(flip(x, "coco_17"), "coco_17"), keypoints)


# --- missing joints --------------------------------------------------------------------------------------------------


def test_nan_reaches_only_the_joints_it_contributes_to(coco):
    coco[11] = np.nan
    pose = convert(coco, "coco_17", "h36m_17")
    assert set(np.flatnonzero(np.isnan(pose).any(axis=-1))) == {0, 4, SPINE}


@pytest.mark.parametrize("lost", ["nan", "confidence", "nan confidence"])
def test_means_are_taken_over_what_was_seen(coco, lost):
    scores = np.linspace(0.2, 1, 17)
    if lost == "nan":
        coco[11, 0] = np.nan
    else:
        scores[11] = 0 if lost == "confidence" else np.nan
    pose, confidence, mask = convert_with_confidence(coco, scores, "coco_17", "h36m_17")
    assert list(np.flatnonzero(~mask)) == [4]
    assert np.isnan(pose[4]).all() and confidence[4] == 0
    assert np.array_equal(pose[0], coco[12]) and confidence[0] == scores[12]
    np.testing.assert_allclose(pose[SPINE], coco[[5, 6, 12]].mean(axis=0))
    np.testing.assert_allclose(confidence[SPINE], scores[[5, 6, 12]].mean())


def test_threshold_and_reduction(coco):
    scores = np.full(17, 0.9, dtype=np.float32)
    scores[[11, 5]] = 0.3, 0.5
    _, confidence, mask = convert_with_confidence(coco, scores, "coco_17", "h36m_17", reduce="min")
    assert mask.all() and np.array_equal(confidence[[0, SPINE, THORAX]], np.float32([0.3, 0.3, 0.5]))
    _, confidence, mask = convert_with_confidence(coco, scores, "coco_17", "h36m_17", reduce="min", threshold=0.3)
    assert not mask[4] and np.array_equal(confidence[[0, SPINE]], np.float32([0.9, 0.5]))


@pytest.mark.parametrize("method", ["demo", "gast"])
def test_affine_formulas_need_every_contributor(coco, method):
    scores = np.ones(17)
    scores[0] = 0
    pose, confidence, mask = convert_with_confidence(coco, scores, "coco_17", "h36m_17", method)
    assert list(np.flatnonzero(~mask)) == [SPINE, THORAX, NECK, HEAD]
    assert np.isnan(pose[7:11]).all() and (confidence[7:11] == 0).all()
    np.testing.assert_array_equal(mask, ~np.isnan(pose).any(axis=-1))


def test_weighted_rules_need_every_contributor():
    keypoints, scores = np.ones((14, 2)), np.ones(14)
    scores[12] = 0
    _, _, mask = convert_with_confidence(keypoints, scores, "aic_14", "h36m_17")
    assert list(np.flatnonzero(~mask)) == [NECK, HEAD]


def test_posetrack_minimum_rule():
    scores = np.linspace(0.9, 0.1, 17)
    scores[1] = 0.05
    _, confidence, _ = convert_with_confidence(np.ones((17, 2)), scores, "posetrack_17", "h36m_17", reduce="min")
    assert confidence[0] == min(scores[11], scores[12]) and confidence[SPINE] == scores[1]


@pytest.mark.parametrize("method", METHODS)
def test_with_everything_seen_confidence_changes_no_coordinate(rng, method):
    keypoints, scores = clip(rng, "coco_17"), rng.uniform(0.1, 1, (3, 17))
    expected = convert(keypoints, "coco_17", "h36m_17", method)
    pose, confidence, mask = convert_with_confidence(keypoints, scores, "coco_17", "h36m_17", method)
    np.testing.assert_allclose(pose, expected, atol=1e-12)
    assert mask.all() and mask.dtype == bool
    np.testing.assert_allclose(confidence[:, 0], scores[:, [11, 12]].mean(axis=1))
    np.testing.assert_allclose(confidence[:, SPINE], scores[:, [5, 6, 11, 12]].mean(axis=1))
    np.testing.assert_allclose(confidence[:, THORAX], scores[:, [5, 6]].mean(axis=1))
    np.testing.assert_array_equal(confidence[:, NECK], scores[:, 0])
    head = [1, 2] if method == "simple" else [1, 2, 3, 4]
    np.testing.assert_allclose(confidence[:, HEAD], scores[:, head].mean(axis=1))


def test_people_who_are_not_there_keep_their_place(rng):
    keypoints, scores = clip(rng, "coco_17", shape=(2, 4)), np.ones((2, 4, 17))
    keypoints[1], scores[1] = 0, 0
    pose, confidence, mask = convert_with_confidence(keypoints, scores, "coco_17", "h36m_17")
    assert pose.shape == (2, 4, 17, 2) and mask[0].all() and not mask[1].any()
    assert np.isnan(pose[1]).all() and (confidence[1] == 0).all()


def test_numpy_and_torch_agree(rng):
    keypoints, scores = clip(rng, "halpe_26"), rng.uniform(-0.5, 1, (3, 26))
    arrays = convert_with_confidence(keypoints, scores, "halpe_26", "humaneva_15")
    tensors = convert_with_confidence(torch.from_numpy(keypoints), torch.from_numpy(scores).float(), "halpe_26", "humaneva_15")
    assert [tensor.dtype for tensor in tensors] == [torch.float64, torch.float32, torch.bool]
    for array, tensor in zip(arrays, tensors):
        np.testing.assert_allclose(array, tensor, atol=1e-6)


def test_leg_repair():
    legs, rows = (2, 3, 5, 6), {(): {}, (2,): {}, (5,): {}, (2, 3): {}, (5, 6): {}, (2, 3, 5): {}, (2, 6): {}}
    rows |= {(3,): {3: 2}, (6,): {6: 5}, (3, 6): {3: 2, 6: 5}, (2, 3, 6): {2: 1, 3: 1, 6: 5}}
    rows |= {(3, 5, 6): {3: 2, 5: 4, 6: 4}, legs: {2: 1, 3: 1, 5: 4, 6: 4}}
    keypoints = np.random.default_rng(0).normal(size=(len(rows), 17, 3)).astype(np.float32)
    scores = np.full((len(rows), 17), 0.3)
    expected = keypoints.copy()
    for frame, (low, repair) in enumerate(rows.items()):
        scores[frame, list(low)] = 0.29
        for joint, other in repair.items():
            expected[frame, joint] = keypoints[frame, other]
    out = repair_low_confidence_legs(keypoints, scores)
    assert out.dtype == np.float32 and np.array_equal(out, expected)
    scores[scores < 0.3] = np.nan
    assert np.array_equal(repair_low_confidence_legs(keypoints, scores), expected)
    assert np.array_equal(repair_low_confidence_legs(keypoints, np.ones_like(scores)), keypoints)
    tensor = torch.from_numpy(keypoints).requires_grad_()
    repair_low_confidence_legs(tensor, torch.from_numpy(scores)).sum().backward()
    assert tensor.grad[-1, 1, 0] == 3 and tensor.grad[-1, 3, 0] == 0


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keypoints, pair, method, message",
    [
        (np.zeros((10, 25, 2)), ("coco_17", "h36m_17"), None, r"coco_17 has 17 joints.*\(10, 25, 2\)"),
        (np.zeros((10, 25, 2)), ("coco_17", "coco_17"), None, r"coco_17 has 17 joints.*\(10, 25, 2\)"),
        (np.zeros(17), ("coco_17", "h36m_17"), None, r"have shape \(17,\)"),
        ([[0.0, 0.0]] * 17, ("coco_17", "h36m_17"), None, "NumPy array or torch tensor.*list"),
        (np.zeros((17, 2), complex), ("coco_17", "h36m_17"), None, "real numbers, got complex128"),
        (torch.zeros(17, 2, dtype=torch.cfloat), ("coco_17", "h36m_17"), None, "real numbers, got torch.complex64"),
        (np.zeros((17, 3)), ("coco_17", "h36m_17"), "demo", r"'demo'.*2 channels.*\(17, 3\).*'simple'"),
        (np.zeros((17, 1)), ("coco_17", "h36m_17"), "gast", "2 channels"),
        (np.zeros((17, 2)), ("coco_17", "h36m_17"), "mean", "None, simple, demo, gast; got 'mean'"),
        (np.zeros((16, 2)), ("mpii_16", "h36m_17"), "demo", "must be None.*got 'demo'"),
        (np.zeros((17, 2)), ("posetrack_17", "h36m_17"), "simple", "must be None"),
        (np.zeros((18, 2)), ("openpose_18", "coco_17"), "simple", "must be None"),
        (np.zeros((17, 2)), ("coco_17", "coco_17"), "simple", "must be None"),
        (np.zeros((17, 2)), ("coco_17", "smpl_24"), None, "no conversion from coco_17 to smpl_24.*h36m_17.*lsp_14"),
        (np.zeros((14, 2)), ("lsp_14", "h36m_17"), None, "reach nothing"),
        (np.zeros((17, 2)), ("coco_17", "h36m"), None, "unknown skeleton 'h36m'"),
    ],
)
def test_bad_conversions(keypoints, pair, method, message):
    with pytest.raises(ValueError, match=message):
        convert(keypoints, *pair, method)


def test_bad_arguments(coco):
    with pytest.raises(ValueError, match=r"confidence must have shape \(17,\).*\(16,\)"):
        convert_with_confidence(coco, np.ones(16), "coco_17", "h36m_17")
    with pytest.raises(ValueError, match="reduce must be 'mean' or 'min', got 'max'"):
        convert_with_confidence(coco, np.ones(17), "coco_17", "h36m_17", reduce="max")
    with pytest.raises(ValueError, match="confidence must be a NumPy array"):
        convert_with_confidence(coco, [1.0] * 17, "coco_17", "h36m_17")
    with pytest.raises(ValueError, match=r"2 or 3 channels, got shape \(17, 4\)"):
        flip(np.zeros((17, 4)), "coco_17")
    with pytest.raises(ValueError, match="positions have shape"):
        bone_lengths(np.zeros((16, 3)), "h36m_17")
    with pytest.raises(ValueError, match="h36m_17 has 17 joints"):
        repair_low_confidence_legs(np.zeros((25, 2)), np.zeros(25))
    with pytest.raises(ValueError, match="confidence must have shape"):
        repair_low_confidence_legs(np.zeros((4, 17, 2)), np.zeros(17))


# --- values of the original implementations --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["numpy", "torch"])
def values(request):
    if not PARITY.is_dir():
        pytest.skip("the reference values of the original implementations are not here")
    from safetensors import numpy, torch

    load = numpy.load_file if request.param == "numpy" else torch.load_file
    return load(PARITY / "io.safetensors") | load(PARITY / "io_derived.safetensors")


def assert_pixels_equal(out, expected):
    assert out.dtype == expected.dtype and out.shape == expected.shape
    np.testing.assert_allclose(np.asarray(out), np.asarray(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "source, target, method, given, expected",
    [
        ("coco_17", "h36m_17", "demo", "coco_person", "h36m_demo_format_keypoints"),
        ("mpii_16", "h36m_17", None, "mpii16", "h36m_from_mpii16"),
        ("mpi_inf_3dhp_28", "mpi_inf_3dhp_17", None, "mpi28", "mpi17"),
        ("mpi_inf_3dhp_17", "h36m_17", None, "mpi17", "h36m_from_mpi17_permutation"),
        ("mpi_inf_3dhp_28", "h36m_17", None, "mpi28", "h36m_from_mpi17_permutation"),
        ("h36m_17", "mpi_inf_3dhp_17", None, "h36m_from_mpi17_permutation", "mpi17"),
        ("body_25", "coco_17", None, "body25", "coco17_from_body25"),
        ("openpose_18", "coco_17", None, "openpose_coco18", "coco17_from_openpose_coco18"),
        ("mediapipe_33", "coco_17", None, "mediapipe33", "coco17_from_mediapipe33"),
        ("coco_17", "h36m_17", None, "coco17", "h36m_simple_from_coco17"),
        ("halpe_26", "h36m_17", None, "halpe26", "h36m_from_halpe26"),
        ("h36m_17", "humaneva_15", None, "h36m17", "humaneva15_from_h36m17"),
        ("h36m_17", "h36m_16", None, "h36m17", "h36m16_from_h36m17"),
        ("h36m_17", "lsp_14", None, "h36m17", "lsp14_from_h36m17"),
        ("h36m_32", "h36m_17", None, "h36m32", "h36m17_from_h36m32"),
        ("smpl_24", "h36m_17", None, "smpl24", "h36m_approx_from_smpl24_kappa1.2"),
    ],
)
def test_reference_conversions(values, source, target, method, given, expected):
    assert_pixels_equal(convert(values[given], source, target, method), values[expected])


def test_reference_demo_of_one_person(values):
    for method in ("demo", "gast"):
        out = convert(values["coco_person"][0], "coco_17", "h36m_17", method)
        assert_pixels_equal(out, values[f"h36m_{method}_person0"])
    _, _, mask = convert_with_confidence(values["coco_person"], values["coco_scores"], "coco_17", "h36m_17", method="demo")
    frames = np.flatnonzero(np.asarray(mask[0]).any(axis=-1))
    np.testing.assert_array_equal(frames, values["h36m_demo_person0_valid_frames"])


def test_reference_confidences(values):
    keypoints, confidence, _ = convert_with_confidence(values["coco_person"], values["coco_scores"], "coco_17", "h36m_17", method="demo")
    assert_pixels_equal(keypoints, values["h36m_demo_format_keypoints"])
    np.testing.assert_allclose(confidence, values["h36m_demo_format_scores"], atol=1e-6)


def test_left_and_right_are_not_swapped(coco):
    """A known faulty table takes COCO's left leg for H36M's right one, and so on for all limbs."""
    faulty = [11, 13, 15, 12, 14, 16, 6, 8, 10, 5, 7, 9]
    limbs = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
    for method in METHODS:
        pose = convert(coco, "coco_17", "h36m_17", method)[limbs]
        assert (np.abs(pose - coco[faulty]).max(axis=-1) > 1).all()

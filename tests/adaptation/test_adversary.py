"""The augmentor and its judges: who learns when, what a saved game forgets, and where the game leads."""

import math
from pathlib import Path

import pytest
import torch

from probpose.adaptation import PoseAdversary
from probpose.data import MocapClips
from probpose.geometry import Camera, rotation_looking_along
from probpose.skeletons import bone_lengths, convert

ARCHIVE = Path(__file__).resolve().parents[2] / "examples" / "data" / "tiny_mocap.npz"
LOCAL = MocapClips(ARCHIVE, split=None).local
CAMERA = Camera((2.29, 2.29), (0.0, 0.0), slope_limit=math.inf)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def people(clips, generator, degrees=0.0, frames=7):
    """Real motions from all sides, seen from so far above the horizon: `(clips, frames, 17, 3)`, relative to the root."""
    first = torch.randint(len(LOCAL) - frames, (clips,), generator=generator)
    angle = 2 * math.pi * torch.rand(clips, generator=generator)
    down = torch.full_like(angle, -math.tan(math.radians(degrees)))
    look = rotation_looking_along(torch.stack([angle.cos(), angle.sin(), down], dim=-1))
    return torch.einsum("cij,cfkj->cfki", look, LOCAL[first[:, None] + torch.arange(frames)])


def view(pose):
    return CAMERA.project(pose + torch.tensor([0.0, 0.0, 5.0]))


def start(seed=0, **options):
    torch.manual_seed(seed)
    return PoseAdversary(**{"head_start": 0} | options)


def play(adversary, generator, turns=1, degrees=40.0, **options):
    """Turns against people that the target sees from above."""
    for _ in range(turns):
        source, target = people(8, generator, **options), view(people(8, generator, degrees, frames=1)).flatten(0, 1)
        augmented = adversary.step(source, target, view, generator)
    return source, augmented


def learned(network, before):
    return any(not torch.equal(new, old) for new, old in zip(network.parameters(), before))


def copies(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


def networks(adversary):
    return {"augmentor": adversary.augmentor, "structure": adversary.structure, "keypoints": adversary.keypoints}


def who_learns(adversary, turns, generator):
    """Names of the networks that learn in each of some turns."""
    found = []
    for _ in range(turns):
        before = {name: copies(network) for name, network in networks(adversary).items()}
        play(adversary, generator)
        found.append({name for name, network in networks(adversary).items() if learned(network, before[name])})
    return found


# Who learns


def test_all_three_learn():
    assert who_learns(start(), 2, seeded())[1] == {"augmentor", "structure", "keypoints"}


def test_judges_have_a_head_start():
    first, second, third, fourth = who_learns(start(head_start=2), 4, seeded())
    assert "augmentor" not in first | second and "augmentor" in third & fourth
    assert first | second == {"structure", "keypoints"}


def test_certain_judges_stop_the_augmentor():
    adversary = start()
    play(adversary, seeded())
    adversary.certainty.fill_(1.0)
    first, second = who_learns(adversary, 2, seeded(1))
    assert first | second == {"structure", "keypoints"}
    adversary.certainty.fill_(0.5)
    assert "augmentor" in who_learns(adversary, 1, seeded(1))[0]


def test_certainty_grows_with_the_judges():
    """People upside down are easily told from those who stand."""
    adversary, generator = start(learning_rate=1e-3, head_start=10**6), seeded()
    play(adversary, generator, 40, degrees=-180.0)
    low = adversary.certainty.item()
    play(adversary, generator, 40, degrees=80.0)
    assert 0.5 < low < adversary.certainty.item() <= 1


def test_without_whole_people_in_the_target_only_the_augmentor_learns():
    adversary, generator = start(), seeded()
    before = {name: copies(network) for name, network in networks(adversary).items()}
    for _ in range(2):
        adversary.step(people(8, generator), torch.zeros(0, 17, 2), view, generator)
    assert {name for name, network in networks(adversary).items() if learned(network, before[name])} == {"augmentor"}
    assert adversary.certainty == 0.5


# What comes out


def test_augmented_clips():
    source, augmented = play(start(output_gain=1.0), seeded(), turns=2, frames=9)
    for pose in (augmented.bent, augmented.scaled, augmented.pose):
        assert pose.shape == source.shape and not pose.requires_grad and pose.isfinite().all()
    before, bent, after = (bone_lengths(pose, "h36m_17") for pose in (source, augmented.bent, augmented.pose))
    torch.testing.assert_close(bent, before, atol=1e-5, rtol=0)
    ratio = after / before
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4, rtol=0)
    assert (ratio - 1).abs().max() > 1e-3 and (ratio - 1).abs().max() <= 0.2 + 1e-4
    assert (augmented.pose - source).norm(dim=-1).mean() > 0.02


def test_it_starts_from_the_sources_own_poses():
    adversary, generator = start(), seeded()
    source, augmented = play(adversary, generator)
    strong = play(start(output_gain=1.0), seeded())[1]
    assert 0 < (augmented.pose - source).norm(dim=-1).mean() < 0.3 * (strong.pose - source).norm(dim=-1).mean()


def test_of_another_skeleton():
    torch.manual_seed(0)
    adversary, generator = PoseAdversary("humaneva_15", head_start=0), seeded()
    source = convert(people(8, generator), "h36m_17", "humaneva_15")
    for _ in range(2):
        augmented = adversary.step(source, view(source[:, 0]), view, generator)
    assert augmented.pose.shape == source.shape == (8, 7, 15, 3)


# Randomness and saving


def same(first, second):
    """Bit for bit the same state."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_generator_is_the_only_source_of_randomness():
    first, second = start(), start()
    state = torch.random.get_rng_state()
    one, other = (play(adversary, seeded(), turns=3)[1] for adversary in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(one, other)) and same(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    play(first, seeded(1))
    play(second, seeded(2))
    assert not same(first, second)


@pytest.mark.parametrize("turns", [3, 4])
def test_a_saved_game_goes_on_as_if_nothing_had_happened(turns, tmp_path):
    one, generator = start(head_start=turns + 1), seeded()
    play(one, generator, turns)
    torch.save({"networks": one.state_dict(), "optimisers": one.optimiser_state()}, tmp_path / "game.pt")
    stored = torch.load(tmp_path / "game.pt", weights_only=True)
    other, continued = start(seed=1, head_start=turns + 1), seeded()
    other.load_state_dict(stored["networks"])
    other.load_optimiser_state(stored["optimisers"])
    continued.set_state(generator.get_state())
    for _ in range(3):
        mine, theirs = play(one, generator)[1], play(other, continued)[1]
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs))
        assert same(one, other)


# Where it leads


def spine_tilt(pose):
    """By how many degrees spines lean away from the image's vertical towards the camera, mean."""
    spine = (pose[..., 8, :] - pose[..., 0, :]).unbind(-1)
    return torch.rad2deg(torch.atan2(-spine[2], -spine[1])).mean().item()


def test_people_are_turned_to_where_the_target_is_seen_from():
    adversary, generator = start(learning_rate=1e-3, head_start=30), seeded()
    turned = []
    for _ in range(150):
        source, target = people(32, generator, frames=1), view(people(32, generator, 40.0, frames=1)).flatten(0, 1)
        augmented = adversary.step(source, target, view, generator)
        turned.append(spine_tilt(augmented.pose) - spine_tilt(source))
    assert abs(sum(turned[:20])) / 20 < 5
    assert 12 < sum(turned[-10:]) / 10 < 50

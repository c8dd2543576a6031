"""Windows cover a clip, and their blend is the clip."""

from itertools import pairwise

import pytest
import torch

from probpose.pipelines.windows import blend_weights, cut_windows, window_starts


@pytest.mark.parametrize("window", [1, 2, 9, 27])
@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 18, 26, 27, 28, 100])
def test_every_frame_is_covered_and_weights_sum_to_one(window, frames):
    for overlap in {0, window // 3, window - 1}:
        starts = window_starts(frames, window, overlap)
        assert starts == sorted(set(starts)) and starts[0] == 0
        covered = {frame for start in starts for frame in range(start, start + window)}
        assert covered == set(range(max(frames, window)))
        assert all(b - a <= window - overlap for a, b in pairwise(starts)), "neighbours share at least the overlap"
        weights = blend_weights(starts, window, frames)
        assert weights.shape == (len(starts), window) and (weights > 0).all()
        total = torch.zeros(max(frames, window))
        for start, weight in zip(starts, weights):
            total[start : start + window] += weight
        torch.testing.assert_close(total, torch.ones_like(total))


def test_the_last_window_is_right_aligned():
    assert window_starts(25, 9) == [0, 9, 16]
    assert window_starts(18, 9) == [0, 9]
    assert window_starts(5, 9) == [0]
    assert window_starts(25, 9, overlap=3) == [0, 6, 12, 16]


def test_cut_and_blend_give_the_clip_back():
    clip = torch.randn(2, 23, 4, generator=torch.Generator().manual_seed(0))
    starts = window_starts(23, 9, 3)
    windows = cut_windows(clip, starts, 9, dim=1)
    assert windows.shape == (len(starts), 2, 9, 4)
    back = torch.zeros_like(clip)
    for start, window, weight in zip(starts, windows, blend_weights(starts, 9, 23)):
        back[:, start : start + 9] += weight[:, None] * window
    torch.testing.assert_close(back, clip)


def test_a_short_clip_repeats_its_last_frame():
    clip = torch.arange(5.0).reshape(1, 5, 1)
    assert cut_windows(clip, [0], 9, dim=1).flatten().tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert cut_windows(clip[0], [0], 9, dim=-2).flatten().tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert torch.equal(blend_weights([0], 9, 5), torch.ones(1, 9))


def test_errors():
    for overlap in (-1, 9):
        with pytest.raises(ValueError, match=f"overlap must lie in 0..8, got {overlap}"):
            window_starts(20, 9, overlap)
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        window_starts(0, 9)

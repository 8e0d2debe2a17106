"""The attention module: what it starts from, and what its recorder tells."""

from __future__ import annotations

import pytest
import torch

from stdetr.models.attention import Samples, STDeformableAttention
from stdetr.ops import st_deform_attn, use_backend

DISTANCES = torch.tensor([[[-1.0, 0.0, 0.0], [2.0, 1.0, -20.0]]])


def test_at_first_a_frame_counts_less_the_farther_it_is() -> None:
    attention = STDeformableAttention(width=8, heads=2, levels=1, points=2, reach=3, decay=0.5)
    expected = torch.tensor([-1.5, -1.0, -0.5, -0.5, -1.0, -1.5])[:, None].expand(-1, 4)  # dt = -3 .. -1, 1 .. 3
    assert torch.equal(attention.logit_table.detach(), expected)
    recorded: list[Samples] = []
    attention.recorder = recorded.append
    frames = torch.tensor([[[0, 1, 2]]])
    attention(
        torch.randn(1, 1, 8), torch.full((1, 1, 3, 2), 0.5), torch.randn(1, 3, 4, 2, 4), ((2, 2),),
        torch.ones(1, 1, 2), frames, torch.tensor([[[-1.0, 0.0, 4.0]]]),
    )  # fmt: skip
    # Shares of the frames in each head: exp(-0.5), 1 and, beyond the reach, exp(-1.5).
    shares = torch.tensor([-0.5, 0.0, -1.5]).softmax(0)
    torch.testing.assert_close(recorded[0].weights.sum((-1, -2))[0, 0], shares.expand(2, -1))


def test_the_recorded_samples_give_the_output() -> None:
    """With boxes, padding and a masked frame: sampling the recorded points again is what the module computed."""
    torch.manual_seed(0)
    attention = STDeformableAttention(width=8, heads=2, levels=2, points=2)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    attention.output_proj = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    recorded: list[Samples] = []
    attention.recorder = recorded.append
    shapes, ratios = ((4, 3), (2, 2)), torch.tensor([[[0.9, 0.6], [0.8, 0.7]]])
    value = torch.randn(1, 3, 16, 2, 4)
    frames = torch.tensor([[[0, 1, -1], [2, 1, 0]]])
    some = torch.randn(1, 2, 2, 3)
    for size in (2, 4):
        for slots, dt, frame_logits in ((1, None, None), (3, DISTANCES, None), (3, DISTANCES, some)):
            index = frames[..., :slots]
            out = attention(
                torch.randn(1, 2, 8), torch.rand(1, 2, slots, size), value, shapes, ratios, index, dt, frame_logits
            )  # fmt: skip
            samples = recorded.pop()
            padded = samples.locations * ratios[:, None, None, None, :, None]
            again = st_deform_attn(value, shapes, padded, samples.weights, index)
            torch.testing.assert_close(out, again, atol=1e-5, rtol=1e-5)


def _aware() -> STDeformableAttention:
    """Width 4, two heads: phi(q) = (2, 0) in head 0 and (0, -2) in head 1; psi is the identity."""
    attention = STDeformableAttention(width=4, heads=2, levels=1, points=3, decay=0.0, frame_weights="content")
    assert attention.frame_query is not None and attention.frame_key is not None
    with torch.no_grad():
        attention.frame_query.bias.copy_(torch.tensor([2.0, 0.0, 0.0, -2.0]))
        attention.frame_key.weight.copy_(torch.eye(4))
    return attention


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_what_a_frame_shows_decides_its_share(backend: str) -> None:
    """By hand: with D = 2 a state adds 2 / sqrt(2) times its first number in head 0, minus its last in head 1."""
    attention, recorded = _aware(), []
    attention.recorder = recorded.append
    # One place on three frames.
    states = torch.tensor([[[[1.0, 9.0, 9.0, 0.0], [0.0, 9.0, 9.0, 1.0], [-1.0, 9.0, 9.0, 0.0]]]])
    query, frames = torch.randn(1, 1, 1, 4), torch.tensor([[[2, 0, -1, 1]]])
    frame_logits = attention.frame_logits(query, states, frames)
    root = 2**0.5
    expected = torch.tensor([[-root, root, root, 0.0], [0.0, 0.0, 0.0, -root]])
    torch.testing.assert_close(frame_logits[0, 0, :, 0, [0, 1, 3]], expected[:, [0, 1, 3]])
    with use_backend(backend if backend == "reference" else "auto"):
        out = attention(
            query[:, 0], torch.full((1, 1, 4, 2), 0.5), torch.randn(1, 3, 4, 2, 2), ((2, 2),), torch.ones(1, 1, 2),
            frames[:, :1], torch.zeros(1, 1, 4), frame_logits[:, 0].transpose(1, 2).reshape(1, 1, 2, 4),
        )  # fmt: skip
    assert torch.isfinite(out).all()
    shares = recorded[0].weights.sum((-1, -2))[0, 0]
    expected[:, 2] = -torch.inf  # masked
    torch.testing.assert_close(shares, expected.softmax(-1))


def test_frame_logits_stay_float32_under_autocast() -> None:
    attention, states = _aware(), torch.randn(1, 2, 3, 4)
    frames = torch.arange(3).expand(1, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention.frame_logits(states, states, frames)
    assert found is not None and found.dtype == torch.float32
    # Only the projections are rounded to bfloat16; the product of two such numbers is not.
    keys = states.bfloat16().float()
    expected = torch.stack((keys[..., 0], -keys[..., 3]), 2)[:, :, :, None] * 2**0.5
    torch.testing.assert_close(found, expected.expand_as(found))


def test_parameters_for_frames_leave_the_others_as_they_start() -> None:
    def start(frame_weights: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(3)
        module = STDeformableAttention(width=8, heads=2, levels=1, points=2, frame_weights=frame_weights)
        return module.state_dict(), torch.rand(2)

    without, after = start("distance")
    for frame_weights in ("content", "idle"):
        state, number = start(frame_weights)
        assert set(state) - set(without) == {"frame_query.weight", "frame_query.bias", "frame_key.weight"}
        assert all(torch.equal(state[name], value) for name, value in without.items())
        assert torch.equal(number, after), "the random state goes on as without them"
        assert not state["frame_query.weight"].any() and state["frame_key.weight"].any()

"""The attention module: what it starts from, and what its recorder tells."""

from __future__ import annotations

import torch

from stdetr.models.attention import Samples, STDeformableAttention
from stdetr.ops import st_deform_attn


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
    for size in (2, 4):
        for slots, dt in ((1, None), (3, torch.tensor([[[-1.0, 0.0, 0.0], [2.0, 1.0, -20.0]]]))):
            index = frames[..., :slots]
            out = attention(
                torch.randn(1, 2, 8), torch.rand(1, 2, slots, size), value, shapes, ratios, index, dt
            )  # fmt: skip
            samples = recorded.pop()
            padded = samples.locations * ratios[:, None, None, None, :, None]
            again = st_deform_attn(value, shapes, padded, samples.weights, index)
            torch.testing.assert_close(out, again, atol=1e-5, rtol=1e-5)

"""The neck: what the top-down path adds."""

from __future__ import annotations

import torch

from stdetr.models.neck import Neck


def _necks() -> tuple[Neck, Neck]:
    """Without and with the top-down path, whose convolutions are the identity; otherwise with equal weights."""
    plain, added = (Neck(channels=(4, 6), width=8, levels=3, norm_groups=2, top_down=flag) for flag in (False, True))
    added.load_state_dict(plain.state_dict(), strict=False)
    assert added.smooth is not None
    for convolution in added.smooth:
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    return plain, added


def test_top_down_adds_each_coarser_level_to_the_finer_one() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 6, 4, 4, generator=generator)]
    sizes = torch.tensor([[64, 64]])
    with torch.no_grad():
        plain, added = (neck(maps, sizes, (64, 64), 1).features[0, 0] for neck in _necks())
    fine, middle, coarse = plain.split((64, 16, 4))

    def up(tokens: torch.Tensor, side: int) -> torch.Tensor:
        """Each token four times, on a map of twice the side."""
        return tokens.view(side, side, 8).repeat_interleave(2, 0).repeat_interleave(2, 1).flatten(0, 1)

    middle = middle + up(coarse, 2)
    torch.testing.assert_close(added, torch.cat((fine + up(middle, 4), middle, coarse)))

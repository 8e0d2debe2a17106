"""The layer under the name and with the arguments that Hugging Face transformers and its kernel hub give it.

Shape legend
    B images    S tokens of an image, sum over levels of h x w    H heads    D channels per head
    Q queries    L levels    K points per head and level
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stdetr.ops.attention import ms_deform_attn


class MultiScaleDeformableAttention(nn.Module):
    """``ms_deform_attn`` as a layer without state; on a kernel hub, no other member or method is allowed.

    ``level_start_index``, ``im2col_step`` and the tensor of shapes are accepted and not needed.
    """

    can_torch_compile = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Value B,S,H,D; locations B,Q,H,L,K,2 in [0,1]; weights B,Q,H,L,K.  Returns B,Q,H*D in value's dtype."""
        return ms_deform_attn(value, value_spatial_shapes_list, sampling_locations, attention_weights)

"""The attention op: public functions, PyTorch reference, kernels and the choice between them."""

from __future__ import annotations

from stdetr.ops.attention import ms_deform_attn, st_deform_attn, st_deform_attn_fused
from stdetr.ops.backends import Backend, backend, use_backend
from stdetr.ops.patch import TransformersPatch, patch_transformers
from stdetr.ops.temporal import st_deform_attn_temporal

__all__ = [
    "Backend",
    "TransformersPatch",
    "backend",
    "ms_deform_attn",
    "patch_transformers",
    "st_deform_attn",
    "st_deform_attn_fused",
    "st_deform_attn_temporal",
    "use_backend",
]

"""Hugging Face transformers' multi-scale deformable attention, run by our operator.

Shape legend
    B images    S tokens of an image, sum over levels of h x w    H heads    D channels per head
    Q queries    L levels    K points per head and level    P points per head of all levels

transformers writes the layer in three forms, each repeated in the file of every model that has it: a class without
state (Deformable DETR and its relatives), a function (Mask2Former and OneFormer), and a function whose levels may have
different numbers of points (RT-DETR v2 and its relatives).  All three compute what ``ms_deform_attn`` computes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from torch import Tensor

from stdetr.ops.attention import ms_deform_attn
from stdetr.ops.layers import MultiScaleDeformableAttention

MODELS: dict[str, tuple[str, ...]] = {
    "MultiScaleDeformableAttention": (
        "deformable_detr",
        "grounding_dino",
        "lw_detr",
        "mm_grounding_dino",
        "omdet_turbo",
        "pp_doclayout_v2",
        "pp_doclayout_v3",
        "pp_doclayout_v4",
        "rf_detr",
        "rt_detr",
    ),
    "multi_scale_deformable_attention": ("mask2former", "oneformer"),
    "multi_scale_deformable_attention_v2": ("d_fine", "deimv2", "rt_detr_v2"),
}
"""Each form of the layer, and the models (folders of ``transformers.models``) that define it."""
KNOWN_VERSIONS = "4.57 to 5.23"


def _pairs(shapes: Tensor | Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    rows = shapes.tolist() if isinstance(shapes, Tensor) else shapes
    return [(height, width) for height, width in rows]


def _function(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    return ms_deform_attn(value, _pairs(value_spatial_shapes), sampling_locations, attention_weights)


def _uneven(original: Callable[..., Any] | None) -> Callable[..., Tensor]:
    """The form with locations B,Q,H,P,2 and weights B,Q,H,P, where level l has ``num_points_list[l]`` of the P points.

    ``method="discrete"`` rounds to the nearest pixel, which our operator does not do: ``original`` runs.
    """

    def attention(
        value: Tensor,
        value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: list[int],
        method: str = "default",
    ) -> Tensor:
        if method != "default":
            assert original is not None
            return original(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
        shapes, points = _pairs(value_spatial_shapes), list(num_points_list)
        if len(set(points)) == 1:
            split = (len(points), points[0])
            return ms_deform_attn(
                value, shapes, sampling_locations.unflatten(3, split), attention_weights.unflatten(3, split)
            )
        levels = zip(
            shapes,
            value.split([height * width for height, width in shapes], 1),
            sampling_locations.split(points, 3),
            attention_weights.split(points, 3),
            strict=True,
        )
        parts = [ms_deform_attn(v, [shape], x[:, :, :, None], w[:, :, :, None]) for shape, v, x, w in levels]
        return sum(parts[1:], start=parts[0])

    return attention


REPLACEMENTS: dict[str, Callable[[Callable[..., Any] | None], Callable[..., Any]]] = {
    "MultiScaleDeformableAttention": lambda original: MultiScaleDeformableAttention.forward,
    "multi_scale_deformable_attention": lambda original: _function,
    "multi_scale_deformable_attention_v2": _uneven,
}
_active: TransformersPatch | None = None


class TransformersPatch:
    """What ``patch_transformers`` replaced; ``undo`` (or the end of a ``with`` block) puts the originals back.

    ``layers`` names them, as "deformable_detr.MultiScaleDeformableAttention".
    """

    def __init__(self, places: Sequence[tuple[str, Any, str, Callable[..., Any]]]) -> None:
        self.layers = [name for name, *_ in places]
        self._before = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute, _ in places]
        for _, owner, attribute, replacement in places:
            setattr(owner, attribute, replacement)

    def undo(self) -> None:
        """Puts the originals back.  A second call does nothing."""
        global _active
        for owner, attribute, original in self._before:
            setattr(owner, attribute, original)
        self._before = []
        if _active is self:
            _active = None

    def __enter__(self) -> TransformersPatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.undo()


def patch_transformers() -> TransformersPatch:
    """Lets every model of transformers run its multi-scale deformable attention through ``ms_deform_attn``.

    It holds for models that exist already and for those built later, until ``undo`` of the returned object is called
    or its ``with`` block ends.  Weights, configurations and outputs stay what they are, and so does every other part
    of a model.  A module whose forward the library `kernels` has replaced keeps that replacement.

    Raises:
        ValueError: transformers is missing, is patched already, or has the layer in a form that is not known here;
            then nothing has been changed.
    """
    global _active
    if _active is not None:
        raise ValueError("transformers is patched already; undo that patch before a new one")
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ValueError("patch_transformers needs transformers: pip install 'stdetr[peers]'") from error
    places = []
    for name, models in MODELS.items():
        for model in models:
            path = f"transformers.models.{model}"
            if find_spec(path) is None:  # a model that this version does not have
                continue
            module = importlib.import_module(f"{path}.modeling_{model}")
            found = getattr(module, name, None)
            owner, attribute = (found, "forward") if inspect.isclass(found) else (module, name)
            original = getattr(owner, attribute, None)
            replacement = REPLACEMENTS[name](original)
            wanted = list(inspect.signature(replacement).parameters)
            got = None if original is None else list(inspect.signature(original).parameters)
            if got != wanted:
                how = "does not exist" if got is None else f"takes ({', '.join(got)})"
                raise ValueError(
                    f"transformers {transformers.__version__}: {path}.{name} {how}, expected ({', '.join(wanted)}); "
                    f"patch_transformers knows transformers {KNOWN_VERSIONS}"
                )
            places.append((f"{model}.{name}", owner, attribute, replacement))
    if not places:
        raise ValueError(
            f"transformers {transformers.__version__} has no model with multi-scale deformable attention that "
            f"patch_transformers knows; it knows transformers {KNOWN_VERSIONS}"
        )
    _active = TransformersPatch(places)
    return _active

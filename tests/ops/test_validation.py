"""Wrong arguments: one ValueError that names the argument and both shapes, before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stdetr.ops import ms_deform_attn, st_deform_attn, st_deform_attn_fused

SHAPES = [(5, 7), (3, 2)]  # S = 41


def plain(**changed):
    arguments = {
        "value": torch.zeros(2, 3, 41, 2, 4),
        "spatial_shapes": SHAPES,
        "sampling_locations": torch.zeros(2, 5, 2, 3, 2, 1, 2),
        "attention_weights": torch.zeros(2, 5, 2, 3, 2, 1),
        "frame_index": None,
    }
    return st_deform_attn(**{**arguments, **changed})


def fused(**changed):
    arguments = {
        "value": torch.zeros(2, 3, 41, 2, 4),
        "spatial_shapes": SHAPES,
        "reference": torch.zeros(2, 5, 3, 4),
        "offsets": torch.zeros(2, 5, 2, 3, 2, 1, 2),
        "logits": torch.zeros(2, 5, 2, 3, 2, 1),
    }
    return st_deform_attn_fused(**{**arguments, **changed})


def test_the_arguments_that_the_others_change_are_right():
    assert plain().shape == fused().shape == (2, 5, 8)


@pytest.mark.parametrize(
    ("call", "changed", "texts"),
    [
        (plain, {"value": torch.zeros(2, 41, 2, 4)}, ["value", "B,T,S,H,D", "(2, 41, 2, 4)"]),
        (plain, {"value": torch.zeros(2, 3, 41, 2, 4, dtype=torch.int64)}, ["value", "int64"]),
        (plain, {"value": [1.0]}, ["value", "list"]),
        (plain, {"spatial_shapes": [(5, 7), (3, 3)]}, ["spatial_shapes", "44", "S = 41"]),
        (plain, {"spatial_shapes": torch.tensor(SHAPES)}, ["spatial_shapes", "tensor", "host"]),
        (plain, {"spatial_shapes": [(5, 7), (6,)]}, ["spatial_shapes", "(6,)"]),
        (plain, {"spatial_shapes": [(5, 7), (-3, -2)]}, ["spatial_shapes", "(-3, -2)"]),
        (plain, {"spatial_shapes": 41}, ["spatial_shapes", "int"]),
        (plain, {"spatial_shapes": [("5", "7"), (3, 2)]}, ["spatial_shapes", "positive integers", "('5', '7')"]),
        (plain, {"spatial_shapes": [(5, 7), (True, 6)]}, ["spatial_shapes", "positive integers", "(True, 6)"]),
        (plain, {"spatial_shapes": [(np.float32(5), 7), (3, 2)]}, ["spatial_shapes", "positive integers", "5.0"]),
        (plain, {"sampling_locations": torch.zeros(2, 5, 2, 3, 2, 2)}, ["sampling_locations", "B,Q,H,F,L,K,2"]),
        (
            plain,
            {"sampling_locations": torch.zeros(2, 5, 3, 3, 2, 1, 2)},
            ["sampling_locations", "(2, 5, 2, 3, 2, 1, 2)", "(2, 5, 3, 3, 2, 1, 2)", "(2, 3, 41, 2, 4)"],
        ),
        (
            plain,
            {"attention_weights": torch.zeros(2, 5, 2, 3, 2, 4)},
            ["attention_weights", "(2, 5, 2, 3, 2, 1)", "(2, 5, 2, 3, 2, 4)"],
        ),
        (plain, {"attention_weights": torch.zeros(2, 5, 2, 3, 2, 1).half()}, ["attention_weights", "float16"]),
        (
            plain,
            {"sampling_locations": torch.zeros(2, 5, 2, 3, 2, 1, 2, device="meta")},
            ["sampling_locations", "meta", "cpu"],
        ),
        (plain, {"frame_index": torch.zeros(5, 2, dtype=torch.int64)}, ["frame_index", "(5, 3)", "(5, 2)"]),
        (plain, {"frame_index": torch.zeros(3, dtype=torch.int64)}, ["frame_index", "(3,)"]),
        (plain, {"frame_index": torch.zeros(5, 3)}, ["frame_index", "float32"]),
        (plain, {"frame_index": torch.full((5, 3), 3)}, ["frame_index", "-1..2", "3..3"]),
        (plain, {"frame_index": torch.full((5, 3), -2)}, ["frame_index", "-1..2", "-2..-2"]),
        (plain, {"frame_index": [[0, 1, 2]] * 5}, ["frame_index", "list"]),
        (plain, {"value": torch.zeros(2, 4, 41, 2, 4)}, ["frame_index", "F = 3", "T = 4"]),
        (fused, {"reference": torch.zeros(2, 5, 3, 3)}, ["reference", "(2, 5, 3, 3)"]),
        (fused, {"reference": torch.zeros(2, 5, 4)}, ["reference", "(2, 5, 4)"]),
        (fused, {"reference": torch.zeros(2, 4, 3, 4)}, ["reference", "(2, 5, 3, 4)", "(2, 4, 3, 4)"]),
        (fused, {"reference": torch.zeros(2, 5, 3, 4).half()}, ["reference", "float32", "float16"]),
        (fused, {"offsets": torch.zeros(2, 5, 2, 3, 2, 1, 2).bfloat16()}, ["offsets", "float32", "bfloat16"]),
        (fused, {"logits": torch.zeros(2, 5, 2, 3, 1, 1)}, ["logits", "(2, 5, 2, 3, 2, 1)", "(2, 5, 2, 3, 1, 1)"]),
        (fused, {"valid_ratios": torch.ones(2, 3, 2)}, ["valid_ratios", "(2, 2, 2)", "(2, 3, 2)"]),
        (fused, {"valid_ratios": torch.ones(2, 2, 2).long()}, ["valid_ratios", "int64"]),
    ],
)
def test_mistakes_are_named(call, changed, texts):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the texts below are the match
        call(**changed)
    message = str(error.value)
    assert "\n" not in message
    for text in texts:
        assert text in message


def test_mistakes_of_the_single_frame_op():
    value, locations, weights = torch.zeros(2, 41, 2, 4), torch.zeros(2, 5, 2, 2, 1, 2), torch.zeros(2, 5, 2, 2, 1)
    assert ms_deform_attn(value, SHAPES, locations, weights).shape == (2, 5, 8)
    with pytest.raises(ValueError, match="value must have shape"):
        ms_deform_attn(value[None], SHAPES, locations, weights)
    with pytest.raises(ValueError, match="sampling_locations must have shape"):
        ms_deform_attn(value, SHAPES, locations[:, :, :, None], weights)

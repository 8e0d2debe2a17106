// Operator schemas of the namespace STDETR_NAMESPACE, one place for both libraries; explained in SCHEMA.md.
// _C_cpu defines them (STABLE_TORCH_LIBRARY); _C_cuda, loaded after it, only adds CUDA implementations.
#pragma once

// A package for the Hub is built with a name of its own, so that several versions live in one process.
#ifndef STDETR_NAMESPACE
#define STDETR_NAMESPACE stdetr
#endif

#define STDETR_SCHEMA_FORWARD                                                              \
  "st_deform_attn_forward(Tensor value, Tensor sampling_locations, "                       \
  "Tensor attention_weights, Tensor? frame_index, int[] spatial_shapes) -> Tensor"

#define STDETR_SCHEMA_BACKWARD                                                             \
  "st_deform_attn_backward(Tensor grad_out, Tensor value, Tensor sampling_locations, "     \
  "Tensor attention_weights, Tensor? frame_index, int[] spatial_shapes, "                  \
  "bool deterministic) -> (Tensor, Tensor, Tensor)"

#define STDETR_SCHEMA_FUSED_FORWARD                                                        \
  "st_deform_attn_fused_forward(Tensor value, Tensor reference, Tensor offsets, "          \
  "Tensor logits, Tensor? frame_index, Tensor? valid_ratios, Tensor? frame_logits, "       \
  "int[] spatial_shapes) -> (Tensor, Tensor)"

#define STDETR_SCHEMA_FUSED_BACKWARD                                                       \
  "st_deform_attn_fused_backward(Tensor grad_out, Tensor out, Tensor lse, Tensor value, "  \
  "Tensor reference, Tensor offsets, Tensor logits, Tensor? frame_index, "                 \
  "Tensor? valid_ratios, Tensor? frame_logits, int[] spatial_shapes, "                     \
  "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"

#define STDETR_SCHEMA_TEMPORAL_FORWARD                                                     \
  "st_deform_attn_temporal_forward(Tensor value, Tensor reference, Tensor offsets, "       \
  "Tensor velocity, Tensor logits, Tensor offset_table, Tensor logit_table, Tensor dt, "   \
  "Tensor? frame_index, Tensor? valid_ratios, Tensor? frame_logits, "                      \
  "int[] spatial_shapes) -> (Tensor, Tensor)"

#define STDETR_SCHEMA_TEMPORAL_BACKWARD                                                    \
  "st_deform_attn_temporal_backward(Tensor grad_out, Tensor out, Tensor lse, "             \
  "Tensor value, Tensor reference, Tensor offsets, Tensor velocity, Tensor logits, "       \
  "Tensor offset_table, Tensor logit_table, Tensor dt, Tensor? frame_index, "              \
  "Tensor? valid_ratios, Tensor? frame_logits, int[] spatial_shapes, "                     \
  "bool reference_gradient, bool deterministic) "                                          \
  "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"

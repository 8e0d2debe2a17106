// The temporal operators of ../common/SCHEMA.md for CUDA tensors: the kernels form offsets and logits themselves.
//
// Nothing waits for the device, so every operator can be captured in a CUDA graph.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/schema.h"
#include "call.h"

namespace stdetr {
namespace {

// The terms of a query that all frames share, the tables, and the distances in time.
struct Parameters {
  const Tensor &offsets, &velocity, &logits, &offset_table, &logit_table, &dt;
};

struct TemporalCall : Call {
  TemporalCall(const Tensor& value, const Tensor& reference, const Parameters& given, const MaybeTensor& index,
               const MaybeTensor& valid_ratios, const MaybeTensor& frame_logits, const Sizes& shapes)
      : Call(Mode::temporal, value, shapes, axis_of("offsets", given.offsets, 6, 1), axis_of("dt", given.dt, 3, 2),
             axis_of("offsets", given.offsets, 6, 4)) {
    Problem& p = problem;
    p.table_rows = small("R", axis_of("logit_table", given.logit_table, 4, 0));
    STD_TORCH_CHECK(p.table_rows % 2 == 0, "logit_table must have an even number of rows, got ", p.table_rows);
    p.locations = read("offsets", given.offsets, storage(), pairs_shape());
    p.velocity = read("velocity", given.velocity, storage(), pairs_shape());
    p.weights = read("logits", given.logits, storage(), points_shape());
    p.offset_table = read("offset_table", given.offset_table, real, offset_table_shape());
    p.logit_table = read("logit_table", given.logit_table, real, logit_table_shape());
    p.dt = read("dt", given.dt, real, {p.batch, p.queries, p.frames});
    read_reference(reference, valid_ratios, frame_logits);
    read_frame_index(index);
  }

  Sizes logit_table_shape() const {
    const Problem& p = problem;
    return {p.table_rows, p.heads, p.levels, p.points};
  }

  Sizes offset_table_shape() const {
    Sizes shape = logit_table_shape();
    shape.push_back(2);
    return shape;
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& value, const Tensor& reference, const Tensor& offsets,
                                   const Tensor& velocity, const Tensor& logits, const Tensor& offset_table,
                                   const Tensor& logit_table, const Tensor& dt, const MaybeTensor& index,
                                   const MaybeTensor& valid_ratios, const MaybeTensor& frame_logits,
                                   const Sizes& shapes) {
  TemporalCall call(value, reference, {offsets, velocity, logits, offset_table, logit_table, dt}, index, valid_ratios,
                    frame_logits, shapes);
  return call.forward_with_lse();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, const Tensor& out, const Tensor& lse, const Tensor& value, const Tensor& reference,
    const Tensor& offsets, const Tensor& velocity, const Tensor& logits, const Tensor& offset_table,
    const Tensor& logit_table, const Tensor& dt, const MaybeTensor& index, const MaybeTensor& valid_ratios,
    const MaybeTensor& frame_logits, const Sizes& shapes, bool reference_gradient, bool deterministic) {
  TemporalCall call(value, reference, {offsets, velocity, logits, offset_table, logit_table, dt}, index, valid_ratios,
                    frame_logits, shapes);
  Problem& p = call.problem;
  const bool empty = call.empty();
  // Kernels write every element of what they are given; the rest is zeros.
  const auto gradient = [&](bool written, const Sizes& shape, ScalarType type) {
    return written ? call.make(shape, type) : call.zeros(shape, type);
  };
  Tensor grad_value = gradient(!empty, call.value_shape(), call.storage());
  Tensor grad_reference = gradient(!empty && reference_gradient, call.reference_shape(), call.real);
  Tensor grad_offsets = gradient(!empty, call.pairs_shape(), call.storage());
  Tensor grad_velocity = gradient(!empty, call.pairs_shape(), call.storage());
  Tensor grad_logits = gradient(!empty, call.points_shape(), call.storage());
  Tensor grad_offset_table = gradient(!empty, call.offset_table_shape(), call.real);
  Tensor grad_logit_table = gradient(!empty, call.logit_table_shape(), call.real);
  Tensor grad_frame_logits = call.make_grad_frame_logits(frame_logits);
  if (!empty) {
    // The kernel only reads these two.
    p.out = const_cast<void*>(call.read("out", out, call.storage(), call.out_shape()));
    p.lse = const_cast<void*>(call.read("lse", lse, call.real, {p.batch, p.queries, p.heads}));
    p.grad_reference = grad_reference.mutable_data_ptr();
    p.grad_locations = grad_offsets.mutable_data_ptr();
    p.grad_velocity = grad_velocity.mutable_data_ptr();
    p.grad_weights = grad_logits.mutable_data_ptr();
    p.grad_offset_table = grad_offset_table.mutable_data_ptr();
    p.grad_logit_table = grad_logit_table.mutable_data_ptr();
    call.backward(grad_out, grad_value, deterministic, reference_gradient);
  }
  return {grad_value,  grad_reference,    grad_offsets,     grad_velocity,
          grad_logits, grad_offset_table, grad_logit_table, grad_frame_logits};
}

}  // namespace
}  // namespace stdetr

STABLE_TORCH_LIBRARY_IMPL(STDETR_NAMESPACE, CUDA, library) {
  library.impl("st_deform_attn_temporal_forward", TORCH_BOX(&stdetr::forward));
  library.impl("st_deform_attn_temporal_backward", TORCH_BOX(&stdetr::backward));
}

// The operators of ../common/SCHEMA.md for CUDA tensors; temporal_library.cpp has the temporal ones.
//
// Nothing waits for the device, so every operator can be captured in a CUDA graph.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/schema.h"
#include "call.h"

namespace stdetr {
namespace {

Call plain_call(const Tensor& value, const Tensor& locations, const Tensor& weights, const MaybeTensor& index,
                const Sizes& shapes) {
  const auto size = [&](int64_t axis) { return axis_of("sampling_locations", locations, 7, axis); };
  Call call(Mode::plain, value, shapes, size(1), size(3), size(5));
  call.problem.locations = call.read("sampling_locations", locations, call.real, call.pairs_shape());
  call.problem.weights = call.read("attention_weights", weights, call.real, call.points_shape());
  call.read_frame_index(index);
  return call;
}

Tensor forward(const Tensor& value, const Tensor& locations, const Tensor& weights, const MaybeTensor& index,
               const Sizes& shapes) {
  Call call = plain_call(value, locations, weights, index, shapes);
  if (call.empty()) return call.zeros(call.out_shape(), call.storage());
  Tensor out = call.make(call.out_shape(), call.storage());
  call.problem.out = out.mutable_data_ptr();
  call.forward();
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const Tensor& locations,
                                            const Tensor& weights, const MaybeTensor& index, const Sizes& shapes,
                                            bool deterministic) {
  Call call = plain_call(value, locations, weights, index, shapes);
  Problem& p = call.problem;
  if (call.empty()) {
    return {call.zeros(call.value_shape(), call.storage()), call.zeros(call.pairs_shape(), call.real),
            call.zeros(call.points_shape(), call.real)};
  }
  Tensor grad_value = call.make(call.value_shape(), call.storage());
  Tensor grad_locations = call.make(call.pairs_shape(), call.real);
  Tensor grad_weights = call.make(call.points_shape(), call.real);
  p.grad_locations = grad_locations.mutable_data_ptr();
  p.grad_weights = grad_weights.mutable_data_ptr();
  call.backward(grad_out, grad_value, deterministic);
  return {grad_value, grad_locations, grad_weights};
}

Call fused_call(const Tensor& value, const Tensor& reference, const Tensor& offsets, const Tensor& logits,
                const MaybeTensor& index, const MaybeTensor& valid_ratios, const MaybeTensor& frame_logits,
                const Sizes& shapes) {
  const auto size = [&](int64_t axis) { return axis_of("offsets", offsets, 7, axis); };
  Call call(Mode::fused, value, shapes, size(1), size(3), size(5));
  call.problem.locations = call.read("offsets", offsets, call.storage(), call.pairs_shape());
  call.problem.weights = call.read("logits", logits, call.storage(), call.points_shape());
  call.read_reference(reference, valid_ratios, frame_logits);
  call.read_frame_index(index);
  return call;
}

std::tuple<Tensor, Tensor> fused_forward(const Tensor& value, const Tensor& reference, const Tensor& offsets,
                                         const Tensor& logits, const MaybeTensor& index,
                                         const MaybeTensor& valid_ratios, const MaybeTensor& frame_logits,
                                         const Sizes& shapes) {
  Call call = fused_call(value, reference, offsets, logits, index, valid_ratios, frame_logits, shapes);
  return call.forward_with_lse();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_backward(
    const Tensor& grad_out, const Tensor& out, const Tensor& lse, const Tensor& value, const Tensor& reference,
    const Tensor& offsets, const Tensor& logits, const MaybeTensor& index, const MaybeTensor& valid_ratios,
    const MaybeTensor& frame_logits, const Sizes& shapes, bool deterministic) {
  Call call = fused_call(value, reference, offsets, logits, index, valid_ratios, frame_logits, shapes);
  Problem& p = call.problem;
  Tensor grad_frame_logits = call.make_grad_frame_logits(frame_logits);
  if (call.empty()) {
    return {call.zeros(call.value_shape(), call.storage()), call.zeros(call.reference_shape(), call.real),
            call.zeros(call.pairs_shape(), call.storage()), call.zeros(call.points_shape(), call.storage()),
            grad_frame_logits};
  }
  Tensor grad_value = call.make(call.value_shape(), call.storage());
  Tensor grad_reference = call.make(call.reference_shape(), call.real);
  Tensor grad_offsets = call.make(call.pairs_shape(), call.storage());
  Tensor grad_logits = call.make(call.points_shape(), call.storage());
  // The kernel only reads these two.
  p.out = const_cast<void*>(call.read("out", out, call.storage(), call.out_shape()));
  p.lse = const_cast<void*>(call.read("lse", lse, call.real, {p.batch, p.queries, p.heads}));
  p.grad_reference = grad_reference.mutable_data_ptr();
  p.grad_locations = grad_offsets.mutable_data_ptr();
  p.grad_weights = grad_logits.mutable_data_ptr();
  call.backward(grad_out, grad_value, deterministic);
  return {grad_value, grad_reference, grad_offsets, grad_logits, grad_frame_logits};
}

}  // namespace
}  // namespace stdetr

STABLE_TORCH_LIBRARY_IMPL(STDETR_NAMESPACE, CUDA, library) {
  library.impl("st_deform_attn_forward", TORCH_BOX(&stdetr::forward));
  library.impl("st_deform_attn_backward", TORCH_BOX(&stdetr::backward));
  library.impl("st_deform_attn_fused_forward", TORCH_BOX(&stdetr::fused_forward));
  library.impl("st_deform_attn_fused_backward", TORCH_BOX(&stdetr::fused_backward));
}

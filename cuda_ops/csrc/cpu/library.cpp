// The operators of ../common/SCHEMA.md for CPU tensors, on LibTorch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/schema.h"
#include "arguments.h"
#include "large_pages.h"
#include "problem.h"

namespace stdetr_cpu {
namespace {

// Tasks are cut so that a thread gets some ten thousand multiply-adds at least.
int64_t grain(int64_t work_of_a_task) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work_of_a_task)); }

Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  Tensor made = torch::stable::new_empty(like, shape, dtype);
  if (made.numel() > 0) prefer_large_pages(made.mutable_data_ptr(), made.numel() * int64_t(made.element_size()));
  return made;
}

Tensor empty_as(const Tensor& like) {
  return empty(like, {like.sizes().begin(), like.sizes().end()}, like.scalar_type());
}

// Without points there are no slices to visit (and an empty frame_index has no address to tell it from none).
bool has_points(const Problem& a) { return a.B > 0 && a.Q > 0 && a.H > 0 && a.F > 0 && a.L > 0 && a.K > 0; }

void run_forward(const Problem& a) {
  const Kernels& kernel = kernels();
  torch::stable::parallel_for(0, a.B * a.Q, grain(a.H * a.F * a.L * a.K * a.D),
                              [&](int64_t begin, int64_t end) { kernel.forward(a, begin, end); });
}

void run_backward(const Problem& a) {
  const Kernels& kernel = kernels();
  const bool all_frames = a.kind == Kind::temporal;
  torch::stable::parallel_for(0, a.B * a.Q, grain(a.H * a.D),
                              [&](int64_t begin, int64_t end) { kernel.backward_prepare(a, begin, end); });
  const int64_t tasks = has_points(a) ? a.B * a.H * a.L * (all_frames ? 1 : a.T) : 0;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { kernel.backward(a, begin, end); });
  if (a.kind == Kind::fused || a.kind == Kind::temporal) {
    torch::stable::parallel_for(0, a.B * a.Q, grain(a.H * a.F * a.L * a.K),
                                [&](int64_t begin, int64_t end) { kernel.backward_finish(a, begin, end); });
  }
}

// Staging a slice costs a pass over it, which pays when the slice gets more corner updates than it has tokens; half
// formats always need it for their float sums.
Tensor make_grad_value(Problem& a, const Tensor& value) {
  const bool half = a.storage == Storage::bf16 || a.storage == Storage::f16;
  const int64_t updates = 4 * a.Q * a.F * a.L * a.K / std::max<int64_t>(1, a.T);
  a.grad_value_zeroed = !has_points(a) || (!half && updates < a.S);
  Tensor grad = empty_as(value);
  if (a.grad_value_zeroed) torch::stable::zero_(grad);
  a.grad_value = grad.mutable_data_ptr();
  return grad;
}

// The gradient of frame_logits, empty where there are none.  Levels are different tasks: each leaves a share.
Tensor make_grad_frame_logits(Call& call, const Tensor& value, const MaybeTensor& frame_logits) {
  Problem& a = call.problem;
  const ScalarType coord = coord_of(value);
  if (!frame_logits.has_value()) return empty(value, {0}, coord);
  Tensor grad = empty(value, {a.B, a.Q, a.H, a.F}, coord);
  Tensor shares = empty(value, {a.L, a.B, a.Q, a.H, a.F}, coord);
  torch::stable::zero_(shares);
  a.grad_frame_logits = grad.mutable_data_ptr();
  a.grad_frame_shares = shares.mutable_data_ptr();
  call.held.push_back(shares);
  return grad;
}

Tensor forward(Tensor value, Tensor locations, Tensor weights, MaybeTensor frame_index, Shapes shapes) {
  Call call;
  Problem& a = call.problem;
  read_value(call, value, shapes);
  read_points(call, Kind::plain, locations, weights, coord_of(value));
  read_frames(call, frame_index);
  Tensor out = empty(value, {a.B, a.Q, a.H * a.D}, value.scalar_type());
  a.out = out.mutable_data_ptr();
  run_forward(a);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_out, Tensor value, Tensor locations, Tensor weights, MaybeTensor frame_index, Shapes shapes,
    bool /*deterministic: always*/) {
  Call call;
  Problem& a = call.problem;
  read_value(call, value, shapes);
  read_points(call, Kind::plain, locations, weights, coord_of(value));
  read_frames(call, frame_index);
  a.grad_out = call.hold("grad_out", grad_out, value.scalar_type(), {a.B, a.Q, a.H * a.D});
  list_pairs(call);
  Tensor grad_locations = empty_as(locations), grad_weights = empty_as(weights);
  a.grad_locations = grad_locations.mutable_data_ptr();
  a.grad_weights = grad_weights.mutable_data_ptr();
  Tensor grad_value = make_grad_value(a, value);
  run_backward(a);
  return {grad_value, grad_locations, grad_weights};
}

// Output and log-sum-exp of a form with a softmax; its backward takes both.
std::tuple<Tensor, Tensor> run_softmax_forward(Problem& a, const Tensor& value) {
  Tensor out = empty(value, {a.B, a.Q, a.H * a.D}, value.scalar_type());
  Tensor lse = empty(value, {a.B, a.Q, a.H}, coord_of(value));
  a.out = out.mutable_data_ptr();
  a.lse = lse.mutable_data_ptr();
  run_forward(a);
  return {out, lse};
}

void read_saved(Call& call, const Tensor& value, const Tensor& grad_out, const Tensor& out, const Tensor& lse) {
  Problem& a = call.problem;
  a.grad_out = call.hold("grad_out", grad_out, value.scalar_type(), {a.B, a.Q, a.H * a.D});
  a.saved_out = call.hold("out", out, value.scalar_type(), {a.B, a.Q, a.H * a.D});
  a.saved_lse = call.hold("lse", lse, coord_of(value), {a.B, a.Q, a.H});
  list_pairs(call);
  Tensor delta = empty(value, {a.B, a.Q, a.H}, coord_of(value));
  a.delta = delta.mutable_data_ptr();
  call.held.push_back(delta);
}

std::tuple<Tensor, Tensor> fused_forward(
    Tensor value, Tensor reference, Tensor offsets, Tensor logits, MaybeTensor frame_index, MaybeTensor valid_ratios,
    MaybeTensor frame_logits, Shapes shapes) {
  Call call;
  Problem& a = call.problem;
  read_value(call, value, shapes);
  read_points(call, Kind::fused, offsets, logits, value.scalar_type());
  read_frames(call, frame_index);
  read_fused(call, value, reference, valid_ratios, frame_logits);
  return run_softmax_forward(a, value);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_backward(
    Tensor grad_out, Tensor out, Tensor lse, Tensor value, Tensor reference, Tensor offsets, Tensor logits,
    MaybeTensor frame_index, MaybeTensor valid_ratios, MaybeTensor frame_logits, Shapes shapes,
    bool /*deterministic: always*/) {
  Call call;
  Problem& a = call.problem;
  read_value(call, value, shapes);
  read_points(call, Kind::fused, offsets, logits, value.scalar_type());
  read_frames(call, frame_index);
  read_fused(call, value, reference, valid_ratios, frame_logits);
  read_saved(call, value, grad_out, out, lse);
  Tensor grad_reference = empty_as(reference), grad_offsets = empty_as(offsets), grad_logits = empty_as(logits);
  a.grad_reference = grad_reference.mutable_data_ptr();
  a.grad_locations = grad_offsets.mutable_data_ptr();
  a.grad_weights = grad_logits.mutable_data_ptr();
  Tensor grad_frame_logits = make_grad_frame_logits(call, value, frame_logits);
  Tensor grad_value = make_grad_value(a, value);
  run_backward(a);
  return {grad_value, grad_reference, grad_offsets, grad_logits, grad_frame_logits};
}

struct Temporal {
  Tensor offsets, velocity, logits, offset_table, logit_table, dt;
};

void read_temporal(Call& call, const Tensor& value, const Temporal& given, const MaybeTensor& frame_index) {
  Problem& a = call.problem;
  const ScalarType storage = value.scalar_type(), coord = coord_of(value);
  read_points(call, Kind::temporal, given.offsets, given.logits, storage);
  STD_TORCH_CHECK(given.dt.dim() == 3, "dt must be B,Q,F");
  a.F = given.dt.size(2);
  a.dt = call.hold("dt", given.dt, coord, {a.B, a.Q, a.F});
  a.velocity = call.hold("velocity", given.velocity, storage, {a.B, a.Q, a.H, a.L, a.K, 2});
  STD_TORCH_CHECK(given.logit_table.dim() == 4, "logit_table must be R,H,L,K");
  a.R = given.logit_table.size(0);
  a.offset_table = call.hold("offset_table", given.offset_table, coord, {a.R, a.H, a.L, a.K, 2});
  a.logit_table = call.hold("logit_table", given.logit_table, coord, {a.R, a.H, a.L, a.K});
  read_frames(call, frame_index);
}

std::tuple<Tensor, Tensor> temporal_forward(
    Tensor value, Tensor reference, Tensor offsets, Tensor velocity, Tensor logits, Tensor offset_table,
    Tensor logit_table, Tensor dt, MaybeTensor frame_index, MaybeTensor valid_ratios, MaybeTensor frame_logits,
    Shapes shapes) {
  Call call;
  Problem& a = call.problem;
  read_value(call, value, shapes);
  read_temporal(call, value, {offsets, velocity, logits, offset_table, logit_table, dt}, frame_index);
  read_fused(call, value, reference, valid_ratios, frame_logits);
  return run_softmax_forward(a, value);
}

// A table's gradient from each clip's share; `share` holds three numbers per entry, of which `first`.. are this table's.
template <class C>
void sum_clips(const Problem& a, const std::vector<double>& shares, int first, int numbers, void* to) {
  const int64_t entries = a.R * a.H * a.L * a.K;
  for (int64_t i = 0; i < entries; ++i)
    for (int part = 0; part < numbers; ++part) {
      double sum = 0;
      for (int64_t b = 0; b < a.B; ++b) sum += shares[size_t((b * entries + i) * 3 + first + part)];
      static_cast<C*>(to)[i * numbers + part] = C(sum);
    }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> temporal_backward(
    Tensor grad_out, Tensor out, Tensor lse, Tensor value, Tensor reference, Tensor offsets, Tensor velocity,
    Tensor logits, Tensor offset_table, Tensor logit_table, Tensor dt, MaybeTensor frame_index,
    MaybeTensor valid_ratios, MaybeTensor frame_logits, Shapes shapes, bool reference_gradient,
    bool /*deterministic: always*/) {
  Call call;
  Problem& a = call.problem;
  read_value(call, value, shapes);
  read_temporal(call, value, {offsets, velocity, logits, offset_table, logit_table, dt}, frame_index);
  read_fused(call, value, reference, valid_ratios, frame_logits);
  const ScalarType coord = coord_of(value);
  read_saved(call, value, grad_out, out, lse);
  Tensor grad_reference = empty_as(reference), grad_offsets = empty_as(offsets), grad_velocity = empty_as(velocity);
  Tensor grad_logits = empty_as(logits), grad_offset_table = empty_as(offset_table);
  Tensor grad_logit_table = empty_as(logit_table);
  // Without points no task writes them.
  for (Tensor* grad : {&grad_reference, &grad_offsets, &grad_velocity, &grad_logits})
    if (grad == &grad_reference || !has_points(a)) torch::stable::zero_(*grad);
  a.grad_locations = grad_offsets.mutable_data_ptr();
  a.grad_velocity = grad_velocity.mutable_data_ptr();
  a.grad_weights = grad_logits.mutable_data_ptr();
  a.grad_reference = grad_reference.mutable_data_ptr();
  std::vector<double> tables(size_t(a.B * a.R * a.H * a.L * a.K * 3), 0.0);
  a.grad_tables = tables.data();
  Tensor references = empty(value, {reference_gradient ? a.H * a.L : 0, a.B, a.Q, a.F, a.reference_size}, coord);
  if (references.numel() > 0) {
    torch::stable::zero_(references);
    a.grad_references = references.mutable_data_ptr();
  }
  Tensor grad_frame_logits = make_grad_frame_logits(call, value, frame_logits);
  Tensor grad_value = make_grad_value(a, value);
  run_backward(a);
  const bool wide = coord == ScalarType::Double;
  (wide ? sum_clips<double> : sum_clips<float>)(a, tables, 0, 2, grad_offset_table.mutable_data_ptr());
  (wide ? sum_clips<double> : sum_clips<float>)(a, tables, 2, 1, grad_logit_table.mutable_data_ptr());
  return {grad_value,        grad_reference,   grad_offsets, grad_velocity, grad_logits, grad_offset_table,
          grad_logit_table,  grad_frame_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY(STDETR_NAMESPACE, m) {
  m.def(STDETR_SCHEMA_FORWARD);
  m.def(STDETR_SCHEMA_BACKWARD);
  m.def(STDETR_SCHEMA_FUSED_FORWARD);
  m.def(STDETR_SCHEMA_FUSED_BACKWARD);
  m.def(STDETR_SCHEMA_TEMPORAL_FORWARD);
  m.def(STDETR_SCHEMA_TEMPORAL_BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(STDETR_NAMESPACE, CPU, m) {
  m.impl("st_deform_attn_forward", TORCH_BOX(&forward));
  m.impl("st_deform_attn_backward", TORCH_BOX(&backward));
  m.impl("st_deform_attn_fused_forward", TORCH_BOX(&fused_forward));
  m.impl("st_deform_attn_fused_backward", TORCH_BOX(&fused_backward));
  m.impl("st_deform_attn_temporal_forward", TORCH_BOX(&temporal_forward));
  m.impl("st_deform_attn_temporal_backward", TORCH_BOX(&temporal_backward));
}

}  // namespace stdetr_cpu

// The arguments of an operator, checked, as the problem that the kernels take.  Included by library.cpp alone.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "problem.h"

namespace stdetr_cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shapes = std::vector<int64_t>;
using MaybeTensor = std::optional<Tensor>;

Storage storage_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float: return Storage::f32;
    case ScalarType::Double: return Storage::f64;
    case ScalarType::BFloat16: return Storage::bf16;
    case ScalarType::Half: return Storage::f16;
    default: STD_TORCH_CHECK(false, "value must be float32, float64, bfloat16 or float16");
  }
}

ScalarType coord_of(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Python has checked shapes and dtypes; this keeps a direct call from reading what is not there.
Tensor dense(const char* name, const Tensor& tensor, ScalarType dtype, const std::vector<int64_t>& shape) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be a CPU tensor");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has the wrong dtype");
  STD_TORCH_CHECK(tensor.dim() == int64_t(shape.size()), name, " must have ", shape.size(), " axes, got ", tensor.dim());
  for (size_t i = 0; i < shape.size(); ++i)
    STD_TORCH_CHECK(tensor.size(int64_t(i)) == shape[i], name, " has size ", tensor.size(int64_t(i)), " on axis ", i,
                    ", expected ", shape[i]);
  return torch::stable::contiguous(tensor);
}

// A problem with the tensors that it points into.
struct Call {
  Problem problem{};
  std::vector<Level> levels;
  std::vector<Tensor> held;
  std::vector<int32_t> pairs;
  std::vector<int64_t> pair_starts;

  const void* hold(Tensor tensor) {
    held.push_back(tensor);
    return tensor.const_data_ptr();
  }
  const void* hold(const char* name, const Tensor& tensor, ScalarType dtype, const std::vector<int64_t>& shape) {
    return hold(dense(name, tensor, dtype, shape));
  }
};

void read_value(Call& call, const Tensor& value, const Shapes& shapes) {
  Problem& a = call.problem;
  STD_TORCH_CHECK(value.dim() == 5, "value must have 5 axes (B,T,S,H,D)");
  STD_TORCH_CHECK(shapes.size() % 2 == 0, "spatial_shapes must hold h, w pairs");
  a.storage = storage_of(value);
  a.B = value.size(0), a.T = value.size(1), a.S = value.size(2), a.H = value.size(3), a.D = value.size(4);
  a.L = int64_t(shapes.size() / 2);
  STD_TORCH_CHECK(a.S < std::numeric_limits<int32_t>::max(), "a frame has too many tokens");
  int64_t start = 0;
  for (int64_t l = 0; l < a.L; ++l) {
    const int64_t height = shapes[size_t(2 * l)], width = shapes[size_t(2 * l + 1)];
    STD_TORCH_CHECK(height > 0 && width > 0 && height <= a.S && width <= a.S, "spatial_shapes do not fit value");
    call.levels.push_back({int32_t(height), int32_t(width), int32_t(start)});
    start += height * width;
    STD_TORCH_CHECK(start <= a.S, "spatial_shapes do not fit value");
  }
  STD_TORCH_CHECK(start == a.S, "spatial_shapes do not add up to the tokens of value");
  a.levels = call.levels.data();
  a.value = call.hold("value", value, value.scalar_type(), {a.B, a.T, a.S, a.H, a.D});
}

// points: B,Q,H,F,L,K,2 (plain, fused) or B,Q,H,L,K,2 (temporal, whose F is dt's).
void read_points(Call& call, Kind kind, const Tensor& points, const Tensor& weights, ScalarType dtype) {
  Problem& a = call.problem;
  a.kind = kind;
  const bool temporal = kind == Kind::temporal;
  STD_TORCH_CHECK(points.dim() == (temporal ? 6 : 7), "sampling points have the wrong number of axes");
  a.Q = points.size(1);
  a.F = temporal ? 1 : points.size(3);
  a.K = points.size(temporal ? 4 : 5);
  std::vector<int64_t> shape{a.B, a.Q, a.H};
  if (!temporal) shape.push_back(a.F);
  shape.insert(shape.end(), {a.L, a.K});
  a.weights = call.hold("weights", weights, dtype, shape);
  shape.push_back(2);
  a.locations = call.hold("locations", points, dtype, shape);
}

void read_frames(Call& call, const MaybeTensor& frame_index) {
  Problem& a = call.problem;
  if (frame_index.has_value()) {
    a.frame_index = static_cast<const int32_t*>(
        call.hold("frame_index", *frame_index, ScalarType::Int, {a.B, a.Q, a.F}));
  } else {
    STD_TORCH_CHECK(a.F == a.T, "frame_index is needed when F differs from T");
  }
}

void read_fused(
    Call& call, const Tensor& value, const Tensor& reference, const MaybeTensor& valid_ratios,
    const MaybeTensor& frame_logits) {
  Problem& a = call.problem;
  const ScalarType coord = coord_of(value);
  STD_TORCH_CHECK(reference.dim() == 4 && (reference.size(3) == 2 || reference.size(3) == 4),
                  "reference must be B,Q,F,2 or B,Q,F,4");
  a.reference_size = int(reference.size(3));
  a.reference = call.hold("reference", reference, coord, {a.B, a.Q, a.F, a.reference_size});
  if (valid_ratios.has_value()) a.valid_ratios = call.hold("valid_ratios", *valid_ratios, coord, {a.B, a.L, 2});
  if (frame_logits.has_value())
    a.frame_logits = call.hold("frame_logits", *frame_logits, coord, {a.B, a.Q, a.H, a.F});
}

// For each clip and frame, the (query, slot) pairs that read it, in order: a counting sort, linear in B*Q*F.
void list_pairs(Call& call) {
  Problem& a = call.problem;
  if (!a.frame_index) return;
  const int64_t per_clip = a.Q * a.F;
  STD_TORCH_CHECK(per_clip < std::numeric_limits<int32_t>::max(), "Q * F must stay below 2^31");
  call.pair_starts.assign(size_t(a.B * a.T + 1), 0);
  for (int64_t i = 0; i < a.B * per_clip; ++i) {
    const int64_t t = a.frame_index[i];
    if (t >= 0 && t < a.T) ++call.pair_starts[size_t(i / per_clip * a.T + t + 1)];
  }
  for (size_t i = 1; i < call.pair_starts.size(); ++i) call.pair_starts[i] += call.pair_starts[i - 1];
  call.pairs.resize(size_t(call.pair_starts.back()));
  std::vector<int64_t> next(call.pair_starts.begin(), call.pair_starts.end() - 1);
  for (int64_t b = 0; b < a.B; ++b)
    for (int64_t i = 0; i < per_clip; ++i) {
      const int64_t t = a.frame_index[b * per_clip + i];
      if (t >= 0 && t < a.T) call.pairs[size_t(next[size_t(b * a.T + t)]++)] = int32_t(i);
    }
  // An empty list still has to be told apart from "no frame_index".
  if (call.pairs.empty()) call.pairs.push_back(0);
  a.pairs = call.pairs.data();
  a.pair_starts = call.pair_starts.data();
}

}  // namespace
}  // namespace stdetr_cpu

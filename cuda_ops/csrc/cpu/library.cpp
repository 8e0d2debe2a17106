// The operators of ../common/SCHEMA.md for CPU tensors, on LibTorch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/schema.h"
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

// Tasks are cut so that a thread gets some ten thousand multiply-adds at least.
int64_t grain(int64_t work_of_a_task) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work_of_a_task)); }

// Large results are fresh memory, and a page fault for each 4 KiB of it costs more than the arithmetic of a few queries:
// asks the system for large pages, where it gives them on request.
void prefer_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kWorthIt = int64_t(4) << 20;
  if (bytes < kWorthIt) return;
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + uintptr_t(bytes)) / page * page;
  // A refusal changes nothing but the speed.
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

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

std::tuple<Tensor, Tensor> fused_forward(
    Tensor value, Tensor reference, Tensor offsets, Tensor logits, MaybeTensor frame_index, MaybeTensor valid_ratios,
    MaybeTensor frame_logits, Shapes shapes) {
  Call call;
  Problem& a = call.problem;
  read_value(call, value, shapes);
  read_points(call, Kind::fused, offsets, logits, value.scalar_type());
  read_frames(call, frame_index);
  read_fused(call, value, reference, valid_ratios, frame_logits);
  Tensor out = empty(value, {a.B, a.Q, a.H * a.D}, value.scalar_type());
  Tensor lse = empty(value, {a.B, a.Q, a.H}, coord_of(value));
  a.out = out.mutable_data_ptr();
  a.lse = lse.mutable_data_ptr();
  run_forward(a);
  return {out, lse};
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
  a.grad_out = call.hold("grad_out", grad_out, value.scalar_type(), {a.B, a.Q, a.H * a.D});
  a.saved_out = call.hold("out", out, value.scalar_type(), {a.B, a.Q, a.H * a.D});
  a.saved_lse = call.hold("lse", lse, coord_of(value), {a.B, a.Q, a.H});
  list_pairs(call);
  Tensor delta = empty(value, {a.B, a.Q, a.H}, coord_of(value));
  a.delta = delta.mutable_data_ptr();
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
  Tensor out = empty(value, {a.B, a.Q, a.H * a.D}, value.scalar_type());
  Tensor lse = empty(value, {a.B, a.Q, a.H}, coord_of(value));
  a.out = out.mutable_data_ptr();
  a.lse = lse.mutable_data_ptr();
  run_forward(a);
  return {out, lse};
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
  a.grad_out = call.hold("grad_out", grad_out, value.scalar_type(), {a.B, a.Q, a.H * a.D});
  a.saved_out = call.hold("out", out, value.scalar_type(), {a.B, a.Q, a.H * a.D});
  a.saved_lse = call.hold("lse", lse, coord, {a.B, a.Q, a.H});
  list_pairs(call);
  Tensor delta = empty(value, {a.B, a.Q, a.H}, coord);
  a.delta = delta.mutable_data_ptr();
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

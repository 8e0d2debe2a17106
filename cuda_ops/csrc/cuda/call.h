// One call of an operator on CUDA tensors: what every operator does with its arguments, on LibTorch's stable ABI.
//
// Python has validated shapes and dtypes; the checks here keep a direct call from reading what is not there.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "run.h"

namespace stdetr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

inline DType dtype_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: STD_TORCH_CHECK(false, "value must be float32, float64, float16 or bfloat16");
  }
}

inline int small(const char* name, int64_t size) {
  STD_TORCH_CHECK(size <= std::numeric_limits<int32_t>::max(), name, " = ", size, " is 2^31 or more");
  return static_cast<int>(size);
}

// STDETR_COARSE_LEVELS: how many of the last levels the backward pass sums in shared memory; unset: none, until it has
// been measured on a GPU that this is faster.
inline int asked_coarse_levels() {
  const char* text = std::getenv("STDETR_COARSE_LEVELS");
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  STD_TORCH_CHECK(*end == '\0' && number >= 0 && number <= kMaxLevels,
                  "STDETR_COARSE_LEVELS must be a number of levels, got ", text);
  return static_cast<int>(number);
}

// One operator call: the numbers, and the tensors that its pointers look into.
class Call {
 public:
  Problem problem{};
  DType dtype;
  ScalarType real;  // of sums and coordinates

  Call(Mode mode, const Tensor& value, const Sizes& shapes, int64_t queries, int64_t frames, int64_t points)
      : dtype(dtype_of(value)),
        real(dtype == DType::f64 ? ScalarType::Double : ScalarType::Float),
        like_(value),
        guard_(value.get_device_index()) {
    STD_TORCH_CHECK(value.is_cuda(), "value must be a CUDA tensor");
    STD_TORCH_CHECK(value.dim() == 5, "value must have 5 axes (B,T,S,H,D)");
    STD_TORCH_CHECK(shapes.size() % 2 == 0, "spatial_shapes must hold h, w pairs");
    Problem& p = problem;
    p.mode = mode;
    p.batch = small("B", value.size(0)), p.clip = small("T", value.size(1)), p.tokens = small("S", value.size(2));
    p.heads = small("H", value.size(3)), p.channels = small("D", value.size(4));
    p.queries = small("Q", queries), p.frames = small("F", frames), p.points = small("K", points);
    p.levels = small("L", static_cast<int64_t>(shapes.size() / 2));
    STD_TORCH_CHECK(p.levels <= kMaxLevels, "spatial_shapes has ", p.levels, " levels, the CUDA kernels take at most ",
                    kMaxLevels);
    int64_t start = 0;
    for (int l = 0; l < p.levels; ++l) {
      const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
      STD_TORCH_CHECK(height > 0 && width > 0 && height <= p.tokens && width <= p.tokens,
                      "spatial_shapes do not fit value");
      p.level[l] = {static_cast<int>(height), static_cast<int>(width), static_cast<int>(start)};
      start += height * width;
      STD_TORCH_CHECK(start <= p.tokens, "spatial_shapes do not fit value");
    }
    STD_TORCH_CHECK(start == p.tokens, "spatial_shapes have ", start, " tokens but value has S = ", p.tokens);
    p.value = read("value", value, value.scalar_type(), value_shape());
  }

  Sizes points_shape() const {
    const Problem& p = problem;
    if (p.mode == Mode::plain || p.mode == Mode::fused) {
      return {p.batch, p.queries, p.heads, p.frames, p.levels, p.points};
    }
    return {p.batch, p.queries, p.heads, p.levels, p.points};
  }

  Sizes pairs_shape() const {
    Sizes shape = points_shape();
    shape.push_back(2);
    return shape;
  }

  Sizes value_shape() const {
    const Problem& p = problem;
    return {p.batch, p.clip, p.tokens, p.heads, p.channels};
  }

  Sizes reference_shape() const {
    return {problem.batch, problem.queries, problem.frames, problem.reference_size};
  }

  Sizes frame_logits_shape() const { return {problem.batch, problem.queries, problem.heads, problem.frames}; }

  Sizes out_shape() const {
    return {problem.batch, problem.queries, static_cast<int64_t>(problem.heads) * problem.channels};
  }

  ScalarType storage() const { return like_.scalar_type(); }

  // Nothing to sample: outputs and gradients are zeros, kernels are not started.
  bool empty() const {
    const Problem& p = problem;
    return p.batch == 0 || p.clip == 0 || p.tokens == 0 || p.heads == 0 || p.channels == 0 || p.queries == 0 ||
           p.frames == 0 || p.levels == 0 || p.points == 0;
  }

  // A contiguous tensor whose memory starts at a multiple of 16 bytes.
  const void* read(const char* name, const Tensor& tensor, ScalarType type, const Sizes& shape) {
    check(name, tensor, type, shape);
    Tensor dense = torch::stable::contiguous(tensor);
    if (reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 != 0) dense = torch::stable::clone(dense);
    held_.push_back(dense);
    return dense.const_data_ptr();
  }

  // Any strides, so that an index shared by all clips need not be copied.
  void read_frame_index(const MaybeTensor& index) {
    Problem& p = problem;
    if (!index.has_value()) {
      STD_TORCH_CHECK(p.frames == p.clip, "frame_index is needed when F differs from T");
      return;
    }
    check("frame_index", *index, ScalarType::Int, {p.batch, p.queries, p.frames});
    held_.push_back(*index);
    p.frame_index = static_cast<const int32_t*>(index->const_data_ptr());
    for (int axis = 0; axis < 3; ++axis) p.frame_stride[axis] = index->stride(axis);
  }

  void read_reference(const Tensor& reference, const MaybeTensor& valid_ratios, const MaybeTensor& frame_logits) {
    Problem& p = problem;
    STD_TORCH_CHECK(reference.dim() == 4 && (reference.size(3) == 2 || reference.size(3) == 4),
                    "reference must have shape (B,Q,F,2) or (B,Q,F,4)");
    p.reference_size = static_cast<int>(reference.size(3));
    p.reference = read("reference", reference, real, reference_shape());
    if (valid_ratios.has_value()) {
      p.valid_ratios = read("valid_ratios", *valid_ratios, real, {p.batch, p.levels, 2});
    }
    if (frame_logits.has_value()) p.frame_logits = read("frame_logits", *frame_logits, real, frame_logits_shape());
  }

  Tensor make(const Sizes& shape, ScalarType type) { return torch::stable::new_empty(like_, shape, type); }
  Tensor zeros(const Sizes& shape, ScalarType type) { return torch::stable::new_zeros(like_, shape, type); }

  // Scratch memory, returned to the allocator when the call ends: safe, since its reuse is ordered on the stream.
  void* scratch(size_t bytes) {
    if (bytes == 0) return nullptr;
    held_.push_back(make({static_cast<int64_t>(bytes)}, ScalarType::Byte));
    return held_.back().mutable_data_ptr();
  }

  void forward() {
    const Machine machine = describe();
    run_forward(problem, dtype, machine.device, machine.stream);
  }

  // Output, and the log-sum-exp of the operators that form a softmax.
  std::tuple<Tensor, Tensor> forward_with_lse() {
    Problem& p = problem;
    Tensor lse = make({p.batch, p.queries, p.heads}, real);
    if (empty()) {
      torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
      return {zeros(out_shape(), storage()), lse};
    }
    Tensor out = make(out_shape(), storage());
    p.out = out.mutable_data_ptr();
    p.lse = lse.mutable_data_ptr();
    forward();
    return {out, lse};
  }

  // The gradient of frame_logits, for the kernels to fill in; without elements where there are none.
  Tensor make_grad_frame_logits(const MaybeTensor& frame_logits) {
    if (!frame_logits.has_value()) return zeros({0}, real);
    if (empty()) return zeros(frame_logits_shape(), real);
    Tensor grad = make(frame_logits_shape(), real);
    problem.grad_frame_logits = grad.mutable_data_ptr();
    return grad;
  }

  // grad_value into `grad_value`; the other gradients' pointers are set already.  `reference_gradient`: see Workspace.
  void backward(const Tensor& grad_out, Tensor& grad_value, bool deterministic, bool reference_gradient = true) {
    Problem& p = problem;
    p.grad_out = read("grad_out", grad_out, storage(), out_shape());
    p.grad_value = grad_value.mutable_data_ptr();
    const Machine machine = describe();
    const Workspace space = backward_workspace(p, dtype, deterministic, reference_gradient, machine.device);
    p.grad_value_sum = space.value_sum > 0 ? scratch(space.value_sum) : p.grad_value;
    p.grad_value_fixed = static_cast<int64_t*>(scratch(space.value_fixed));
    p.largest = static_cast<unsigned long long*>(scratch(space.largest));
    p.grad_reference_heads = scratch(space.reference_heads);
    p.grad_table_shares = scratch(space.table_shares);
    run_backward(p, dtype, deterministic, machine.device, machine.stream);
  }

 private:
  struct Machine {
    Device device;
    Stream stream;
  };

  void check(const char* name, const Tensor& tensor, ScalarType type, const Sizes& shape) const {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == like_.get_device_index(), name,
                    " must be on the device of value");
    STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype");
    STD_TORCH_CHECK(tensor.dim() == static_cast<int64_t>(shape.size()), name, " must have ", shape.size(),
                    " axes, got ", tensor.dim());
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      const int64_t size = tensor.size(static_cast<int64_t>(axis));
      STD_TORCH_CHECK(size == shape[axis], name, " has size ", size, " on axis ", axis, ", expected ", shape[axis]);
    }
  }

  Machine describe() const {
    const int index = like_.get_device_index();
    Machine machine{};
    check_cuda(cudaDeviceGetAttribute(&machine.device.processors, cudaDevAttrMultiProcessorCount, index),
               "reading the number of processors");
    check_cuda(cudaDeviceGetAttribute(&machine.device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
               "reading the size of shared memory");
    machine.device.coarse_levels = asked_coarse_levels();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
    machine.stream = static_cast<Stream>(stream);
    return machine;
  }

  Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
  std::vector<Tensor> held_;
};

inline int64_t axis_of(const char* name, const Tensor& tensor, int64_t axes, int64_t axis) {
  STD_TORCH_CHECK(tensor.dim() == axes, name, " must have ", axes, " axes, got ", tensor.dim());
  return tensor.size(axis);
}

}  // namespace stdetr

// Entry points of the kernels for host code: fill in a Problem, call run_forward or run_backward.
#pragma once

#include "platform.cuh"
#include "problem.h"

namespace stdetr {

// Scratch memory of the backward pass, in bytes; 0: not needed.  All of it must stay alive until the stream is done.
struct Workspace {
  size_t value_sum = 0;        // Problem::grad_value_sum, where it is not grad_value itself
  size_t value_fixed = 0;      // Problem::grad_value_fixed
  size_t largest = 0;          // Problem::largest
  size_t reference_heads = 0;  // Problem::grad_reference_heads
  size_t table_shares = 0;     // Problem::grad_table_shares
};

// `reference_gradient`: whether the temporal operator's is wanted; the fused one always has it.
Workspace backward_workspace(Problem p, DType dtype, bool deterministic, bool reference_gradient,
                             const Device& device);

// Neither waits for the device; both can be captured in a CUDA graph.
void run_forward(Problem p, DType dtype, const Device& device, Stream stream);
void run_backward(Problem p, DType dtype, bool deterministic, const Device& device, Stream stream);

template <typename T>
void forward_of(Problem& p, const Device& device, Stream stream);
template <typename T>
void backward_of(Problem& p, bool deterministic, const Device& device, Stream stream);

}  // namespace stdetr

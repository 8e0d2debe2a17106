// Choice of the storage type at run time, and the sizes of scratch memory.
#include "run.h"

#include "plan.h"

namespace stdetr {

Workspace backward_workspace(Problem p, DType dtype, bool deterministic, bool reference_gradient,
                             const Device& device) {
  const size_t count = static_cast<size_t>(p.batch) * p.clip * p.tokens * p.heads * p.channels;
  const bool narrow = dtype == DType::f16 || dtype == DType::bf16;
  const size_t real = dtype == DType::f64 ? 8 : 4;
  Workspace space;
  if (deterministic) {
    space.value_fixed = count * sizeof(int64_t);
    space.largest = 2 * sizeof(unsigned long long);
  } else if (narrow) {
    space.value_sum = count * real;
  }
  if (p.mode == Mode::fused || (p.mode == Mode::temporal && reference_gradient)) {
    space.reference_heads = static_cast<size_t>(p.batch) * p.queries * p.heads * p.frames * p.reference_size * real;
  }
  if (p.mode == Mode::temporal) {
    plan_teams(p, piece_of(p, narrow ? 2 : static_cast<int>(real), device), device);
    space.table_shares = static_cast<size_t>(plan_shares(p, static_cast<int>(real), device)) * real;
  }
  return space;
}

void run_forward(Problem p, DType dtype, const Device& device, Stream stream) {
  switch (dtype) {
    case DType::f32: return forward_of<float>(p, device, stream);
    case DType::f64: return forward_of<double>(p, device, stream);
    case DType::f16: return forward_of<__half>(p, device, stream);
    case DType::bf16: return forward_of<__nv_bfloat16>(p, device, stream);
  }
}

void run_backward(Problem p, DType dtype, bool deterministic, const Device& device, Stream stream) {
  switch (dtype) {
    case DType::f32: return backward_of<float>(p, deterministic, device, stream);
    case DType::f64: return backward_of<double>(p, deterministic, device, stream);
    case DType::f16: return backward_of<__half>(p, deterministic, device, stream);
    case DType::bf16: return backward_of<__nv_bfloat16>(p, deterministic, device, stream);
  }
}

}  // namespace stdetr

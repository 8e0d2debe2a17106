// C entry points of the host build, for ctypes.  Every field is 8 bytes, in the order of host.py.
#include <cstring>
#include <exception>
#include <string>

#include "plan.h"
#include "run.h"

struct StdetrCall {
  int64_t dtype, mode, batch, clip, tokens, heads, channels, queries, frames, levels, points, reference_size;
  int64_t table_rows;
  int64_t frame_stride[3];
  int64_t deterministic;
  int64_t processors, shared_bytes, split_points, split_frames, coarse_levels, coarse_parts, tile_rows, force_scalar;
  int64_t order, seed, ignore_warp_barriers, ignore_block_barriers;
  const int64_t* shapes;  // levels pairs (height, width)
  const void *value, *locations, *weights, *reference, *valid_ratios, *frame_logits;
  const void *velocity, *offset_table, *logit_table, *dt;
  const int32_t* frame_index;
  void *out, *lse;
  const void* grad_out;
  void *grad_value, *grad_value_sum, *grad_value_fixed, *largest;
  void *grad_locations, *grad_weights, *grad_reference, *grad_reference_heads;
  void *grad_frame_logits, *grad_velocity, *grad_offset_table, *grad_logit_table, *grad_table_shares;
};

// Bytes of scratch memory that the backward pass asks for.
struct StdetrWorkspace {
  int64_t value_sum, value_fixed, largest, reference_heads, table_shares;
};

struct StdetrCounters {
  uint64_t grids, blocks, block_barriers, warp_exchanges;
};

namespace {

std::string& last_error() {
  static std::string message;
  return message;
}

stdetr::Problem problem_of(const StdetrCall& c) {
  using namespace stdetr;
  Problem p{};
  p.mode = static_cast<Mode>(c.mode);
  p.batch = static_cast<int>(c.batch), p.clip = static_cast<int>(c.clip), p.tokens = static_cast<int>(c.tokens);
  p.heads = static_cast<int>(c.heads), p.channels = static_cast<int>(c.channels);
  p.queries = static_cast<int>(c.queries), p.frames = static_cast<int>(c.frames);
  p.levels = static_cast<int>(c.levels), p.points = static_cast<int>(c.points);
  p.reference_size = static_cast<int>(c.reference_size), p.table_rows = static_cast<int>(c.table_rows);
  std::memcpy(p.frame_stride, c.frame_stride, sizeof(p.frame_stride));
  p.value = c.value, p.locations = c.locations, p.weights = c.weights;
  p.reference = c.reference, p.valid_ratios = c.valid_ratios, p.frame_logits = c.frame_logits;
  p.velocity = c.velocity, p.offset_table = c.offset_table, p.logit_table = c.logit_table, p.dt = c.dt;
  p.frame_index = c.frame_index;
  p.out = c.out, p.lse = c.lse, p.grad_out = c.grad_out;
  p.grad_value = c.grad_value, p.grad_value_sum = c.grad_value_sum;
  p.grad_value_fixed = static_cast<int64_t*>(c.grad_value_fixed);
  p.largest = static_cast<unsigned long long*>(c.largest);
  p.grad_locations = c.grad_locations, p.grad_weights = c.grad_weights;
  p.grad_reference = c.grad_reference, p.grad_reference_heads = c.grad_reference_heads;
  p.grad_frame_logits = c.grad_frame_logits;
  p.grad_velocity = c.grad_velocity, p.grad_table_shares = c.grad_table_shares;
  p.grad_offset_table = c.grad_offset_table, p.grad_logit_table = c.grad_logit_table;
  if (p.levels > kMaxLevels) check_sizes(p);
  int start = 0;
  for (int l = 0; l < p.levels; ++l) {
    p.level[l] = {static_cast<int>(c.shapes[2 * l]), static_cast<int>(c.shapes[2 * l + 1]), start};
    start += p.level[l].height * p.level[l].width;
  }
  return p;
}

stdetr::Device device_of(const StdetrCall& c) {
  stdetr::Device device;
  device.processors = static_cast<int>(c.processors), device.shared_bytes = static_cast<int>(c.shared_bytes);
  device.split_points = static_cast<int>(c.split_points), device.split_frames = static_cast<int>(c.split_frames);
  device.coarse_levels = static_cast<int>(c.coarse_levels), device.coarse_parts = static_cast<int>(c.coarse_parts);
  device.tile_rows = static_cast<int>(c.tile_rows), device.force_scalar = c.force_scalar != 0;
  return device;
}

}  // namespace

extern "C" {

const char* stdetr_last_error() { return last_error().c_str(); }

StdetrCounters stdetr_counters() {
  const auto& c = stdetr::host::counters();
  return {c.grids, c.blocks, c.block_barriers, c.warp_exchanges};
}

uint16_t stdetr_half(float value) { return __float2half_rn(value).bits; }
float stdetr_from_half(uint16_t bits) { return __half2float({bits}); }
uint16_t stdetr_bfloat16(float value) { return __float2bfloat16_rn(value).bits; }

int32_t stdetr_divide(uint32_t divisor, uint32_t number) {
  const stdetr::FastDiv by = stdetr::make_fast_div(divisor);
  return static_cast<int32_t>((__umulhi(number, by.multiplier) + number) >> by.shift);
}

// 0, or 1 with a message in stdetr_last_error().
int stdetr_workspace(const StdetrCall* c, int reference_gradient, StdetrWorkspace* bytes) {
  using namespace stdetr;
  try {
    const Workspace space = backward_workspace(problem_of(*c), static_cast<DType>(c->dtype), c->deterministic != 0,
                                               reference_gradient != 0, device_of(*c));
    const auto number = [](size_t size) { return static_cast<int64_t>(size); };
    *bytes = {number(space.value_sum), number(space.value_fixed), number(space.largest),
              number(space.reference_heads), number(space.table_shares)};
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return 1;
  }
}

// Likewise.  `backward` selects the pass.
int stdetr_run(const StdetrCall* c, int backward) {
  using namespace stdetr;
  try {
    const Problem p = problem_of(*c);
    const Device device = device_of(*c);
    host::Options& options = host::options();
    options.order = static_cast<host::Order>(c->order);
    options.seed = static_cast<uint64_t>(c->seed);
    options.ignore_warp_barriers = c->ignore_warp_barriers != 0;
    options.ignore_block_barriers = c->ignore_block_barriers != 0;
    options.shared_limit = static_cast<size_t>(c->shared_bytes);
    const DType dtype = static_cast<DType>(c->dtype);
    if (backward) {
      run_backward(p, dtype, c->deterministic != 0, device, nullptr);
    } else {
      run_forward(p, dtype, device, nullptr);
    }
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return 1;
  }
}
}

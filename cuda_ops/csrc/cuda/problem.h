// One call of the operator as plain numbers and pointers: what host code fills in and kernels read.
//
// Shape legend
//   B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
//   Q queries  F sampled frames    L levels    K points per head, level and frame    P = F * L * K
//   R rows of the temporal tables, even
//
// Modes (all pixel coordinates: location * size - 0.5, bilinear, zero outside)
//   plain     locations B,Q,H,F,L,K,2 and weights B,Q,H,F,L,K are given
//   fused     locations = reference + offset, weights = softmax of logits over P, both formed in the kernel
//   temporal  fused, with offsets and logits formed in the kernel too: a query gives them once for all frames, with a
//             velocity, and two tables add what belongs to a distance in time
#pragma once

#include <cstdint>

namespace stdetr {

enum class DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };
enum class Mode : int { plain = 0, fused = 1, temporal = 2 };
constexpr bool is_fused(Mode mode) { return mode == Mode::fused || mode == Mode::temporal; }

// What kernels are compiled for: the fused modes know whether their references are points or boxes.
enum class Rule : int { plain, fused_points, fused_boxes, temporal_points, temporal_boxes };
constexpr bool is_temporal(Rule rule) { return rule == Rule::temporal_points || rule == Rule::temporal_boxes; }
constexpr bool has_boxes(Rule rule) { return rule == Rule::fused_boxes || rule == Rule::temporal_boxes; }
// Reference, softmax and log-sum-exp.
constexpr bool is_fused(Rule rule) { return rule == Rule::fused_points || has_boxes(rule) || is_temporal(rule); }

constexpr int kMaxLevels = 64;

struct LevelShape {
  int height, width, start;
};

// Division by a number known on the host: for n < 2^31, n / divisor = (umulhi(n, multiplier) + n) >> shift.
struct FastDiv {
  uint32_t divisor = 1, multiplier = 0, shift = 0;
};

inline FastDiv make_fast_div(uint32_t divisor) {
  FastDiv result;
  result.divisor = divisor;
  while ((uint64_t{1} << result.shift) < divisor) ++result.shift;
  const uint64_t power = uint64_t{1} << result.shift;
  result.multiplier = static_cast<uint32_t>(((power - divisor) << 32) / divisor + 1);
  return result;
}

struct Problem {
  Mode mode;
  int batch, clip, tokens, heads, channels;      // B, T, S, H, D
  int queries, frames, levels, points;           // Q, F, L, K
  int reference_size;                            // 2 or 4 numbers a reference (fused, temporal)
  int table_rows;                                // R (temporal)

  // Inputs; T is value's type, A the accumulation type (float, or double for double).
  const void* value;            // T  B,T,S,H,D
  const void* locations;        // plain: A  B,Q,H,F,L,K,2   fused: offsets, T   temporal: offsets, T  B,Q,H,L,K,2
  const void* weights;          // plain: A  B,Q,H,F,L,K     fused: logits, T    temporal: logits, T  B,Q,H,L,K
  const void* reference;        // A  fused, temporal: B,Q,F,2|4
  const void* valid_ratios;     // A  fused, temporal: B,L,2 or null
  const void* frame_logits;     // A  fused, temporal: B,Q,H,F, added to the logits of all points of a frame, or null
  const void* velocity;         // T  temporal: B,Q,H,L,K,2
  const void* offset_table;     // A  temporal: R,H,L,K,2
  const void* logit_table;      // A  temporal: R,H,L,K
  const void* dt;               // A  temporal: B,Q,F, signed distance in time
  const int32_t* frame_index;   // B,Q,F by the strides below, or null for frame f = f
  int64_t frame_stride[3];

  // Results of the forward pass, inputs of the backward pass.
  void* out;  // T  B,Q,H*D
  void* lse;  // A  B,Q,H, log of the sum of exp of the logits, -inf if all frames are masked (fused, temporal)

  // Backward pass.
  const void* grad_out;         // T  B,Q,H*D
  void* grad_value;             // T  B,T,S,H,D
  void* grad_value_sum;         // A  B,T,S,H,D: running sums; the same memory as grad_value where T = A
  int64_t* grad_value_fixed;    // B,T,S,H,D: fixed-point sums of the deterministic pass, else null
  unsigned long long* largest;  // 2: bits of the largest |grad_out| and |weight| (deterministic)
  void* grad_locations;         // like locations
  void* grad_weights;           // like weights
  void* grad_reference;         // A  B,Q,F,2|4
  void* grad_reference_heads;   // A  B,Q,H,F,2|4: the share of each head, summed afterwards in a fixed order; temporal:
                                // null where the gradient is not wanted
  void* grad_frame_logits;      // like frame_logits; null with it
  void* grad_velocity;          // like velocity
  void* grad_offset_table;      // like offset_table
  void* grad_logit_table;       // like logit_table
  void* grad_table_shares;      // A  shares R,L,K,3 (x, y, logit) of each block, summed afterwards in a fixed order

  // Filled in by plan().
  FastDiv per_frame, per_level;  // L * K and K
  int lanes;                     // threads that share a (query, head): each owns one 16-byte piece of the channels
  int split_points;              // groups of lanes that share the points of a frame
  int split_frames;              // groups of those that share the frames
  int channel_tiles;             // forward blocks that share a (query, head) when D exceeds 32 pieces
  int query_blocks;              // blocks along Q
  int query_turns;               // times that a block takes its number of queries (temporal backward; otherwise 1)
  int block_shares;              // shares of the tables a block: 1, or one a warp where shared memory is too small
  int tile_rows;                 // > 0: queries are tokens; a block takes a tile of this many rows
  int direct_levels;             // the backward kernel adds the gradient of value itself on levels below this one
  FastDiv per_entry, per_query;  // scatter pass: points of a frame entry on its levels, frame entries of a query
  int coarse_parts;              // blocks that share the queries of one (clip, head, frame) in the coarse pass
  int fixed_bits;                // bits that the number of contributions to one element may need (deterministic)
  LevelShape level[kMaxLevels];
};

// The machine and, for tests, choices that plan() would otherwise make itself (-1).
struct Device {
  int processors = 132;
  int shared_bytes = 227 * 1024;
  int split_points = -1, split_frames = -1, coarse_levels = -1, coarse_parts = -1, tile_rows = -1;
  bool force_scalar = false;
};

}  // namespace stdetr

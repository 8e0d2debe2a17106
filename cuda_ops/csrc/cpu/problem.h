// What one call works on, as plain data: the only thing that crosses from the torch side to the kernels.
//
// B clips, T frames, S tokens of a frame, H heads, D channels per head, Q queries, F sampled frames, L levels, K points.
// "coord" is double for double values and float otherwise; shapes and rules are in ../common/SCHEMA.md.
#pragma once

#include <cstdint>

namespace stdetr_cpu {

enum class Storage : int { f32, f64, bf16, f16 };
enum class Kind : int { plain, fused, temporal };

struct Level {
  int32_t height;
  int32_t width;
  int32_t start;  // first token
};

struct Problem {
  Storage storage;
  Kind kind;
  int64_t B, T, S, H, D, Q, F, L, K;
  const Level* levels;        // L
  const void* value;          // B,T,S,H,D storage
  const void* locations;      // plain: locations (coord); fused, temporal: offsets (storage)
  const void* weights;        // plain: weights (coord); fused, temporal: logits (storage)
  const int32_t* frame_index; // B,Q,F or null
  const void* reference;      // B,Q,F,reference_size coord (fused, temporal)
  int reference_size;         // 2 or 4
  const void* valid_ratios;   // B,L,2 coord or null
  const void* frame_logits;   // B,Q,H,F coord or null (fused, temporal): added to all logits of a frame
  // Temporal: offsets, velocity B,Q,H,L,K,2 and logits B,Q,H,L,K have no frame axis; the tables are R,H,L,K(,2).
  const void* velocity;      // storage
  const void* offset_table;  // coord
  const void* logit_table;   // coord
  const void* dt;            // B,Q,F coord
  int64_t R;

  void* out;  // forward: B,Q,H*D storage
  void* lse;  // forward fused, temporal: B,Q,H coord

  // Backward.
  const void* grad_out;   // B,Q,H*D storage
  const void* saved_out;  // fused, temporal
  const void* saved_lse;  // fused, temporal: coord
  void* delta;            // fused, temporal: B,Q,H coord, sum over channels of grad_out * out
  void* grad_value;       // B,T,S,H,D storage
  void* grad_locations;   // like locations
  void* grad_weights;     // like weights
  void* grad_reference;   // coord
  void* grad_velocity;    // storage
  double* grad_tables;    // temporal: B,R,H,L,K,3, a clip's share of the gradients of offset_table (x, y) and logit_table
  void* grad_frame_logits;  // coord B,Q,H,F (fused, temporal), or null
  void* grad_frame_shares;  // coord, L shares of B,Q,H,F, holding zeros; null with grad_frame_logits
  void* grad_references;  // temporal: coord, H*L shares of B,Q,F,reference_size, holding zeros; or null: not wanted
  bool grad_value_zeroed; // grad_value holds zeros and is added to in place; otherwise slices are staged in scratch
  // Plain and fused: which (query, frame slot) pairs read frame t of clip b.  pairs[pair_starts[b*T+t] ...] holds
  // q*F+f in ascending order; null when frame_index is null (then every query reads frame t through slot t).
  const int32_t* pairs;
  const int64_t* pair_starts;
};

// Each function works on the tasks begin..end-1; tasks write disjoint memory in a fixed order, which makes every result
// independent of the number of threads.
struct Kernels {
  const char* name;
  void (*forward)(const Problem&, int64_t begin, int64_t end);         // tasks: B*Q
  void (*backward_prepare)(const Problem&, int64_t begin, int64_t end);  // tasks: B*Q
  void (*backward)(const Problem&, int64_t begin, int64_t end);        // tasks: B*T*H*L; temporal: B*H*L
  void (*backward_finish)(const Problem&, int64_t begin, int64_t end);   // tasks: B*Q (fused, temporal)
};

const Kernels& kernels_baseline();
#ifdef STDETR_X86
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

// The kernels for this processor, or what STDETR_CPU_ISA asks for; throws std::runtime_error if that cannot run here.
const Kernels& kernels();

}  // namespace stdetr_cpu

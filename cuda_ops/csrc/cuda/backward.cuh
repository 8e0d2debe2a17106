// Backward kernel: gradients of locations (offsets), weights (logits), the reference's share of each head, and, for
// levels below direct_levels, of value.  The temporal rules have a kernel of their own, temporal_backward.cuh.
//
// The softmax needs no stored probabilities: p = exp(logit - lse) and, with delta = sum_c grad_out * out (the identity
// that FlashAttention's backward pass uses), grad_logit = p * (grad_out . sample - delta).
//
// Shape legend: see problem.h.
#pragma once

#include "records.cuh"

namespace stdetr {

// Writes the gradients of point j of a frame entry whose points start at `frame_points`; adds its part of the
// reference's gradient to `reference_sum` and that of its logit to `logit_sum`.
template <typename T, Rule R>
__device__ __forceinline__ void finish_point(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                             const Anchor<accumulator_t<T>>& anchor, int64_t frame_points, int j,
                                             int slot, accumulator_t<T> delta, const Stage<accumulator_t<T>>& stage,
                                             accumulator_t<T> (&reference_sum)[4], accumulator_t<T>& logit_sum) {
  using A = accumulator_t<T>;
  const PointDetail<A> detail = stage.detail[slot];
  if (detail.packed < 0) return;
  const int64_t index = frame_points + j;
  const LevelEntry<A> level = table[detail.packed >> kLevelShift];
  const Slopes<A> slopes = slopes_of(stage.dots[slot], detail);
  const A x = detail.probability * slopes.x, y = detail.probability * slopes.y;
  if constexpr (!is_fused(R)) {
    static_cast<A*>(p.grad_weights)[index] = slopes.sample;
    store_two(static_cast<A*>(p.grad_locations), index, x * static_cast<A>(level.width),
              y * static_cast<A>(level.height));
  } else {
    T* grad_offsets = static_cast<T*>(p.grad_locations);
    const A logit = detail.probability * (slopes.sample - delta);
    static_cast<T*>(p.grad_weights)[index] = narrow<T>(logit);
    logit_sum += logit;
    if ((detail.packed & kCorners) == 0) {
      store_two(grad_offsets, index, A(0), A(0));
      return;
    }
    A gain_x, gain_y;
    gain_of<R>(anchor, level, gain_x, gain_y);
    store_two(grad_offsets, index, x * gain_x, y * gain_y);
    add_to_reference<T, R>(p, level, anchor, index, j, x, y, reference_sum);
  }
}

template <typename T, Rule R, int PieceSize, int Channels>
__global__ void __launch_bounds__(kBlockThreads, Channels > 0 && R != Rule::fused_boxes ? 3 : 2) backward_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);
  shared += p.levels * sizeof(LevelEntry<A>);

  const Team<Channels, PieceSize> team(p);
  load_levels(p, team.b, table);
  const Stage<A> stage(shared, team.group, kBlockThreads / team.lanes,
                       team.records(team.lanes, kBackwardRecordsPerLane, kBackwardRecords));
  const Row row(p, team.b, team.q, team.h);
  const ChannelPiece<T, PieceSize, Channels> piece(p, team, row);
  A lse = 0, delta = 0;
  if constexpr (is_fused(R)) {
    lse = static_cast<const A*>(p.lse)[row.head];
    delta = piece.dot_out(p, row, team.lanes);
  }

  const int per_frame = p.levels * p.points;
  const int points_per_chunk = stage.slots << team.point_shift;
  for (int round = 0; round < p.frames; round += p.split_frames) {
    const int f = round + team.frame_part;
    const bool has_frame = f < p.frames && team.active;
    const int frame = has_frame ? frame_of(p, row, f) : -1;
    const int end = has_frame ? per_frame : 0;
    const Anchor<A> anchor = anchor_of<T, R>(p, row, has_frame ? f : 0);
    const int64_t frame_points = row.first_point<R>(p, f);
    A reference_sum[4] = {0, 0, 0, 0}, logit_sum = 0;
    const A normaliser = is_fused(R) ? normaliser_of(p, row, has_frame ? f : 0, lse) : A(0);
    for (int base = 0; base < per_frame; base += points_per_chunk) {
      const int first = base + team.point_part;
      stage_backward<T, R>(p, table, anchor, frame_points, frame, first, p.split_points, end, team.lane, team.lanes,
                           normaliser, stage);
      __syncwarp();
      const int left = min(per_frame - base, points_per_chunk);
      piece.visit(stage, team.share(left), team.lane, team.lanes);
      __syncwarp();
      for (int i = team.lane; i < stage.slots; i += team.lanes) {
        finish_point<T, R>(p, table, anchor, frame_points, first + i * p.split_points, i, delta, stage,
                           reference_sum, logit_sum);
      }
      __syncwarp();
    }
    if constexpr (is_fused(R)) {
      const int width = team.lanes * p.split_points;
      const bool writes = has_frame && (team.member & (width - 1)) == 0;
      store_reference<R>(p, row, f, width, writes, false, reference_sum);
      store_frame_logit(p, row, f, width, writes, false, logit_sum);
    }
  }
}

}  // namespace stdetr

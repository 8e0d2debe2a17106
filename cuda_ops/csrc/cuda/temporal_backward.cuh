// Backward kernel of the temporal rules: as backward.cuh, but a query's offsets, velocity and logits serve all frames.
//
// A group takes a few points over all frames before the next points, so that a lane keeps the sums of its points in
// registers; nothing of them has a frame axis in memory.  Groups that share the frames add up once a run of points.
//
// A gradient of the tables is a sum over clips, queries and frames.  Each warp has its own sums, in shared memory
// where they fit; an element is added to by one lane, group after group.  Blocks leave shares, which sum_tables_kernel
// adds: no result depends on how warps are scheduled.  A block takes several runs of queries in turn, so that there are
// not more shares the more queries there are.
//
// Shape legend: see problem.h.
#pragma once

#include "records.cuh"

namespace stdetr {

// Points of a chunk that one lane finishes.
constexpr int kPointsPerLane = kBackwardRecordsPerLane;

// Sums over the frames of one point of a query.
template <typename A>
struct PointSums {
  A offset_x = 0, offset_y = 0, velocity_x = 0, velocity_y = 0, logit = 0;
};

// Gradients of the point in record `slot` on one frame: added to the sums, and left in the record for the tables, with
// their row (-1: none) in place of the flags.
template <typename T, Rule R>
__device__ __forceinline__ void finish_point_on_frame(
    const Problem& p, const LevelEntry<accumulator_t<T>>* table, const Anchor<accumulator_t<T>>& anchor,
    int64_t first_point, int j, int slot, accumulator_t<T> delta, const Stage<accumulator_t<T>>& stage,
    PointSums<accumulator_t<T>>& sums, accumulator_t<T> (&reference_sum)[4], accumulator_t<T>& logit_sum) {
  using A = accumulator_t<T>;
  const PointDetail<A> detail = stage.detail[slot];
  if (detail.packed < 0) return;
  const Slopes<A> slopes = slopes_of(stage.dots[slot], detail);
  const A logit = detail.probability * (slopes.sample - delta);
  A offset_x = 0, offset_y = 0;
  sums.logit += logit;
  logit_sum += logit;
  // A point that does not count may have a distance or an offset that is not finite.
  if ((detail.packed & kCorners) != 0) {
    const LevelEntry<A> level = table[detail.packed >> kLevelShift];
    const A x = detail.probability * slopes.x, y = detail.probability * slopes.y;
    A gain_x, gain_y;
    gain_of<R>(anchor, level, gain_x, gain_y);
    offset_x = x * gain_x;
    offset_y = y * gain_y;
    sums.offset_x += offset_x;
    sums.offset_y += offset_y;
    sums.velocity_x += anchor.distance * offset_x;
    sums.velocity_y += anchor.distance * offset_y;
    if (p.grad_reference_heads != nullptr) {
      add_to_reference<T, R>(p, level, anchor, first_point + j, j, x, y, reference_sum);
    }
  }
  stage.dots[slot] = {{offset_x, offset_y, logit, A(0)}};
  stage.detail[slot].packed = anchor.row;
}

// Adds what the warp's groups left in their records to the warp's sums of the tables, for the `count` points of a chunk
// from point `base` of L * K on.
template <typename A, int Channels, int PieceSize>
__device__ __forceinline__ void add_to_tables(const Problem& p, const Team<Channels, PieceSize>& team,
                                              const Stage<A>& stage, int base, int count, A* tables) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int row_length = 3 * static_cast<int>(p.per_frame.divisor);
  const int step = stage.slots + 1;
  // Of the warp's first group, relative to this one.
  const int origin = -(lane / team.lanes) * step;
  const int groups = 32 / team.lanes;
  for (int item = lane; item < 3 * count; item += 32) {
    const int point = item / 3, number = item - 3 * point;
    A* target = tables + 3 * base + item;  // in row 0
    int row = -1;
    A sum = 0;
    for (int group = point & (p.split_points - 1); group < groups; group += p.split_points) {
      const int slot = origin + group * step + (point >> team.point_shift);
      const int next = stage.detail[slot].packed;
      if (next < 0) continue;
      if (next != row && row >= 0) {
        target[row * row_length] += sum;
        sum = 0;
      }
      row = next;
      sum += stage.dots[slot].at[number];
    }
    if (row >= 0) target[row * row_length] += sum;
  }
}

// Adds the sums of the groups that share the frames to those of the first of them, in order.
template <typename A, int Channels, int PieceSize>
__device__ __forceinline__ void join_frame_parts(const Problem& p, const Team<Channels, PieceSize>& team,
                                                 const Stage<A>& stage, PointSums<A> (&sums)[kPointsPerLane]) {
  // The records are free between two chunks.
  const auto wait = [&] {
    if (team.members > 32) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  };
#pragma unroll
  for (int n = 0; n < kPointsPerLane; ++n) {
    const int slot = team.lane + n * team.lanes;
    if (slot >= stage.slots) continue;
    stage.dots[slot] = {{sums[n].offset_x, sums[n].offset_y, sums[n].velocity_x, sums[n].velocity_y}};
    stage.detail[slot].probability = sums[n].logit;
  }
  wait();
  if (team.frame_part == 0) {
    for (int part = 1; part < p.split_frames; ++part) {
      const int other = (part << team.point_shift) * (stage.slots + 1);
#pragma unroll
      for (int n = 0; n < kPointsPerLane; ++n) {
        const int slot = team.lane + n * team.lanes;
        if (slot >= stage.slots) continue;
        const CornerDots<A> more = stage.dots[other + slot];
        sums[n].offset_x += more.at[0];
        sums[n].offset_y += more.at[1];
        sums[n].velocity_x += more.at[2];
        sums[n].velocity_y += more.at[3];
        sums[n].logit += stage.detail[other + slot].probability;
      }
    }
  }
  wait();
}

template <typename T, Rule R, int PieceSize, int Channels>
__global__ void __launch_bounds__(kBlockThreads, 2) temporal_backward_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);
  shared += p.levels * sizeof(LevelEntry<A>);

  const int per_frame = p.levels * p.points;
  const int table_size = 3 * p.table_rows * per_frame;
  const int thread = static_cast<int>(threadIdx.x);
  A* const share =
      static_cast<A*>(p.grad_table_shares) + static_cast<int64_t>(blockIdx.x) * p.block_shares * table_size;
  // One share per block: the warps' sums are in shared memory until the end.
  A* const sums_of_warps = p.block_shares == 1 ? reinterpret_cast<A*>(shared) : share;
  if (p.block_shares == 1) shared += kBlockWarps * table_size * sizeof(A);
  A* const tables = sums_of_warps + static_cast<int64_t>(thread / 32) * table_size;
  for (int i = thread & 31; i < table_size; i += 32) tables[i] = 0;  // load_levels has a barrier

  for (int turn = 0; turn < p.query_turns; ++turn) {
    const Team<Channels, PieceSize> team(p, p.query_turns, turn);
    if (turn == 0) load_levels(p, team.b, table);
    const Stage<A> stage(shared, team.group, kBlockThreads / team.lanes,
                         team.records(team.lanes, kBackwardRecordsPerLane, kBackwardRecords));
    const Row row(p, team.b, team.q, team.h);
    const ChannelPiece<T, PieceSize, Channels> piece(p, team, row);
    const A lse = static_cast<const A*>(p.lse)[row.head];
    const A delta = piece.dot_out(p, row, team.lanes);
    const int64_t first_point = row.first_point<R>(p, 0);
    const int points_per_chunk = stage.slots << team.point_shift;
    for (int base = 0; base < per_frame; base += points_per_chunk) {
      const int first = base + team.point_part;
      const int count = min(per_frame - base, points_per_chunk);
      PointSums<A> sums[kPointsPerLane];
      for (int round = 0; round < p.frames; round += p.split_frames) {
        const int f = round + team.frame_part;
        const bool has_frame = f < p.frames && team.active;
        const int frame = has_frame ? frame_of(p, row, f) : -1;
        const Anchor<A> anchor = anchor_of<T, R>(p, row, min(f, p.frames - 1));
        const A normaliser = normaliser_of(p, row, min(f, p.frames - 1), lse);
        A reference_sum[4] = {0, 0, 0, 0}, logit_sum = 0;
        // A masked frame has no points at all.
        stage_backward<T, R>(p, table, anchor, first_point, frame, first, p.split_points,
                             frame >= 0 ? per_frame : 0, team.lane, team.lanes, normaliser, stage);
        __syncwarp();
        piece.visit(stage, team.share(count), team.lane, team.lanes);
        __syncwarp();
#pragma unroll
        for (int n = 0; n < kPointsPerLane; ++n) {
          const int slot = team.lane + n * team.lanes;
          if (slot >= stage.slots) continue;
          finish_point_on_frame<T, R>(p, table, anchor, first_point, first + slot * p.split_points, slot, delta, stage,
                                      sums[n], reference_sum, logit_sum);
        }
        __syncwarp();
        if (p.table_rows > 0) add_to_tables(p, team, stage, base, count, tables);
        __syncwarp();
        const int width = team.lanes * p.split_points;
        const bool writes = has_frame && (team.member & (width - 1)) == 0;
        if (p.grad_reference_heads != nullptr) store_reference<R>(p, row, f, width, writes, base > 0, reference_sum);
        store_frame_logit(p, row, f, width, writes, base > 0, logit_sum);
      }
      if (p.split_frames > 1) join_frame_parts(p, team, stage, sums);
      if (!team.active || team.frame_part != 0) continue;
#pragma unroll
      for (int n = 0; n < kPointsPerLane; ++n) {
        const int slot = team.lane + n * team.lanes;
        const int j = first + slot * p.split_points;
        if (slot >= stage.slots || j >= per_frame) continue;
        store_two(static_cast<T*>(p.grad_locations), first_point + j, sums[n].offset_x, sums[n].offset_y);
        store_two(static_cast<T*>(p.grad_velocity), first_point + j, sums[n].velocity_x, sums[n].velocity_y);
        static_cast<T*>(p.grad_weights)[first_point + j] = narrow<T>(sums[n].logit);
      }
    }
  }
  if (p.block_shares != 1) return;
  __syncthreads();
  for (int i = thread; i < table_size; i += kBlockThreads) {
    A sum = 0;
    for (int warp = 0; warp < kBlockWarps; ++warp) sum += sums_of_warps[warp * table_size + i];
    share[i] = sum;
  }
}

}  // namespace stdetr

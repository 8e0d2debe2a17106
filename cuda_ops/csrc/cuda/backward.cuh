// Backward kernel: gradients of locations (offsets), weights (logits), tau, the reference's share of each head, and,
// for levels below direct_levels, of value.
//
// Per record the lanes of a group load the four corners again, take their dot products with grad_out, reduce the four
// numbers over the group and leave them in shared memory; then one lane a point turns them into its gradients.  The
// softmax needs no stored probabilities: p = exp(logit - lse) and, with delta = sum_c grad_out * out (the identity
// that FlashAttention's backward pass uses), grad_logit = p * (grad_out . sample - delta).
//
// Shape legend: see problem.h.
#pragma once

#include "team.cuh"

namespace stdetr {

// Records of a group: two a lane, at most 8.  Always even: continuous points need two.
constexpr int kBackwardRecordsPerLane = 2, kBackwardRecords = 8;

// What the lane that finishes a point needs of it.
template <typename A>
struct alignas(16) PointDetail {
  A probability;   // second record of a continuous point: share of the second frame
  A right, bottom;
  int packed;      // flags of Spot, level << 8; bit 4: tau has a slope; -1: no such point
};

template <typename A>
struct alignas(16) CornerDots {
  A at[4];
};

template <typename A>
inline size_t backward_shared_bytes(int lanes, int levels) {
  const int groups = kBlockThreads / lanes;
  const int wanted = kBackwardRecordsPerLane * lanes;
  const int records = wanted < kBackwardRecords ? wanted : kBackwardRecords;
  return levels * sizeof(LevelEntry<A>) +
         static_cast<size_t>(groups) * (records + 1) *
             (2 * sizeof(CornerWeights<A>) + sizeof(CornerOffsets) + sizeof(PointDetail<A>));
}

// The records of one group in shared memory.
template <typename A>
struct Stage {
  CornerWeights<A>* weights;
  CornerDots<A>* dots;
  PointDetail<A>* detail;
  CornerOffsets* offsets;
  int slots;

  __device__ __forceinline__ Stage(unsigned char* shared, int group, int groups, int count) : slots(count) {
    const int all = groups * (slots + 1), mine = group * (slots + 1);
    weights = reinterpret_cast<CornerWeights<A>*>(shared) + mine;
    shared += all * sizeof(CornerWeights<A>);
    dots = reinterpret_cast<CornerDots<A>*>(shared) + mine;
    shared += all * sizeof(CornerDots<A>);
    detail = reinterpret_cast<PointDetail<A>*>(shared) + mine;
    shared += all * sizeof(PointDetail<A>);
    offsets = reinterpret_cast<CornerOffsets*>(shared) + mine;
  }
};

template <typename T, Mode M>
__device__ __forceinline__ void stage_backward(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                               const Row& row, int f, int frame, int first, int stride, int end,
                                               int lane, int lanes, accumulator_t<T> lse,
                                               const Stage<accumulator_t<T>>& stage) {
  using A = accumulator_t<T>;
  constexpr bool twice = M == Mode::continuous;
  const int count = twice ? stage.slots / 2 : stage.slots;
  for (int i = lane; i < count; i += lanes) {
    const int j = first + i * stride;
    const int slot = twice ? 2 * i : i;
    if (j >= end) {
      stage.detail[slot].packed = -1;
      stage.offsets[slot] = {-1, 0, 0};
      if (twice) stage.offsets[slot + 1] = {-1, 0, 0};
      continue;
    }
    const Placed<A> placed = place<T, M>(p, table, row, f, j, frame >= 0, lse);
    const LevelEntry<A> level = table[placed.level];
    const Spot<A> spot = spot_of(placed.x, placed.y, level.width, level.height);
    const bool elsewhere = placed.level >= p.direct_levels;
    const auto put = [&](int at, int t, A probability, A kept, int flags) {
      CornerOffsets offsets = offsets_of(p, spot, level, t);
      if (offsets.first < 0) flags = 0;
      if (elsewhere) offsets.right = ~offsets.right;
      stage.weights[at] = weights_of(spot, probability);
      stage.offsets[at] = offsets;
      stage.detail[at] = {kept, spot.right, spot.bottom, flags | placed.level << 8};
    };
    if (!twice) {
      put(slot, frame, placed.probability, placed.probability, spot.flags);
    } else {
      const Moment<A> moment = moment_of<T>(p, row, j);
      put(slot, moment.frame[0], placed.probability * moment.share[0], placed.probability,
          spot.flags | (moment.has_slope ? 16 : 0));
      put(slot + 1, moment.frame[1], placed.probability * moment.share[1], moment.share[1],
          spot.flags | (moment.has_slope ? 16 : 0));
    }
  }
}

// Sample value and its slopes per pixel, dotted with grad_out.
template <typename A>
struct Slopes {
  A sample, x, y;
};

template <typename A>
__device__ __forceinline__ Slopes<A> slopes_of(const CornerDots<A>& dots, const PointDetail<A>& detail) {
  const int flags = detail.packed;
  if ((flags & 15) == 0) return {A(0), A(0), A(0)};
  // A pixel that does not exist was read from its neighbour: it counts as zero.
  const A top_left = (flags & 5) == 5 ? dots.at[0] : A(0), top_right = (flags & 6) == 6 ? dots.at[1] : A(0);
  const A low_left = (flags & 9) == 9 ? dots.at[2] : A(0), low_right = (flags & 10) == 10 ? dots.at[3] : A(0);
  const A left = A(1) - detail.right, top = A(1) - detail.bottom;
  Slopes<A> slopes;
  slopes.sample = top * (left * top_left + detail.right * top_right) +
                  detail.bottom * (left * low_left + detail.right * low_right);
  slopes.x = top * (top_right - top_left) + detail.bottom * (low_right - low_left);
  slopes.y = left * (low_left - top_left) + detail.right * (low_right - top_right);
  return slopes;
}

// Writes the gradients of one point; adds its part of the reference's gradient to `reference_sum`.
template <typename T, Mode M>
__device__ __forceinline__ void finish_point(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                             const Row& row, int f, int j, int slot, accumulator_t<T> delta,
                                             const Stage<accumulator_t<T>>& stage,
                                             accumulator_t<T> (&reference_sum)[4]) {
  using A = accumulator_t<T>;
  const PointDetail<A> detail = stage.detail[slot];
  if (detail.packed < 0) return;
  const LevelEntry<A> level = table[detail.packed >> 8];
  const int64_t index = (row.head * p.frames + f) * static_cast<int>(p.per_frame.divisor) + j;
  Slopes<A> slopes = slopes_of(stage.dots[slot], detail);
  if constexpr (M == Mode::continuous) {
    const PointDetail<A> second = stage.detail[slot + 1];
    const Slopes<A> late = slopes_of(stage.dots[slot + 1], second);
    const A share = second.probability;
    const A change = late.sample - slopes.sample;
    // Every point has its tau, so a gradient is written even where it is zero.
    static_cast<A*>(p.grad_tau)[index] = detail.packed & 16 ? detail.probability * change : A(0);
    slopes.sample += share * change;
    slopes.x += share * (late.x - slopes.x);
    slopes.y += share * (late.y - slopes.y);
  }
  const A x = detail.probability * slopes.x, y = detail.probability * slopes.y;
  if constexpr (M != Mode::fused) {
    static_cast<A*>(p.grad_weights)[index] = slopes.sample;
    store_two(static_cast<A*>(p.grad_locations), index, x * static_cast<A>(level.width),
              y * static_cast<A>(level.height));
    return;
  }
  static_cast<T*>(p.grad_weights)[index] = narrow<T>(detail.probability * (slopes.sample - delta));
  T* grad_offsets = static_cast<T*>(p.grad_locations);
  const int64_t entry = (static_cast<int64_t>(row.b) * p.queries + row.q) * p.frames + f;
  if (p.reference_size == 2) {
    store_two(grad_offsets, index, x, y);
    reference_sum[0] += x * level.span_x;
    reference_sum[1] += y * level.span_y;
    return;
  }
  if ((detail.packed & 15) == 0) {
    store_two(grad_offsets, index, A(0), A(0));
    return;
  }
  A size_x, size_y, offset_x, offset_y;
  load_two<A>(static_cast<const A*>(p.reference) + entry * 4, 1, size_x, size_y);
  load_two(static_cast<const T*>(p.locations), index, offset_x, offset_y);
  const A step = A(0.5) / static_cast<A>(p.points);
  const A span_x = x * level.span_x, span_y = y * level.span_y;
  store_two(grad_offsets, index, span_x * step * size_x, span_y * step * size_y);
  reference_sum[0] += span_x;
  reference_sum[1] += span_y;
  reference_sum[2] += span_x * step * offset_x;
  reference_sum[3] += span_y * step * offset_y;
}

// One record: dot products of the four corners with grad_out, and the corners' gradients.
template <typename T, int PieceSize>
__device__ __forceinline__ void visit_corners(const T* value, accumulator_t<T>* grad_value, const CornerOffsets& at,
                                              const CornerWeights<accumulator_t<T>>& w,
                                              const accumulator_t<T> (&grad)[PieceSize], accumulator_t<T> (&dots)[4]) {
  using A = accumulator_t<T>;
  const bool scatter = at.right >= 0;
  const int right = scatter ? at.right : ~at.right;
  const T* top = value + at.first;
  const T* bottom = top + at.down;
  const Piece<T, PieceSize> piece[4] = {Piece<T, PieceSize>::load(top), Piece<T, PieceSize>::load(top + right),
                                        Piece<T, PieceSize>::load(bottom), Piece<T, PieceSize>::load(bottom + right)};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    A channel[PieceSize];
    piece[corner].unpack(channel);
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) dots[corner] += grad[c] * channel[c];
  }
  if (!scatter) return;
  A* grad_top = grad_value + at.first;
  A* grad_bottom = grad_top + at.down;
  A* const target[4] = {grad_top, grad_top + right, grad_bottom, grad_bottom + right};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (w.at[corner] == A(0)) continue;
    A part[PieceSize];
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) part[c] = w.at[corner] * grad[c];
    reduce_to_global<PieceSize, A>(target[corner], part);
  }
}

template <typename T, Mode M, int PieceSize, int Channels>
__global__ void __launch_bounds__(kBlockThreads) backward_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);
  shared += p.levels * sizeof(LevelEntry<A>);

  const Team<Channels, PieceSize> team(p);
  load_levels(p, team.b, table);
  const Stage<A> stage(shared, team.group, kBlockThreads / team.lanes,
                       team.records(team.lanes, kBackwardRecordsPerLane, kBackwardRecords));
  const Row row(p, team.b, team.q, team.h);
  const int channels = Channels > 0 ? Channels : p.channels;
  const int64_t head_offset =
      static_cast<int64_t>(team.b) * p.clip * (p.tokens * p.heads * channels) + team.h * channels;
  const T* value = static_cast<const T*>(p.value) + head_offset;
  A* grad_value = static_cast<A*>(p.grad_value_sum) + head_offset;
  const T* grad_out = static_cast<const T*>(p.grad_out) + row.head * channels;
  const int stride = team.lanes * PieceSize;

  A grad[PieceSize];
  const bool has_channels = Channels > 0 || team.first_channel < channels;
  A delta = 0;
#pragma unroll
  for (int c = 0; c < PieceSize; ++c) grad[c] = 0;
  if (has_channels) Piece<T, PieceSize>::load(grad_out + team.first_channel).unpack(grad);
  A lse = 0;
  if constexpr (M == Mode::fused) {
    lse = static_cast<const A*>(p.lse)[row.head];
    const T* out = static_cast<const T*>(p.out) + row.head * channels;
    for (int channel = team.first_channel; channel < channels; channel += stride) {
      A left[PieceSize], right[PieceSize];
      Piece<T, PieceSize>::load(grad_out + channel).unpack(left);
      Piece<T, PieceSize>::load(out + channel).unpack(right);
#pragma unroll
      for (int c = 0; c < PieceSize; ++c) delta += left[c] * right[c];
    }
    delta = sum_lanes(delta, team.lanes);
  }

  const int per_frame = p.levels * p.points;
  const int records_per_point = M == Mode::continuous ? 2 : 1;
  const int points_per_group = stage.slots / records_per_point;
  const int points_per_chunk = points_per_group * p.split_points;
  for (int round = 0; round < p.frames; round += p.split_frames) {
    const int f = round + team.frame_part;
    const bool has_frame = f < p.frames && team.active;
    const int frame = !has_frame ? -1 : (M == Mode::continuous ? 0 : frame_of(p, row, f));
    const int end = has_frame ? per_frame : 0;
    A reference_sum[4] = {0, 0, 0, 0};
    for (int base = 0; base < per_frame; base += points_per_chunk) {
      const int first = base + team.point_part;
      stage_backward<T, M>(p, table, row, f, frame, first, p.split_points, end, team.lane, team.lanes, lse, stage);
      __syncwarp();
      const int left = min(per_frame - base, points_per_chunk);
      const int count = (left + p.split_points - 1) / p.split_points * records_per_point;
      for (int i = 0; i < count; ++i) {
        const CornerOffsets at = stage.offsets[i];
        A dots[4] = {0, 0, 0, 0};
        if (at.first >= 0) {
          const CornerWeights<A> w = stage.weights[i];
          if (has_channels) {
            visit_corners<T, PieceSize>(value + team.first_channel, grad_value + team.first_channel, at, w, grad, dots);
          }
          if (Channels == 0) {
            for (int channel = team.first_channel + stride; channel < channels; channel += stride) {
              A more[PieceSize];
              Piece<T, PieceSize>::load(grad_out + channel).unpack(more);
              visit_corners<T, PieceSize>(value + channel, grad_value + channel, at, w, more, dots);
            }
          }
        }
        sum_four(dots, team.lane, team.lanes, stage.dots[i].at);
      }
      __syncwarp();
      for (int i = team.lane; i < points_per_group; i += team.lanes) {
        finish_point<T, M>(p, table, row, f, first + i * p.split_points, i * records_per_point, delta, stage,
                        reference_sum);
      }
      __syncwarp();
    }
    if constexpr (M != Mode::fused) continue;
    const int width = team.lanes * p.split_points;
#pragma unroll
    for (int i = 0; i < 4; ++i) reference_sum[i] = sum_lanes(reference_sum[i], width);
    if (has_frame && (team.member & (width - 1)) == 0) {
      A* heads = static_cast<A*>(p.grad_reference_heads) + (row.head * p.frames + f) * p.reference_size;
      store_two<A>(heads, 0, reference_sum[0], reference_sum[1]);
      if (p.reference_size == 4) store_two<A>(heads, 1, reference_sum[2], reference_sum[3]);
    }
  }
}

}  // namespace stdetr

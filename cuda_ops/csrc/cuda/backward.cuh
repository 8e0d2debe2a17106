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
  int packed;      // flags below and the level; -1: no such point
};

// All corner flags are 0 where the sample adds nothing.
constexpr int kLeft = 1, kRight = 2, kTop = 4, kBottom = 8, kCorners = 15;
constexpr int kSlope = 16;  // tau gets a gradient
constexpr int kLevelShift = 8;

// Set in CornerOffsets::right, a multiple of 2, where another kernel adds the gradient of value.
constexpr uint32_t kElsewhere = 1;

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

template <typename T, Rule R>
__device__ __forceinline__ void stage_backward(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                               const Row& row, const Anchor<accumulator_t<T>>& anchor,
                                               int64_t frame_points, int frame, int first, int stride, int end,
                                               int lane, int lanes, accumulator_t<T> lse,
                                               const Stage<accumulator_t<T>>& stage) {
  using A = accumulator_t<T>;
  constexpr bool twice = R == Rule::continuous;
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
    const Placed<A> placed = place<T, R>(p, table, anchor, frame_points + j, j, frame >= 0, lse);
    const LevelEntry<A> level = table[placed.level];
    const Spot<A> spot = spot_of(placed.x, placed.y, level.width, level.height);
    const int corners = (spot.has_left ? kLeft : 0) | (spot.has_right ? kRight : 0) | (spot.has_top ? kTop : 0) |
                        (spot.has_bottom ? kBottom : 0);
    const bool elsewhere = placed.level >= p.direct_levels;
    const auto put = [&](int at, int t, A probability, A kept, int extra) {
      CornerOffsets offsets{-1, 0, 0};
      int flags = placed.level << kLevelShift;
      if (spot.inside && t >= 0) {
        offsets = offsets_of<T>(p, spot, level, t);
        if (elsewhere) offsets.right |= kElsewhere;
        stage.weights[at] = weights_of(spot, probability);
        flags |= corners | extra;
      }
      stage.offsets[at] = offsets;
      stage.detail[at] = {kept, spot.right_share, spot.bottom_share, flags};
    };
    if constexpr (!twice) {
      put(slot, frame, placed.probability, placed.probability, 0);
    } else {
      const Moment<A> moment = moment_of<T>(p, row, j);
      const int slope = moment.has_slope ? kSlope : 0;
      put(slot, moment.frame[0], placed.probability * moment.share[0], placed.probability, slope);
      put(slot + 1, moment.frame[1], placed.probability * moment.share[1], moment.share[1], slope);
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
  if ((flags & kCorners) == 0) return {A(0), A(0), A(0)};
  // A pixel that does not exist was read from its neighbour: it counts as zero.
  const auto corner = [&](int i, int both) { return (flags & both) == both ? dots.at[i] : A(0); };
  const A top_left = corner(0, kTop | kLeft), top_right = corner(1, kTop | kRight);
  const A low_left = corner(2, kBottom | kLeft), low_right = corner(3, kBottom | kRight);
  const A left = A(1) - detail.right, top = A(1) - detail.bottom;
  Slopes<A> slopes;
  slopes.sample = top * (left * top_left + detail.right * top_right) +
                  detail.bottom * (left * low_left + detail.right * low_right);
  slopes.x = top * (top_right - top_left) + detail.bottom * (low_right - low_left);
  slopes.y = left * (low_left - top_left) + detail.right * (low_right - top_right);
  return slopes;
}

// Writes the gradients of point `index`; adds its part of the reference's gradient to `reference_sum`.
template <typename T, Rule R>
__device__ __forceinline__ void finish_point(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                             const Anchor<accumulator_t<T>>& anchor, int64_t index, int slot,
                                             accumulator_t<T> delta, const Stage<accumulator_t<T>>& stage,
                                             accumulator_t<T> (&reference_sum)[4]) {
  using A = accumulator_t<T>;
  const PointDetail<A> detail = stage.detail[slot];
  if (detail.packed < 0) return;
  const LevelEntry<A> level = table[detail.packed >> kLevelShift];
  Slopes<A> slopes = slopes_of(stage.dots[slot], detail);
  if constexpr (R == Rule::continuous) {
    const PointDetail<A> second = stage.detail[slot + 1];
    const Slopes<A> late = slopes_of(stage.dots[slot + 1], second);
    const A share = second.probability;
    const A change = late.sample - slopes.sample;
    // Every point has its tau, so a gradient is written even where it is zero.
    static_cast<A*>(p.grad_tau)[index] = detail.packed & kSlope ? detail.probability * change : A(0);
    slopes.sample += share * change;
    slopes.x += share * (late.x - slopes.x);
    slopes.y += share * (late.y - slopes.y);
  }
  const A x = detail.probability * slopes.x, y = detail.probability * slopes.y;
  if constexpr (!is_fused(R)) {
    static_cast<A*>(p.grad_weights)[index] = slopes.sample;
    store_two(static_cast<A*>(p.grad_locations), index, x * static_cast<A>(level.width),
              y * static_cast<A>(level.height));
  } else {
    T* grad_offsets = static_cast<T*>(p.grad_locations);
    static_cast<T*>(p.grad_weights)[index] = narrow<T>(detail.probability * (slopes.sample - delta));
    if ((detail.packed & kCorners) == 0) {
      store_two(grad_offsets, index, A(0), A(0));
      return;
    }
    A gain_x, gain_y;
    gain_of<R>(anchor, level, gain_x, gain_y);
    store_two(grad_offsets, index, x * gain_x, y * gain_y);
    reference_sum[0] += x * level.span_x;
    reference_sum[1] += y * level.span_y;
    if constexpr (R == Rule::fused_boxes) {
      A offset_x, offset_y;
      load_two(static_cast<const T*>(p.locations), index, offset_x, offset_y);
      // The size enters as size * 0.5 / K; that factor is applied when the sum is written.
      reference_sum[2] += x * level.span_x * offset_x;
      reference_sum[3] += y * level.span_y * offset_y;
    }
  }
}

// One record: dot products of the four corners with grad_out, and the corners' gradients.
template <typename T, int PieceSize>
__device__ __forceinline__ void visit_corners(const T* value, accumulator_t<T>* grad_value, const CornerOffsets& at,
                                              const CornerWeights<accumulator_t<T>>& w,
                                              const accumulator_t<T> (&grad)[PieceSize], accumulator_t<T> (&dots)[4]) {
  using A = accumulator_t<T>;
  constexpr int growth = sizeof(A) / sizeof(T);
  const uint32_t right = at.right & ~kElsewhere;
  const T* top = advance(value, at.first);
  const T* bottom = advance(top, at.down);
  const Piece<T, PieceSize> piece[4] = {Piece<T, PieceSize>::load(top), Piece<T, PieceSize>::load(advance(top, right)),
                                        Piece<T, PieceSize>::load(bottom), Piece<T, PieceSize>::load(advance(bottom, right))};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    A channel[PieceSize];
    piece[corner].unpack(channel);
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) dots[corner] += grad[c] * channel[c];
  }
  if (at.right & kElsewhere) return;
  A* grad_top = advance(grad_value, at.first * growth);
  A* grad_bottom = advance(grad_top, at.down * growth);
  A* const target[4] = {grad_top, advance(grad_top, right * growth), grad_bottom,
                        advance(grad_bottom, right * growth)};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    // No test for weight 0: only border points have such corners, and the pixel is their neighbour's.
    A part[PieceSize];
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) part[c] = w.at[corner] * grad[c];
    reduce_to_global<PieceSize, A>(target[corner], part);
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
  if constexpr (is_fused(R)) {
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
  const int records_per_point = R == Rule::continuous ? 2 : 1;
  const int points_per_group = stage.slots / records_per_point;
  const int points_per_chunk = points_per_group << team.point_shift;
  for (int round = 0; round < p.frames; round += p.split_frames) {
    const int f = round + team.frame_part;
    const bool has_frame = f < p.frames && team.active;
    const int frame = !has_frame ? -1 : (R == Rule::continuous ? 0 : frame_of(p, row, f));
    const int end = has_frame ? per_frame : 0;
    const Anchor<A> anchor = anchor_of<T, R>(p, row, has_frame ? f : 0);
    const int64_t frame_points = row.first_point(p, f);
    A reference_sum[4] = {0, 0, 0, 0};
    for (int base = 0; base < per_frame; base += points_per_chunk) {
      const int first = base + team.point_part;
      stage_backward<T, R>(p, table, row, anchor, frame_points, frame, first, p.split_points, end, team.lane, team.lanes,
                           lse, stage);
      __syncwarp();
      const int left = min(per_frame - base, points_per_chunk);
      const int count = team.share(left) * records_per_point;
      for (int i = 0; i < count; ++i) {
        const CornerOffsets at = load_offsets(stage.offsets + i);
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
        finish_point<T, R>(p, table, anchor, frame_points + first + i * p.split_points, i * records_per_point, delta,
                           stage, reference_sum);
      }
      __syncwarp();
    }
    if constexpr (!is_fused(R)) continue;
    const int width = team.lanes * p.split_points;
    reference_sum[0] = sum_lanes(reference_sum[0], width);
    reference_sum[1] = sum_lanes(reference_sum[1], width);
    if constexpr (R == Rule::fused_boxes) {
      reference_sum[2] = sum_lanes(reference_sum[2], width);
      reference_sum[3] = sum_lanes(reference_sum[3], width);
    }
    if (has_frame && (team.member & (width - 1)) == 0) {
      A* heads = static_cast<A*>(p.grad_reference_heads) + (row.head * p.frames + f) * (R == Rule::fused_boxes ? 4 : 2);
      store_two<A>(heads, 0, reference_sum[0], reference_sum[1]);
      if constexpr (R == Rule::fused_boxes) {
        const A step = A(0.5) / static_cast<A>(p.points);
        store_two<A>(heads, 1, reference_sum[2] * step, reference_sum[3] * step);
      }
    }
  }
}

}  // namespace stdetr

// Records of the backward kernels: how a group of lanes turns points into dot products with grad_out.
//
// Per record the lanes of a group load the four corners again, take their dot products with grad_out, reduce the four
// numbers over the group and leave them in shared memory; then one lane a point turns them into its gradients.  On
// levels below direct_levels the lanes add the gradient of value on the way.
//
// Shape legend: see problem.h.
#pragma once

#include "team.cuh"

namespace stdetr {

// Records of a group: two a lane, at most 8.
constexpr int kBackwardRecordsPerLane = 2, kBackwardRecords = 8;

// What the lane that finishes a point needs of it.
template <typename A>
struct alignas(16) PointDetail {
  A probability;
  A right, bottom;
  int packed;  // flags below and the level; -1: no such point
};

// All corner flags are 0 where the sample adds nothing.
constexpr int kLeft = 1, kRight = 2, kTop = 4, kBottom = 8, kCorners = 15;
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
                                               const Anchor<accumulator_t<T>>& anchor, int64_t frame_points,
                                               int frame, int first, int stride, int end, int lane, int lanes,
                                               accumulator_t<T> normaliser,
                                               const Stage<accumulator_t<T>>& stage) {
  using A = accumulator_t<T>;
  for (int slot = lane; slot < stage.slots; slot += lanes) {
    const int j = first + slot * stride;
    if (j >= end) {
      stage.detail[slot].packed = -1;
      stage.offsets[slot] = {-1, 0, 0};
      continue;
    }
    const Placed<A> placed = place<T, R>(p, table, anchor, frame_points + j, j, frame >= 0, normaliser);
    const LevelEntry<A> level = table[placed.level];
    const Spot<A> spot = spot_of(placed.x, placed.y, level.width, level.height);
    const int corners = (spot.has_left ? kLeft : 0) | (spot.has_right ? kRight : 0) | (spot.has_top ? kTop : 0) |
                        (spot.has_bottom ? kBottom : 0);
    CornerOffsets offsets{-1, 0, 0};
    int flags = placed.level << kLevelShift;
    if (spot.inside && frame >= 0) {
      offsets = offsets_of<T>(p, spot, level, frame);
      if (placed.level >= p.direct_levels) offsets.right |= kElsewhere;
      stage.weights[slot] = weights_of(spot, placed.probability);
      flags |= corners;
    }
    stage.offsets[slot] = offsets;
    stage.detail[slot] = {placed.probability, spot.right_share, spot.bottom_share, flags};
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

// Adds a point's part of the reference's gradient; (x, y) is the point's gradient in pixels.
template <typename T, Rule R>
__device__ __forceinline__ void add_to_reference(const Problem& p, const LevelEntry<accumulator_t<T>>& level,
                                                 const Anchor<accumulator_t<T>>& anchor, int64_t index, int j,
                                                 accumulator_t<T> x, accumulator_t<T> y, accumulator_t<T> (&sum)[4]) {
  using A = accumulator_t<T>;
  sum[0] += x * level.span_x;
  sum[1] += y * level.span_y;
  if constexpr (has_boxes(R)) {
    A offset_x, offset_y;
    load_location<T, R>(p, anchor, index, j, offset_x, offset_y);
    // The size enters as size * 0.5 / K; that factor is applied when the sum is written.
    sum[2] += x * level.span_x * offset_x;
    sum[3] += y * level.span_y * offset_y;
  }
}

// Leaves a head's share of the reference's gradient on frame entry f: the sum over the `width` lanes that share the
// frame.  `again`: added to what an earlier part of the points left there.
template <Rule R, typename A>
__device__ __forceinline__ void store_reference(const Problem& p, const Row& row, int f, int width, bool writes,
                                                bool again, A (&sum)[4]) {
  constexpr int numbers = has_boxes(R) ? 4 : 2;
#pragma unroll
  for (int i = 0; i < numbers; ++i) sum[i] = sum_lanes(sum[i], width);
  if (!writes) return;
  if constexpr (has_boxes(R)) {
    const A step = A(0.5) / static_cast<A>(p.points);
    sum[2] *= step;
    sum[3] *= step;
  }
  A* heads = static_cast<A*>(p.grad_reference_heads) + (row.head * p.frames + f) * numbers;
#pragma unroll
  for (int i = 0; i < numbers; i += 2) {
    if (again) sum[i] += heads[i], sum[i + 1] += heads[i + 1];
    store_two<A>(heads, i / 2, sum[i], sum[i + 1]);
  }
}

// Leaves the gradient of what frame entry f adds to the logits: the sum over the lanes that share the frame.
template <typename A>
__device__ __forceinline__ void store_frame_logit(const Problem& p, const Row& row, int f, int width, bool writes,
                                                  bool again, A sum) {
  if (p.grad_frame_logits == nullptr) return;
  sum = sum_lanes(sum, width);
  if (!writes) return;
  A* target = static_cast<A*>(p.grad_frame_logits) + row.head * p.frames + f;
  *target = again ? *target + sum : sum;
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

// A thread's piece of the channels of its query: grad_out there, and where value and its gradient start.
template <typename T, int PieceSize, int Channels>
struct ChannelPiece {
  using A = accumulator_t<T>;
  const T* value;  // head h of clip b, at the first channel of the piece
  A* grad_value;
  const T* grad_out;
  int channels, first, stride;
  A grad[PieceSize];

  __device__ __forceinline__ ChannelPiece(const Problem& p, const Team<Channels, PieceSize>& team, const Row& row)
      : channels(Channels > 0 ? Channels : p.channels), first(team.first_channel), stride(team.lanes * PieceSize) {
    const int64_t head = static_cast<int64_t>(team.b) * p.clip * (p.tokens * p.heads * channels) + team.h * channels;
    value = static_cast<const T*>(p.value) + head + first;
    grad_value = static_cast<A*>(p.grad_value_sum) + head + first;
    grad_out = static_cast<const T*>(p.grad_out) + row.head * channels;
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) grad[c] = 0;
    if (exists()) Piece<T, PieceSize>::load(grad_out + first).unpack(grad);
  }

  __device__ __forceinline__ bool exists() const { return Channels > 0 || first < channels; }

  // Sum of grad_out * out over all channels, the same for all lanes of the group.
  __device__ __forceinline__ A dot_out(const Problem& p, const Row& row, int lanes) const {
    const T* out = static_cast<const T*>(p.out) + row.head * channels;
    A sum = 0;
    for (int channel = first; channel < channels; channel += stride) {
      A left[PieceSize], right[PieceSize];
      Piece<T, PieceSize>::load(grad_out + channel).unpack(left);
      Piece<T, PieceSize>::load(out + channel).unpack(right);
#pragma unroll
      for (int c = 0; c < PieceSize; ++c) sum += left[c] * right[c];
    }
    return sum_lanes(sum, lanes);
  }

  // Leaves the corners' dot products of the first `count` records in shared memory, and adds to the gradient of value.
  __device__ __forceinline__ void visit(const Stage<A>& stage, int count, int lane, int lanes) const {
    for (int i = 0; i < count; ++i) {
      const CornerOffsets at = load_offsets(stage.offsets + i);
      A dots[4] = {0, 0, 0, 0};
      if (at.first >= 0) {
        const CornerWeights<A> w = stage.weights[i];
        if (exists()) visit_corners<T, PieceSize>(value, grad_value, at, w, grad, dots);
        if (Channels == 0) {
          for (int more = stride; first + more < channels; more += stride) {
            A other[PieceSize];
            Piece<T, PieceSize>::load(grad_out + first + more).unpack(other);
            visit_corners<T, PieceSize>(value + more, grad_value + more, at, w, other, dots);
          }
        }
      }
      sum_four(dots, lane, lanes, stage.dots[i].at);
    }
  }
};

}  // namespace stdetr

// From the arguments of the operator to sampled points: probability, pixel, corners, weights, addresses.
//
// One lane prepares a point and leaves a Record in shared memory; the lanes that own channels read it.  All of the
// operator's rules about what counts (outside, NaN, masked) are in this file.
//
// Shape legend: see problem.h.
#pragma once

#include <type_traits>

#include "problem.h"
#include "reduction.cuh"
#include "scalar.cuh"

namespace stdetr {

__device__ __forceinline__ int divide(int number, const FastDiv& by) {
  const uint32_t n = static_cast<uint32_t>(number);
  return static_cast<int>((__umulhi(n, by.multiplier) + n) >> by.shift);
}

// A level as the lanes look it up: (span_x, span_y) is the size in pixels of the unpadded frame's part.
template <typename A>
struct alignas(16) LevelEntry {
  int width, height, start, unused;
  A span_x, span_y;
};

// Copies the level table of clip b into shared memory; call with the whole block.
template <typename A>
__device__ __forceinline__ void load_levels(const Problem& p, int b, LevelEntry<A>* table) {
  for (int l = threadIdx.x; l < p.levels; l += blockDim.x) {
    const LevelShape shape = p.level[l];
    A ratio_x = 1, ratio_y = 1;
    if (p.valid_ratios != nullptr) {
      load_two<A>(static_cast<const A*>(p.valid_ratios), static_cast<int64_t>(b) * p.levels + l, ratio_x, ratio_y);
    }
    table[l] = {shape.width, shape.height, shape.start, 0, ratio_x * static_cast<A>(shape.width),
                ratio_y * static_cast<A>(shape.height)};
  }
  __syncthreads();
}

// Where a query stands: the (b, q, h) triple and its row in the tensors that start with B,Q,H.
struct Row {
  int b, q, h;
  int64_t head;  // (b * Q + q) * H + h

  __device__ __forceinline__ Row(const Problem& p, int batch, int query, int head_index)
      : b(batch), q(query), h(head_index), head((static_cast<int64_t>(batch) * p.queries + query) * p.heads + h) {}
};

// The frame that entry f of the query reads, or -1.
__device__ __forceinline__ int frame_of(const Problem& p, const Row& row, int f) {
  if (p.frame_index == nullptr) return f < p.clip ? f : -1;
  const int t = __ldg(p.frame_index + row.b * p.frame_stride[0] + row.q * p.frame_stride[1] + f * p.frame_stride[2]);
  return t < p.clip ? t : -1;
}

// Token of the i-th query of a block sequence.  Queries that are tokens are taken in strips of `tile_rows` rows, so
// that the queries of a block are a compact tile of the frame and their samples share cache lines.
__device__ __forceinline__ int ordered_query(const Problem& p, int i) {
  if (p.tile_rows <= 0) return i;
  const int repeat = i / p.tokens;
  int rest = i - repeat * p.tokens;
  int l = 0;
  while (l + 1 < p.levels && rest >= p.level[l + 1].start) ++l;
  const LevelShape shape = p.level[l];
  rest -= shape.start;
  const int strip = rest / (p.tile_rows * shape.width);
  const int first_row = strip * p.tile_rows;
  const int rows = min(p.tile_rows, shape.height - first_row);
  rest -= first_row * shape.width;
  const int column = rest / rows;
  return repeat * p.tokens + shape.start + (first_row + rest - column * rows) * shape.width + column;
}

// log of the sum of exp of the query's logits; the `width` neighbouring lanes that share the query call it together.
template <typename T>
__device__ __forceinline__ accumulator_t<T> log_sum_exp(const Problem& p, const Row& row, int lane, int width) {
  using A = accumulator_t<T>;
  const int count = p.frames * static_cast<int>(p.per_frame.divisor);
  const T* logits = static_cast<const T*>(p.weights) + row.head * count;
  A largest = minus_infinity<A>();
  for (int i = lane; i < count; i += width) {
    if (p.frame_index != nullptr && frame_of(p, row, divide(i, p.per_frame)) < 0) continue;
    const A logit = widen(__ldg(logits + i));
    largest = logit > largest || logit != logit ? logit : largest;
  }
  largest = max_lanes(largest, width);
  const A base = largest == minus_infinity<A>() ? A(0) : largest;
  A total = 0;
  for (int i = lane; i < count; i += width) {
    if (p.frame_index != nullptr && frame_of(p, row, divide(i, p.per_frame)) < 0) continue;
    total += exponential(widen(__ldg(logits + i)) - base);
  }
  total = sum_lanes(total, width);
  return largest == minus_infinity<A>() ? largest : largest + logarithm(total);
}

// Type of locations and weights: value's own for offsets and logits, the accumulation type otherwise.
template <typename T, Mode M>
using point_t = std::conditional_t<M == Mode::fused, T, accumulator_t<T>>;

// A point before interpolation: (x, y) in pixels of its level.
template <typename A>
struct Placed {
  A x, y, probability;
  int level;
};

// Point j of L * K on frame entry f.  `usable` says whether the frame may be read, `lse` is log_sum_exp (fused).
template <typename T, Mode M>
__device__ __forceinline__ Placed<accumulator_t<T>> place(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                                          const Row& row, int f, int j, bool usable,
                                                          accumulator_t<T> lse) {
  using A = accumulator_t<T>;
  const int64_t index = (row.head * p.frames + f) * static_cast<int>(p.per_frame.divisor) + j;
  Placed<A> placed;
  placed.level = divide(j, p.per_level);
  const LevelEntry<A> level = table[placed.level];
  A x, y;
  load_two(static_cast<const point_t<T, M>*>(p.locations), index, x, y);
  if constexpr (M != Mode::fused) {
    placed.x = x * static_cast<A>(level.width) - A(0.5);
    placed.y = y * static_cast<A>(level.height) - A(0.5);
    placed.probability = __ldg(static_cast<const A*>(p.weights) + index);
    return placed;
  }
  const A logit = widen(__ldg(static_cast<const point_t<T, M>*>(p.weights) + index));
  placed.probability = usable && lse != minus_infinity<A>() ? exponential(logit - lse) : A(0);
  const A* reference = static_cast<const A*>(p.reference) +
                       ((static_cast<int64_t>(row.b) * p.queries + row.q) * p.frames + f) * p.reference_size;
  A center_x, center_y;
  load_two<A>(reference, 0, center_x, center_y);
  if (p.reference_size == 2) {
    placed.x = center_x * level.span_x + x - A(0.5);
    placed.y = center_y * level.span_y + y - A(0.5);
  } else {
    A size_x, size_y;
    load_two<A>(reference, 1, size_x, size_y);
    const A step = A(0.5) / static_cast<A>(p.points);
    placed.x = (center_x + x * step * size_x) * level.span_x - A(0.5);
    placed.y = (center_y + y * step * size_y) * level.span_y - A(0.5);
  }
  return placed;
}

// The two frames of a continuous point and the share of the second.
template <typename A>
struct Moment {
  int frame[2];     // -1: masked, not read
  A share[2];       // add up to 1
  bool has_slope;   // tau gets a gradient
};

template <typename T>
__device__ __forceinline__ Moment<accumulator_t<T>> moment_of(const Problem& p, const Row& row, int j) {
  using A = accumulator_t<T>;
  const A tau = __ldg(static_cast<const A*>(p.tau) + row.head * static_cast<int>(p.per_frame.divisor) + j);
  Moment<A> moment{{-1, -1}, {A(1), A(0)}, false};
  if (tau != tau) return moment;
  const A last = static_cast<A>(p.clip - 1);
  const A time = tau < A(0) ? A(0) : (tau > last ? last : tau);
  const int first = min(static_cast<int>(time), max(p.clip - 2, 0));
  const int second = min(first + 1, p.clip - 1);
  const uint8_t* mask = p.frame_mask;
  const bool has_first = mask == nullptr || mask[static_cast<int64_t>(row.b) * p.clip + first] != 0;
  const bool has_second = mask == nullptr || mask[static_cast<int64_t>(row.b) * p.clip + second] != 0;
  const A share = has_first && has_second ? time - static_cast<A>(first) : (has_second ? A(1) : A(0));
  moment.frame[0] = has_first ? first : -1;
  moment.frame[1] = has_second ? second : -1;
  moment.share[0] = A(1) - share;
  moment.share[1] = share;
  moment.has_slope = has_first && has_second && tau >= A(0) && tau <= last;
  return moment;
}

// A point inside its level, as the bilinear rule sees it.  flags: bit 0 left, 1 right, 2 top, 3 bottom exist.
template <typename A>
struct Spot {
  A right, bottom;  // shares of the right column and the bottom row
  int left, top;
  int flags;  // 0: outside (or not a number)
};

template <typename A>
__device__ __forceinline__ Spot<A> spot_of(A x, A y, int width, int height) {
  Spot<A> spot{A(0), A(0), 0, 0, 0};
  // A NaN or an infinity fails these comparisons.
  if (x > A(-1) && y > A(-1) && x < static_cast<A>(width) && y < static_cast<A>(height)) {
    const A left = floor(x), top = floor(y);
    spot.right = x - left;
    spot.bottom = y - top;
    spot.left = static_cast<int>(left);
    spot.top = static_cast<int>(top);
    spot.flags = (spot.left >= 0 ? 1 : 0) | (spot.left + 1 < width ? 2 : 0) | (spot.top >= 0 ? 4 : 0) |
                 (spot.top + 1 < height ? 8 : 0);
  }
  return spot;
}

// What the channel lanes need of one bilinear sample.  Offsets count elements of value from head h of clip b.
template <typename A>
struct alignas(16) CornerWeights {
  A at[4];  // top left, top right, bottom left, bottom right, times the probability; 0 where a pixel does not exist
};

struct alignas(16) CornerOffsets {
  int64_t first;  // top left; negative: nothing to read
  int right;      // to the right column; negative (bitwise not): another kernel adds the gradient of value
  int down;       // to the bottom row
};

template <typename A>
__device__ __forceinline__ CornerWeights<A> weights_of(const Spot<A>& spot, A probability) {
  const A left = spot.flags & 1 ? A(1) - spot.right : A(0);
  const A right = spot.flags & 2 ? spot.right : A(0);
  const A top = (spot.flags & 4 ? A(1) - spot.bottom : A(0)) * probability;
  const A bottom = (spot.flags & 8 ? spot.bottom : A(0)) * probability;
  return {{top * left, top * right, bottom * left, bottom * right}};
}

// Offsets of a spot in an array of `step` numbers a token whose token 0 is at `base`.  Pixels that do not exist are
// replaced by their neighbour (their weight is 0), so that loads need no branches.
template <typename A>
__device__ __forceinline__ CornerOffsets offsets_in(const Spot<A>& spot, const LevelEntry<A>& level, int64_t base,
                                                    int step) {
  const int column = max(spot.left, 0), row = max(spot.top, 0);
  CornerOffsets offsets;
  // One frame has fewer than 2^31 elements (checked by plan()); a clip may have more.
  offsets.first = base + (level.start + row * level.width + column) * step;
  offsets.right = (spot.flags & 3) == 3 ? step : 0;
  offsets.down = (spot.flags & 12) == 12 ? level.width * step : 0;
  return offsets;
}

// Offsets in value, from head h of clip b; negative where the spot is outside or its frame masked.
template <typename A>
__device__ __forceinline__ CornerOffsets offsets_of(const Problem& p, const Spot<A>& spot,
                                                    const LevelEntry<A>& level, int frame) {
  if (spot.flags == 0 || frame < 0) return {-1, 0, 0};
  const int step = p.heads * p.channels;
  return offsets_in(spot, level, static_cast<int64_t>(frame) * (p.tokens * step), step);
}

}  // namespace stdetr

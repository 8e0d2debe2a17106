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

// The position of a query: the (b, q, h) triple and its row in the tensors that start with B,Q,H.
struct Row {
  int b, q, h;
  int64_t head;  // (b * Q + q) * H + h

  // Of the first point of frame entry f, in the tensors that end with F,L,K (temporal: L,K for all frames).
  template <Rule R>
  __device__ __forceinline__ int64_t first_point(const Problem& p, int f) const {
    return (is_temporal(R) ? head : head * p.frames + f) * static_cast<int>(p.per_frame.divisor);
  }

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

// The signed distance in time of frame entry f.
template <typename A>
__device__ __forceinline__ A distance_of(const Problem& p, const Row& row, int f) {
  return __ldg(static_cast<const A*>(p.dt) + (static_cast<int64_t>(row.b) * p.queries + row.q) * p.frames + f);
}

// What frame entry f adds to the logits of all its points.
template <typename A>
__device__ __forceinline__ A frame_logit_of(const Problem& p, const Row& row, int f) {
  return p.frame_logits == nullptr ? A(0) : __ldg(static_cast<const A*>(p.frame_logits) + row.head * p.frames + f);
}

// What the probability of a point of frame entry f is measured against: exp(logit - normaliser).
template <typename A>
__device__ __forceinline__ A normaliser_of(const Problem& p, const Row& row, int f, A lse) {
  return lse == minus_infinity<A>() ? lse : lse - frame_logit_of<A>(p, row, f);
}

// Row of the tables for a distance, -1 at 0 and NaN: rows 0..R/2-1 are -R/2..-1, the others 1..R/2, clamped beyond.
template <typename A>
__device__ __forceinline__ int table_row(const Problem& p, A distance) {
  const int half = p.table_rows / 2;
  const A reach = static_cast<A>(half);
  const A bounded = distance > reach ? reach : (distance < -reach ? -reach : distance);
  const int steps = bounded == bounded ? static_cast<int>(rint(bounded)) : 0;  // halves to even
  return steps == 0 ? -1 : (steps < 0 ? steps + half : steps + half - 1);
}

// Of point j of head h in that row of a table, in points.
__device__ __forceinline__ int table_entry(const Problem& p, int row, int h, int j) {
  return (row * p.heads + h) * static_cast<int>(p.per_frame.divisor) + j;
}

// Type of locations and weights: value's own for offsets and logits, the accumulation type otherwise.
template <typename T, Rule R>
using point_t = std::conditional_t<is_fused(R), T, accumulator_t<T>>;

// What a query's points of one frame entry share: the reference, and the distance in time.
// pixel = center * span + offset * gain - 0.5, where the gain is 1 for points and size * span * 0.5 / K for boxes.
template <typename A>
struct Anchor {
  A x, y;
  A size_x, size_y;  // times 0.5 / K; boxes only
  A distance;        // in time, and the row of the tables for it; temporal only
  int row, h;
};

template <typename T, Rule R>
__device__ __forceinline__ Anchor<accumulator_t<T>> anchor_of(const Problem& p, const Row& row, int f) {
  using A = accumulator_t<T>;
  Anchor<A> anchor{A(0), A(0), A(0), A(0), A(0), -1, row.h};
  if constexpr (is_fused(R)) {
    const A* reference = static_cast<const A*>(p.reference) +
                         ((static_cast<int64_t>(row.b) * p.queries + row.q) * p.frames + f) *
                             (has_boxes(R) ? 4 : 2);
    load_two<A>(reference, 0, anchor.x, anchor.y);
    if constexpr (has_boxes(R)) {
      load_two<A>(reference, 1, anchor.size_x, anchor.size_y);
      const A step = A(0.5) / static_cast<A>(p.points);
      anchor.size_x *= step;
      anchor.size_y *= step;
    }
  }
  if constexpr (is_temporal(R)) {
    anchor.distance = distance_of<A>(p, row, f);
    anchor.row = table_row(p, anchor.distance);
  }
  return anchor;
}

template <Rule R, typename A>
__device__ __forceinline__ void gain_of(const Anchor<A>& anchor, const LevelEntry<A>& level, A& gain_x, A& gain_y) {
  gain_x = has_boxes(R) ? anchor.size_x * level.span_x : A(1);
  gain_y = has_boxes(R) ? anchor.size_y * level.span_y : A(1);
}

// Location (offset) of point `index`, point j of its frame entry.
template <typename T, Rule R>
__device__ __forceinline__ void load_location(const Problem& p, const Anchor<accumulator_t<T>>& anchor, int64_t index,
                                              int j, accumulator_t<T>& x, accumulator_t<T>& y) {
  using A = accumulator_t<T>;
  load_two(static_cast<const point_t<T, R>*>(p.locations), index, x, y);
  if constexpr (is_temporal(R)) {
    A fast_x, fast_y;
    load_two(static_cast<const T*>(p.velocity), index, fast_x, fast_y);
    x += anchor.distance * fast_x;
    y += anchor.distance * fast_y;
    if (anchor.row < 0) return;
    A more_x, more_y;
    load_two(static_cast<const A*>(p.offset_table), table_entry(p, anchor.row, anchor.h, j), more_x, more_y);
    x += more_x;
    y += more_y;
  }
}

// A point before interpolation: (x, y) in pixels of its level.
template <typename A>
struct Placed {
  A x, y, probability;
  int level;
};

// Point `index` of the tensors that end with L,K: point j of L * K on the frame entry of `anchor`.
// `usable` says whether the frame may be read, `normaliser` is that of the frame entry (fused).
template <typename T, Rule R>
__device__ __forceinline__ Placed<accumulator_t<T>> place(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                                          const Anchor<accumulator_t<T>>& anchor, int64_t index, int j,
                                                          bool usable, accumulator_t<T> normaliser) {
  using A = accumulator_t<T>;
  Placed<A> placed;
  placed.level = divide(j, p.per_level);
  const LevelEntry<A> level = table[placed.level];
  A x, y;
  load_location<T, R>(p, anchor, index, j, x, y);
  A weight = widen(__ldg(static_cast<const point_t<T, R>*>(p.weights) + index));
  if constexpr (is_temporal(R)) {
    if (anchor.row >= 0) {
      weight += __ldg(static_cast<const A*>(p.logit_table) + table_entry(p, anchor.row, anchor.h, j));
    }
  }
  if constexpr (is_fused(R)) {
    A gain_x, gain_y;
    gain_of<R>(anchor, level, gain_x, gain_y);
    placed.x = anchor.x * level.span_x + (x * gain_x - A(0.5));
    placed.y = anchor.y * level.span_y + (y * gain_y - A(0.5));
    placed.probability = usable && normaliser != minus_infinity<A>() ? exponential(weight - normaliser) : A(0);
  } else {
    placed.x = x * static_cast<A>(level.width) - A(0.5);
    placed.y = y * static_cast<A>(level.height) - A(0.5);
    placed.probability = weight;
  }
  return placed;
}

// A point inside its level, as the bilinear rule sees it.
template <typename A>
struct Spot {
  A right_share, bottom_share;
  int left, top;
  bool inside;  // false: outside, or not a number
  bool has_left, has_right, has_top, has_bottom;
};

template <typename A>
__device__ __forceinline__ Spot<A> spot_of(A x, A y, int width, int height) {
  Spot<A> spot;
  // A NaN or an infinity fails these comparisons.
  spot.inside = x > A(-1) && y > A(-1) && x < static_cast<A>(width) && y < static_cast<A>(height);
  x = spot.inside ? x : A(0);
  y = spot.inside ? y : A(0);
  const A left = floor(x), top = floor(y);
  spot.right_share = x - left;
  spot.bottom_share = y - top;
  spot.left = static_cast<int>(left);
  spot.top = static_cast<int>(top);
  spot.has_left = spot.left >= 0;
  spot.has_right = spot.left + 1 < width;
  spot.has_top = spot.top >= 0;
  spot.has_bottom = spot.top + 1 < height;
  return spot;
}

// What the channel lanes need of one bilinear sample: weights, and offsets in the units of their producer (bytes of
// value for the forward and backward kernels).
template <typename A>
struct alignas(16) CornerWeights {
  A at[4];  // top left, top right, bottom left, bottom right, times the probability; 0 where a pixel does not exist
};

struct alignas(16) CornerOffsets {
  int64_t first;   // top left; negative: nothing to read (backward)
  uint32_t right;  // to the right column
  uint32_t down;   // to the bottom row
};

__device__ __forceinline__ CornerOffsets load_offsets(const CornerOffsets* source) {
  // One 16-byte access; the compiler would split a struct of mixed widths.
  const uint4 raw = *reinterpret_cast<const uint4*>(source);
  return {static_cast<int64_t>(static_cast<uint64_t>(raw.y) << 32 | raw.x), raw.z, raw.w};
}

template <typename A>
__device__ __forceinline__ CornerWeights<A> weights_of(const Spot<A>& spot, A probability) {
  const A left = spot.has_left ? A(1) - spot.right_share : A(0);
  const A right = spot.has_right ? spot.right_share : A(0);
  const A top = (spot.has_top ? A(1) - spot.bottom_share : A(0)) * probability;
  const A bottom = (spot.has_bottom ? spot.bottom_share : A(0)) * probability;
  return {{top * left, top * right, bottom * left, bottom * right}};
}

// Offsets of a spot in an array with `step` units per token whose token 0 is at `base`.  Pixels that do not exist are
// replaced by their neighbour (their weight is 0), so that loads need no branches.
template <typename A>
__device__ __forceinline__ CornerOffsets offsets_in(const Spot<A>& spot, const LevelEntry<A>& level, int64_t base,
                                                    int step) {
  const int column = max(spot.left, 0), row = max(spot.top, 0);
  CornerOffsets offsets;
  // A row has fewer than 2^31 units (checked by plan()); a frame may have more.
  offsets.first = base + static_cast<int64_t>(level.start + row * level.width + column) * step;
  offsets.right = spot.has_left && spot.has_right ? static_cast<uint32_t>(step) : 0u;
  offsets.down = spot.has_top && spot.has_bottom ? static_cast<uint32_t>(level.width * step) : 0u;
  return offsets;
}

// Elements of value before frame `frame`, from the start of its clip.
__device__ __forceinline__ int64_t frame_start(const Problem& p, int frame) {
  return static_cast<int64_t>(frame) * (p.tokens * p.heads * p.channels);
}

// Offsets in bytes of value from head h of clip b, for a spot inside frame `frame`.
template <typename T, typename A>
__device__ __forceinline__ CornerOffsets offsets_of(const Problem& p, const Spot<A>& spot,
                                                    const LevelEntry<A>& level, int frame) {
  constexpr int size = static_cast<int>(sizeof(T));
  return offsets_in(spot, level, frame_start(p, frame) * size, p.heads * p.channels * size);
}

}  // namespace stdetr

// The softmax's normaliser: log-sum-exp of a query's logits over its frames, levels and points.
//
// Shape legend: see problem.h.
#pragma once

#include "points.cuh"

namespace stdetr {

// A running sum of exp(x - largest).
template <typename A>
struct ExpSum {
  A largest = minus_infinity<A>(), total = 0;

  template <int N>
  __device__ __forceinline__ void add(const A (&logits)[N]) {
    A next = largest;
#pragma unroll
    for (int i = 0; i < N; ++i) next = logits[i] > next || logits[i] != logits[i] ? logits[i] : next;
    if (next == minus_infinity<A>()) return;
    total *= exponential(largest - next);
    largest = next;
#pragma unroll
    for (int i = 0; i < N; ++i) total += exponential(logits[i] - next);
  }
};

// Logits i to i + N of the query's F * L * K, all of one frame entry; false: the frame is masked.
template <typename T, Rule R, int N>
__device__ __forceinline__ bool load_logits(const Problem& p, const Row& row, const T* logits, int i,
                                            accumulator_t<T> (&loaded)[N]) {
  using A = accumulator_t<T>;
  if constexpr (!is_temporal(R)) {
    if (p.frame_index != nullptr && frame_of(p, row, divide(i, p.per_frame)) < 0) return false;
    Piece<T, N>::load(logits + i).unpack(loaded);
  } else {
    const int f = divide(i, p.per_frame);
    if (frame_of(p, row, f) < 0) return false;
    const int j = i - f * static_cast<int>(p.per_frame.divisor);
    Piece<T, N>::load(logits + j).unpack(loaded);
    const int from = table_row(p, distance_of<A>(p, row, f));
    if (from >= 0) {
      const A* added = static_cast<const A*>(p.logit_table) + table_entry(p, from, row.h, j);
      constexpr int kStep = N < kPiece<A> ? N : kPiece<A>;
#pragma unroll
      for (int first = 0; first < N; first += kStep) {
        A piece[kStep];
        Piece<A, kStep>::load(added + first).unpack(piece);
#pragma unroll
        for (int k = 0; k < kStep; ++k) loaded[first + k] += piece[k];
      }
    }
  }
  if (p.frame_logits != nullptr) {
    const A more = frame_logit_of<A>(p, row, divide(i, p.per_frame));
#pragma unroll
    for (int k = 0; k < N; ++k) loaded[k] += more;
  }
  return true;
}

// log of the sum of exp of the query's logits; the `width` neighbouring lanes that share the query call it together.
template <typename T, Rule R>
__device__ __forceinline__ accumulator_t<T> log_sum_exp(const Problem& p, const Row& row, int lane, int width) {
  using A = accumulator_t<T>;
  const int per_frame = static_cast<int>(p.per_frame.divisor);
  const int count = p.frames * per_frame;
  const T* logits = static_cast<const T*>(p.weights) + row.first_point<R>(p, 0);
  ExpSum<A> sum;
  constexpr int kWide = sizeof(T) < 8 ? kPiece<T> : 1;
  if (kWide > 1 && per_frame % kWide == 0) {
    // A 16-byte piece lies in one frame.
    for (int i = lane * kWide; i < count; i += width * kWide) {
      A piece[kWide];
      if (load_logits<T, R>(p, row, logits, i, piece)) sum.add(piece);
    }
  } else {
    for (int i = lane; i < count; i += width) {
      A one[1];
      if (load_logits<T, R>(p, row, logits, i, one)) sum.add(one);
    }
  }
  const A largest = max_lanes(sum.largest, width);
  const bool any = largest != minus_infinity<A>();
  // Lanes without a usable logit have total 0; -inf - -inf must not make it NaN.
  const A total = sum_lanes(any ? sum.total * exponential(sum.largest - largest) : A(0), width);
  return any ? largest + logarithm(total) : largest;
}

}  // namespace stdetr

// Sums into memory: vector reductions to global memory, pairs to shared memory, and sums across lanes.
#pragma once

#include "platform.cuh"

namespace stdetr {

constexpr unsigned int kWholeWarp = 0xffffffffu;

// target[0..N) += values.  sm_90 moves four floats in one instruction; older processors take one at a time.
template <int N, typename A>
__device__ __forceinline__ void reduce_to_global(A* target, const A (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) atomicAdd(target + i, values[i]);
}

__device__ __forceinline__ void reduce_four(float* target, float x, float y, float z, float w) {
#ifdef STDETR_HOST_HARNESS
  host::reduce_four(target, x, y, z, w);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)),
               "f"(x), "f"(y), "f"(z), "f"(w)
               : "memory");
#else
  atomicAdd(target, x);
  atomicAdd(target + 1, y);
  atomicAdd(target + 2, z);
  atomicAdd(target + 3, w);
#endif
}

template <>
__device__ __forceinline__ void reduce_to_global<4, float>(float* target, const float (&values)[4]) {
  reduce_four(target, values[0], values[1], values[2], values[3]);
}

template <>
__device__ __forceinline__ void reduce_to_global<8, float>(float* target, const float (&values)[8]) {
  reduce_four(target, values[0], values[1], values[2], values[3]);
  reduce_four(target + 4, values[4], values[5], values[6], values[7]);
}

// Two floats as one 64-bit word.
__device__ __forceinline__ unsigned long long add_two(unsigned long long word, float first, float second) {
  const unsigned int low = __float_as_uint(__uint_as_float(static_cast<unsigned int>(word)) + first);
  const unsigned int high = __float_as_uint(__uint_as_float(static_cast<unsigned int>(word >> 32)) + second);
  return static_cast<unsigned long long>(high) << 32 | low;
}

__device__ __forceinline__ void retry_two_shared(unsigned long long* word, unsigned long long seen, float first,
                                                 float second) {
  while (true) {
    const unsigned long long found = atomicCAS(word, seen, add_two(seen, first, second));
    if (found == seen) return;
    seen = found;
  }
}

// a[0..2) += (a_first, a_second) and b likewise, in shared memory.  Float addition there is a compare-and-swap loop on
// every processor so far; one 64-bit loop costs little more than one of 32 bits, so two channels share it, and the
// first try of both words overlaps.  a and b may be the same word: then the second try fails and is repeated.
__device__ __forceinline__ void reduce_two_shared(float* a, float a_first, float a_second, float* b, float b_first,
                                                  float b_second) {
  unsigned long long* a_word = reinterpret_cast<unsigned long long*>(a);
  unsigned long long* b_word = reinterpret_cast<unsigned long long*>(b);
  const unsigned long long a_seen = *reinterpret_cast<volatile unsigned long long*>(a_word);
  const unsigned long long b_seen = *reinterpret_cast<volatile unsigned long long*>(b_word);
  const unsigned long long a_found = atomicCAS(a_word, a_seen, add_two(a_seen, a_first, a_second));
  const unsigned long long b_found = atomicCAS(b_word, b_seen, add_two(b_seen, b_first, b_second));
  if (a_found != a_seen) retry_two_shared(a_word, a_found, a_first, a_second);
  if (b_found != b_seen) retry_two_shared(b_word, b_found, b_first, b_second);
}

// Sum (or maximum) over `width` neighbouring lanes, a power of two; every lane gets the result.
template <typename A>
__device__ __forceinline__ A sum_lanes(A value, int width) {
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(kWholeWarp, value, step);
  return value;
}

template <typename A>
__device__ __forceinline__ A max_lanes(A value, int width) {
  for (int step = width / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(kWholeWarp, value, step);
    // A NaN on either side survives.
    value = other > value || other != other ? other : value;
  }
  return value;
}

// Sums four numbers over the lanes of a group and leaves them in slot[0..4).  Half of the numbers are handed over at
// each of the first two steps, so four lanes need three exchanges instead of eight.
template <typename A>
__device__ __forceinline__ void sum_four(const A (&part)[4], int lane, int lanes, A* slot) {
  if (lanes == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) slot[i] = part[i];
    return;
  }
  const bool odd = lane & 1;
  A first = odd ? part[2] : part[0];
  A second = odd ? part[3] : part[1];
  first += __shfl_xor_sync(kWholeWarp, odd ? part[0] : part[2], 1);
  second += __shfl_xor_sync(kWholeWarp, odd ? part[1] : part[3], 1);
  if (lanes == 2) {
    slot[lane * 2] = first;
    slot[lane * 2 + 1] = second;
    return;
  }
  const bool upper = lane & 2;
  A mine = upper ? second : first;
  mine += __shfl_xor_sync(kWholeWarp, upper ? first : second, 2);
  for (int step = 4; step < lanes; step *= 2) mine += __shfl_xor_sync(kWholeWarp, mine, step);
  if (lane < 4) slot[(odd ? 2 : 0) + (upper ? 1 : 0)] = mine;
}

}  // namespace stdetr

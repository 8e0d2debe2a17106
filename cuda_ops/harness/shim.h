// CUDA's language and built-ins for g++: enough to run the kernels' own source on the host.
//
// A block's threads are fibers (fibers.h); barriers, shuffles and votes are honoured and checked: a thread that misses
// one is a deadlock, which raises.  Accesses of more than 4 bytes check their alignment.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float __uint_as_float(unsigned int bits) { return bits_as<float>(bits); }
inline unsigned int __float_as_uint(float value) { return bits_as<unsigned int>(value); }
inline double __longlong_as_double(long long bits) { return bits_as<double>(bits); }
inline long long __double_as_longlong(double value) { return bits_as<long long>(value); }
inline long long __double2ll_rn(double value) { return std::llrint(value); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int __ffs(unsigned int bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(bits)); }
using std::max;
using std::min;
using std::floor;
using std::fabs;
using std::rint;

// bfloat16 and half precision, rounding to nearest even.
struct __nv_bfloat16 {
  unsigned short bits;
};
struct __half {
  unsigned short bits;
};
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(static_cast<unsigned int>(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const unsigned int bits = __float_as_uint(value);
  if (value != value) return {static_cast<unsigned short>(0x7fff)};
  return {static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
inline float __half2float(__half value) {
  const int exponent = (value.bits >> 10) & 31, fraction = value.bits & 1023;
  float size;
  if (exponent == 31) {
    size = fraction != 0 ? NAN : INFINITY;
  } else {
    size = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                         : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return value.bits & 0x8000 ? -size : size;
}
inline __half __float2half_rn(float value) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  if (value != value) return {static_cast<unsigned short>(0x7fff)};
  const float size = std::fabs(value);
  if (size >= 65520.0f) return {static_cast<unsigned short>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(size, &exponent);
  // Steps of 2^-24 below the smallest normal number, 2^(exponent - 11) above it; nearbyint rounds ties to even.
  const int step = size < 6.103515625e-05f ? -24 : exponent - 11;
  const unsigned int steps = static_cast<unsigned int>(std::nearbyint(std::ldexp(size, -step)));
  const unsigned int bits = size < 6.103515625e-05f ? steps : (static_cast<unsigned int>(step + 24) << 10) + steps;
  return {static_cast<unsigned short>(sign | bits)};
}

template <typename T>
inline T __ldg(const T* source) {
  stdetr::host::check_aligned(source, alignof(T), "read");
  return *source;
}

// One operating system thread steps all fibers, and none is interrupted inside these: they are atomic as they stand.
template <typename T>
inline T atomicAdd(T* target, T value) {
  stdetr::host::check_aligned(target, alignof(T), "addition");
  const T before = *target;
  *target = before + value;
  return before;
}
inline unsigned long long atomicMax(unsigned long long* target, unsigned long long value) {
  const unsigned long long before = *target;
  *target = std::max(before, value);
  return before;
}
inline unsigned long long atomicCAS(unsigned long long* target, unsigned long long expected, unsigned long long value) {
  const unsigned long long before = *target;
  if (before == expected) *target = value;
  return before;
}

#define threadIdx (::stdetr::host::thread_index())
#define blockIdx (::stdetr::host::block_index())
#define blockDim (::stdetr::host::block_size())
#define gridDim (::stdetr::host::grid_size())

inline void __syncthreads() { stdetr::host::block_barrier(); }
inline void __syncwarp() { stdetr::host::warp_barrier(); }
inline unsigned int __ballot_sync(unsigned int mask, bool vote) { return stdetr::host::ballot(mask, vote); }

template <typename T>
inline T __shfl_xor_sync(unsigned int mask, T value, int step) {
  static_assert(sizeof(T) <= 8, "one register or two");
  T result;
  stdetr::host::exchange(mask, &value, &result, sizeof(T), step);
  return result;
}

namespace stdetr {

using Stream = void*;

inline unsigned char* dynamic_shared() { return host::shared_memory(); }

namespace host {
inline void reduce_four(float* target, float x, float y, float z, float w) {
  check_aligned(target, 16, "four-fold addition");
  target[0] += x, target[1] += y, target[2] += z, target[3] += w;
}
}  // namespace host

template <typename Kernel, typename... Args>
void launch(const char* name, Kernel kernel, unsigned int blocks, unsigned int threads, size_t shared_bytes,
            Stream, const Args&... args) {
  host::run_grid(name, blocks, threads, shared_bytes, [&] { kernel(args...); });
}

inline void clear_memory(void* data, size_t bytes, Stream) { std::memset(data, 0, bytes); }

}  // namespace stdetr

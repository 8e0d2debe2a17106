// Storage types and their accumulation types; 16-byte loads and stores of channels.
#pragma once

#include <type_traits>

#include "platform.cuh"

namespace stdetr {

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

// Channels that one 16-byte access moves.
template <typename T>
constexpr int kPiece = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
struct Narrow;
template <>
struct Narrow<float> {
  static __device__ __forceinline__ float from(float value) { return value; }
};
template <>
struct Narrow<double> {
  static __device__ __forceinline__ double from(double value) { return value; }
};
template <>
struct Narrow<__half> {
  static __device__ __forceinline__ __half from(float value) { return __float2half_rn(value); }
};
template <>
struct Narrow<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 from(float value) { return __float2bfloat16_rn(value); }
};

template <typename T>
__device__ __forceinline__ T narrow(accumulator_t<T> value) {
  return Narrow<T>::from(value);
}

// One word with two 16-bit numbers, the first in the low half.
template <typename T>
struct Halves;
template <>
struct Halves<__nv_bfloat16> {
  static __device__ __forceinline__ void split(uint32_t word, float& first, float& second) {
    first = __uint_as_float(word << 16);
    second = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ uint32_t join(float first, float second) {
    return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(first))) |
           static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(second))) << 16;
  }
};
template <>
struct Halves<__half> {
  static __device__ __forceinline__ void split(uint32_t word, float& first, float& second) {
    first = __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
    second = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
  }
  static __device__ __forceinline__ uint32_t join(float first, float second) {
    return static_cast<uint32_t>(__half_as_ushort(__float2half_rn(first))) |
           static_cast<uint32_t>(__half_as_ushort(__float2half_rn(second))) << 16;
  }
};

// N channels as they lie in memory: one 16-byte register quadruple, or one element.
template <typename T, int N>
struct Piece {
  static_assert(N == 1, "only whole 16-byte pieces or single elements");
  T raw;
  static __device__ __forceinline__ Piece load(const T* source) { return {__ldg(source)}; }
  __device__ __forceinline__ void unpack(accumulator_t<T> (&into)[1]) const { into[0] = widen(raw); }
  static __device__ __forceinline__ void store(T* target, const accumulator_t<T> (&from)[1]) {
    *target = narrow<T>(from[0]);
  }
};

template <>
struct Piece<float, 4> {
  float4 raw;
  static __device__ __forceinline__ Piece load(const float* source) {
    return {__ldg(reinterpret_cast<const float4*>(source))};
  }
  __device__ __forceinline__ void unpack(float (&into)[4]) const {
    into[0] = raw.x, into[1] = raw.y, into[2] = raw.z, into[3] = raw.w;
  }
  static __device__ __forceinline__ void store(float* target, const float (&from)[4]) {
    *reinterpret_cast<float4*>(target) = make_float4(from[0], from[1], from[2], from[3]);
  }
};

template <typename T>
struct Piece<T, 8> {
  uint4 raw;
  static __device__ __forceinline__ Piece load(const T* source) {
    return {__ldg(reinterpret_cast<const uint4*>(source))};
  }
  __device__ __forceinline__ void unpack(float (&into)[8]) const {
    Halves<T>::split(raw.x, into[0], into[1]);
    Halves<T>::split(raw.y, into[2], into[3]);
    Halves<T>::split(raw.z, into[4], into[5]);
    Halves<T>::split(raw.w, into[6], into[7]);
  }
  static __device__ __forceinline__ void store(T* target, const float (&from)[8]) {
    *reinterpret_cast<uint4*>(target) =
        make_uint4(Halves<T>::join(from[0], from[1]), Halves<T>::join(from[2], from[3]),
                   Halves<T>::join(from[4], from[5]), Halves<T>::join(from[6], from[7]));
  }
};

// Two neighbouring numbers in one access.
template <typename T>
__device__ __forceinline__ void load_two(const T* data, int64_t pair, accumulator_t<T>& x, accumulator_t<T>& y) {
  if constexpr (sizeof(T) == 2) {
    Halves<T>::split(__ldg(reinterpret_cast<const uint32_t*>(data) + pair), x, y);
  } else if constexpr (sizeof(T) == 4) {
    const float2 both = __ldg(reinterpret_cast<const float2*>(data) + pair);
    x = both.x, y = both.y;
  } else {
    const double2 both = __ldg(reinterpret_cast<const double2*>(data) + pair);
    x = both.x, y = both.y;
  }
}

template <typename T>
__device__ __forceinline__ void store_two(T* data, int64_t pair, accumulator_t<T> x, accumulator_t<T> y) {
  if constexpr (sizeof(T) == 2) {
    reinterpret_cast<uint32_t*>(data)[pair] = Halves<T>::join(x, y);
  } else if constexpr (sizeof(T) == 4) {
    reinterpret_cast<float2*>(data)[pair] = make_float2(x, y);
  } else {
    reinterpret_cast<double2*>(data)[pair] = make_double2(x, y);
  }
}

// pointer moved by a number of bytes.
template <typename T, typename Bytes>
__device__ __forceinline__ T* advance(T* pointer, Bytes bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

// exp by the processor's power of two: relative error about 2^-22 times the exponent; below 2^-126 it is 0.
__device__ __forceinline__ float exponential(float value) {
#ifdef STDETR_HOST_HARNESS
  return std::exp2(value * 1.44269504088896341f);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value * 1.44269504088896341f));
  return result;
#endif
}
__device__ __forceinline__ double exponential(double value) { return exp(value); }
__device__ __forceinline__ float logarithm(float value) { return logf(value); }
__device__ __forceinline__ double logarithm(double value) { return log(value); }

template <typename A>
__device__ __forceinline__ A minus_infinity() {
  return -static_cast<A>(INFINITY);
}

}  // namespace stdetr

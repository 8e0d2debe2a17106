// Small kernels around the backward pass: bounds for fixed point, conversion of sums, sum over heads.
//
// Shape legend: see problem.h.
#pragma once

#include "scatter.cuh"

namespace stdetr {

constexpr int kFinishThreads = 256;

// Largest absolute value of `count` numbers, as the bits of a double (which order like the number; NaN is largest).
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    largest_kernel(const T* data, int64_t count, unsigned long long* result) {
  unsigned long long largest = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFinishThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x; i < count; i += step) {
    const double value = fabs(static_cast<double>(widen(__ldg(data + i))));
    const unsigned long long bits = static_cast<unsigned long long>(__double_as_longlong(value));
    largest = bits > largest ? bits : largest;
  }
  for (int lane = 16; lane > 0; lane /= 2) {
    const unsigned long long other = __shfl_xor_sync(kWholeWarp, largest, lane);
    largest = other > largest ? other : largest;
  }
  if ((threadIdx.x & 31) == 0) atomicMax(result, largest);
}

// grad_value = sums, in value's type.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    narrow_kernel(const float* sums, T* grad_value, int64_t count) {
  static_assert(sizeof(T) == 2, "wider types need no conversion");
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFinishThreads;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x;
  const int64_t pieces = count / 8;
  for (int64_t i = thread; i < pieces; i += step) {
    float low[4], high[4];
    Piece<float, 4>::load(sums + i * 8).unpack(low);
    Piece<float, 4>::load(sums + i * 8 + 4).unpack(high);
    const float all[8] = {low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]};
    Piece<T, 8>::store(grad_value + i * 8, all);
  }
  for (int64_t i = pieces * 8 + thread; i < count; i += step) grad_value[i] = narrow<T>(sums[i]);
}

// grad_value = fixed-point sums, in value's type; NaN everywhere if an input of the sums was not finite.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads) unfix_kernel(const __grid_constant__ Problem p, int64_t count) {
  const double scale = fixed_scale(p);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFinishThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x; i < count; i += step) {
    const double sum = static_cast<double>(p.grad_value_fixed[i]) / scale;
    static_cast<T*>(p.grad_value)[i] = narrow<T>(static_cast<accumulator_t<T>>(sum));
  }
}

// grad_reference[b,q,f,:] = sum over heads, in order.
template <typename A>
__global__ void __launch_bounds__(kFinishThreads)
    sum_heads_kernel(const A* heads, A* grad_reference, int64_t rows, int count, int entries) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFinishThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x; i < rows * entries; i += step) {
    const int64_t row = i / entries;
    const A* from = heads + row * count * entries + (i - row * entries);
    A sum = 0;
    for (int h = 0; h < count; ++h) sum += from[static_cast<int64_t>(h) * entries];
    grad_reference[i] = sum;
  }
}

}  // namespace stdetr

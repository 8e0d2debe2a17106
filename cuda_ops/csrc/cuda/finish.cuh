// Small kernels around the backward pass: bounds for fixed point, conversion of sums, sums over heads and over shares.
//
// Shape legend: see problem.h.
#pragma once

#include "scatter.cuh"
#include "team.cuh"

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

// Gradients of the temporal tables: sums of all blocks' shares, in double and in one order.  A warp takes an element.
template <typename A>
__global__ void __launch_bounds__(kFinishThreads) sum_tables_kernel(const __grid_constant__ Problem p) {
  const int per_frame = p.levels * p.points;
  const int size = 3 * p.table_rows * per_frame;  // of a share
  const int shares = p.batch * p.query_blocks * p.block_shares;  // of a head
  const int lane = static_cast<int>(threadIdx.x) & 31;
  constexpr int warps = kFinishThreads / 32;
  const uint32_t elements = static_cast<uint32_t>(p.heads * size), step = gridDim.x * warps;  // below 2^31
  for (uint32_t i = blockIdx.x * warps + threadIdx.x / 32; i < elements; i += step) {
    const int h = static_cast<int>(i) / size, element = static_cast<int>(i) - h * size;
    double sum = 0;
    for (int s = lane; s < shares; s += 32) {
      const int turn = s / p.block_shares;
      const int64_t block = static_cast<int64_t>(turn) * p.heads + h;
      const int64_t share = block * p.block_shares + (s - turn * p.block_shares);
      sum += static_cast<double>(static_cast<const A*>(p.grad_table_shares)[share * size + element]);
    }
    sum = sum_lanes(sum, 32);
    if (lane != 0) continue;
    const int point = element / 3, number = element - 3 * point;
    const int row = point / per_frame;
    const int64_t entry = table_entry(p, row, h, point - row * per_frame);
    A* target = number < 2 ? static_cast<A*>(p.grad_offset_table) + 2 * entry + number
                           : static_cast<A*>(p.grad_logit_table) + entry;
    *target = static_cast<A>(sum);
  }
}

}  // namespace stdetr

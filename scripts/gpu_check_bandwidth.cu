// What reductions into global memory can do: the instruction and the lanes of the backward kernel, without its arithmetic.
#include <cuda_runtime.h>

#include "reduction.cuh"

namespace {

constexpr int kThreads = 256;

// Each group of four lanes adds rows of 32 floats, eight a lane, as the backward kernel adds one corner of a point with
// D = 32.  Rows are drawn anew for every addition.
__global__ void __launch_bounds__(kThreads) reduce_rows(float* sums, unsigned int rows, int turns) {
  const unsigned int lane = threadIdx.x & 3, group = (blockIdx.x * kThreads + threadIdx.x) / 4;
  const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  for (int turn = 0; turn < turns; ++turn) {
    unsigned int bits = group * static_cast<unsigned int>(turns) + turn;
    bits = (bits ^ 61u ^ (bits >> 16)) * 9u;
    bits = (bits ^ (bits >> 4)) * 0x27d4eb2du;
    const unsigned int row = __umulhi(bits ^ (bits >> 15), rows);
    stdetr::reduce_to_global<8, float>(sums + static_cast<size_t>(row) * 32 + lane * 8, ones);
  }
}

}  // namespace

// Adds blocks * 64 * turns rows to `sums` (rows, 32), `repeats` times after one that is not timed; milliseconds of one
// time.  Returns CUDA's error code.
extern "C" int measure_reductions(float* sums, unsigned int rows, int blocks, int turns, int repeats, float* milliseconds) {
  cudaEvent_t begin, end;
  if (cudaError_t error = cudaEventCreate(&begin)) return error;
  if (cudaError_t error = cudaEventCreate(&end)) return error;
  for (int i = 0; i <= repeats; ++i) {
    if (i == 1) cudaEventRecord(begin);
    reduce_rows<<<blocks, kThreads>>>(sums, rows, turns);
  }
  cudaEventRecord(end);
  if (cudaError_t error = cudaEventSynchronize(end)) return error;
  if (cudaError_t error = cudaGetLastError()) return error;
  if (cudaError_t error = cudaEventElapsedTime(milliseconds, begin, end)) return error;
  *milliseconds /= static_cast<float>(repeats);
  return cudaSuccess;
}

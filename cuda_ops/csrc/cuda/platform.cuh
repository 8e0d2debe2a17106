// What the kernels need from the machine: CUDA, or the host shim that steps the same source without a GPU.
//
// The host build (cuda_ops/harness) defines STDETR_HOST_HARNESS; every other file of this folder is shared verbatim.
#pragma once

#include <cstdint>

#ifdef STDETR_HOST_HARNESS

#include "shim.h"

#else

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace stdetr {

using Stream = cudaStream_t;

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("stdetr: ") + what + " failed: " + cudaGetErrorString(status));
  }
}

#ifdef __CUDACC__

// The one block of dynamic shared memory of a kernel.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char stdetr_dynamic_shared[];
  return stdetr_dynamic_shared;
}

// Starts `kernel` on `stream`; a launch that the driver refuses raises.
template <typename Kernel, typename... Args>
void launch(const char* name, Kernel kernel, unsigned int blocks, unsigned int threads, size_t shared_bytes,
            Stream stream, const Args&... args) {
  if (shared_bytes > 48 * 1024) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               name);
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(args...);
  check_cuda(cudaGetLastError(), name);
}

inline void clear_memory(void* data, size_t bytes, Stream stream) {
  check_cuda(cudaMemsetAsync(data, 0, bytes, stream), "clearing memory");
}

#endif  // __CUDACC__

}  // namespace stdetr

#endif

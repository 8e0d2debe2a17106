// Which instruction set this process uses.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace stdetr_cpu {
namespace {

bool runs_avx2() {
#ifdef STDETR_X86
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool runs_avx512() {
#ifdef STDETR_X86
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

const Kernels& pick() {
  const char* asked = std::getenv("STDETR_CPU_ISA");
  const std::string name = asked ? asked : "";
  if (name == "baseline") return kernels_baseline();
#ifdef STDETR_X86
  if (name == "avx2" && runs_avx2()) return kernels_avx2();
  if (name == "avx512" && runs_avx512()) return kernels_avx512();
  if (name.empty()) {
    if (runs_avx512()) return kernels_avx512();
    if (runs_avx2()) return kernels_avx2();
  }
#endif
  if (!name.empty()) {
    throw std::runtime_error("STDETR_CPU_ISA=" + name + " cannot run on this processor; it knows baseline" +
                             (runs_avx2() ? ", avx2" : "") + (runs_avx512() ? ", avx512" : ""));
  }
  return kernels_baseline();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& picked = pick();
  return picked;
}

}  // namespace stdetr_cpu

// For stdetr_ops.cpu_isa(), through ctypes; null when STDETR_CPU_ISA asks for what cannot run.
extern "C" __attribute__((visibility("default"))) const char* stdetr_cpu_isa() {
  try {
    return stdetr_cpu::kernels().name;
  } catch (const std::exception&) {
    return nullptr;
  }
}

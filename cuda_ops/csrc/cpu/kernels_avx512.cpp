// The kernels compiled for avx512; the build script adds the compiler flags.
#define STDETR_ISA avx512
#define STDETR_VEC_BYTES 64
#include "kernels_impl.h"

// The kernels compiled for avx2; the build script adds the compiler flags.
#define STDETR_ISA avx2
#define STDETR_VEC_BYTES 32
#include "kernels_impl.h"

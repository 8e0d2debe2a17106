// The kernels compiled for baseline; the build script adds the compiler flags.
#define STDETR_ISA baseline
#define STDETR_VEC_BYTES 16
#include "kernels_impl.h"

// Instantiates the kernels for one instruction set.  A translation unit defines STDETR_ISA (its name) and
// STDETR_VEC_BYTES and includes this file; see kernels_avx2.cpp.
#include <cstddef>
#include <cstdint>
#include <new>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "problem.h"

#define STDETR_TEXT_(x) #x
#define STDETR_TEXT(x) STDETR_TEXT_(x)
#define STDETR_JOIN_(a, b) a##b
#define STDETR_JOIN(a, b) STDETR_JOIN_(a, b)

namespace stdetr_cpu {
namespace STDETR_ISA {

#include "vec.h"

template <bool First, class A, class B> struct Choose { using type = A; };
template <class A, class B> struct Choose<false, A, B> { using type = B; };

#include "points.h"
// (order matters: the kernels use the headers above)
#include "temporal.h"
#include "forward.h"
#include "scatter.h"
#include "backward.h"
#include "temporal_backward.h"

template <class St, int Const>
void forward_of(const Problem& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Kind::plain: return forward_discrete<St, Const, Kind::plain>(a, begin, end);
    case Kind::fused: return forward_discrete<St, Const, Kind::fused>(a, begin, end);
    case Kind::temporal: return forward_discrete<St, Const, Kind::temporal>(a, begin, end);
  }
}

template <class St, int Const>
void backward_of(const Problem& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case Kind::plain: return backward_discrete<St, Const, false>(a, begin, end);
    case Kind::fused: return backward_discrete<St, Const, true>(a, begin, end);
    case Kind::temporal: return backward_temporal<St, Const>(a, begin, end);
  }
}

#define STDETR_FOR_CHANNELS(FUNCTION, St)             \
  switch (a.D) {                                      \
    case 16: return FUNCTION<St, 16>(a, begin, end);  \
    case 32: return FUNCTION<St, 32>(a, begin, end);  \
    case 64: return FUNCTION<St, 64>(a, begin, end);  \
    default: return FUNCTION<St, 0>(a, begin, end);   \
  }

void forward(const Problem& a, int64_t begin, int64_t end) {
  switch (a.storage) {
    case Storage::f32: STDETR_FOR_CHANNELS(forward_of, float)
    case Storage::f64: STDETR_FOR_CHANNELS(forward_of, double)
    case Storage::bf16: STDETR_FOR_CHANNELS(forward_of, bf16)
    case Storage::f16: STDETR_FOR_CHANNELS(forward_of, f16)
  }
}

void backward(const Problem& a, int64_t begin, int64_t end) {
  switch (a.storage) {
    case Storage::f32: STDETR_FOR_CHANNELS(backward_of, float)
    case Storage::f64: STDETR_FOR_CHANNELS(backward_of, double)
    case Storage::bf16: STDETR_FOR_CHANNELS(backward_of, bf16)
    case Storage::f16: STDETR_FOR_CHANNELS(backward_of, f16)
  }
}

#define STDETR_FOR_STORAGE(CALL)               \
  switch (a.storage) {                         \
    case Storage::f32: return CALL(float);     \
    case Storage::f64: return CALL(double);    \
    case Storage::bf16: return CALL(bf16);     \
    case Storage::f16: return CALL(f16);       \
  }

void backward_prepare(const Problem& a, int64_t begin, int64_t end) {
#define STDETR_CALL(St)                                                         \
  (a.kind == Kind::temporal ? prepare_delta<St>(a, begin, end)                  \
   : a.kind == Kind::fused  ? prepare_discrete<St, true>(a, begin, end)         \
                            : prepare_discrete<St, false>(a, begin, end))
  STDETR_FOR_STORAGE(STDETR_CALL)
#undef STDETR_CALL
}

void backward_finish(const Problem& a, int64_t begin, int64_t end) {
#define STDETR_CALL(St) \
  (a.kind == Kind::temporal ? finish_temporal<St>(a, begin, end) : finish_fused<St>(a, begin, end))
  STDETR_FOR_STORAGE(STDETR_CALL)
#undef STDETR_CALL
}

}  // namespace STDETR_ISA

const Kernels& STDETR_JOIN(kernels_, STDETR_ISA)() {
  static constexpr Kernels table{STDETR_TEXT(STDETR_ISA), STDETR_ISA::forward, STDETR_ISA::backward_prepare,
                                 STDETR_ISA::backward, STDETR_ISA::backward_finish};
  return table;
}

}  // namespace stdetr_cpu

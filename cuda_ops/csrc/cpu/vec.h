// Small vectors and number formats.  Included once by each translation unit, inside the namespace of its instruction
// set: nothing here may become a symbol that the linker could merge across instruction sets, so there is no torch
// header and no inline function of the standard library.
//
// STDETR_VEC_BYTES: width of a vector register (16, 32 or 64).

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class St> struct CoordOf { using type = float; };
template <> struct CoordOf<double> { using type = double; };

#define STDETR_INLINE inline __attribute__((always_inline))

template <class To, class From>
STDETR_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Scalars.
STDETR_INLINE float widen(float x) { return x; }
STDETR_INLINE double widen(double x) { return x; }
STDETR_INLINE float widen(bf16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
STDETR_INLINE float widen(f16 x) {
  // Shift exponent and mantissa into place; 2^112 corrects the bias and is exact for subnormals too.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  const float finite = bits_as<float>(magnitude) * 0x1p112f;
  const uint32_t bits = (x.bits & 0x7fffu) >= 0x7c00u ? (magnitude | 0x7f800000u) : bits_as<uint32_t>(finite);
  return bits_as<float>(bits | (uint32_t(x.bits & 0x8000u) << 16));
}

STDETR_INLINE void narrow(float x, float& to) { to = x; }
STDETR_INLINE void narrow(double x, double& to) { to = x; }
STDETR_INLINE void narrow(float x, bf16& to) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = uint16_t(x != x ? 0x7fc0u : rounded);
}
STDETR_INLINE void narrow(float x, f16& to) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const float magnitude = bits_as<float>(bits & 0x7fffffffu);
  // Adding 2^k leaves the value rounded to nearest even at the last bit of the half format.
  uint32_t half;
  if (!(magnitude < 65520.f)) {
    half = magnitude != magnitude ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x1p-14f) {
    half = bits_as<uint32_t>(magnitude + 0.5f) - bits_as<uint32_t>(0.5f);
  } else {
    const uint32_t m = bits & 0x7fffffffu;
    half = (m - 0x38000000u + 0xfffu + ((m >> 13) & 1u)) >> 13;
  }
  to.bits = uint16_t(sign | half);
}

// Memory of one range of tasks.
template <class C>
struct Scratch {
  C* data;
  explicit Scratch(int64_t count) : data(static_cast<C*>(__builtin_malloc(sizeof(C) * size_t(count > 0 ? count : 1)))) {
    if (!data) throw std::bad_alloc();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { __builtin_free(data); }
};

// Vectors of coord numbers; Unaligned is what memory holds.
template <class C>
struct Lanes {
  static constexpr int n = STDETR_VEC_BYTES / int(sizeof(C));
  typedef C V __attribute__((vector_size(STDETR_VEC_BYTES)));
  typedef C Unaligned __attribute__((vector_size(STDETR_VEC_BYTES), aligned(alignof(C)), may_alias));
};
using FloatV = Lanes<float>::V;
using DoubleV = Lanes<double>::V;
typedef uint32_t WordV __attribute__((vector_size(STDETR_VEC_BYTES)));
typedef uint16_t HalfV __attribute__((vector_size(STDETR_VEC_BYTES / 2)));
typedef uint16_t HalfUnaligned __attribute__((vector_size(STDETR_VEC_BYTES / 2), aligned(2), may_alias));

STDETR_INLINE FloatV load(const float* p) { return *reinterpret_cast<const Lanes<float>::Unaligned*>(p); }
STDETR_INLINE DoubleV load(const double* p) { return *reinterpret_cast<const Lanes<double>::Unaligned*>(p); }
STDETR_INLINE FloatV load(const bf16* p) {
  const HalfV bits = *reinterpret_cast<const HalfUnaligned*>(p);
  return reinterpret_cast<FloatV>(__builtin_convertvector(bits, WordV) << 16);
}
STDETR_INLINE FloatV load(const f16* p) {
#if STDETR_VEC_BYTES == 64 && defined(__AVX512F__)
  return reinterpret_cast<FloatV>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif STDETR_VEC_BYTES == 32 && defined(__F16C__)
  return reinterpret_cast<FloatV>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  const HalfV bits = *reinterpret_cast<const HalfUnaligned*>(p);
  const WordV wide = __builtin_convertvector(bits, WordV);
  const WordV magnitude = (wide & 0x7fffu) << 13;
  const WordV special = reinterpret_cast<WordV>((wide & 0x7fffu) >= 0x7c00u) & 0x7f800000u;
  const WordV finite = reinterpret_cast<WordV>(reinterpret_cast<FloatV>(magnitude) * 0x1p112f);
  return reinterpret_cast<FloatV>(finite | special | ((wide & 0x8000u) << 16));
#endif
}
STDETR_INLINE void store(float* p, FloatV v) { *reinterpret_cast<Lanes<float>::Unaligned*>(p) = v; }
STDETR_INLINE void store(double* p, DoubleV v) { *reinterpret_cast<Lanes<double>::Unaligned*>(p) = v; }

// Sums of the lanes of four vectors.
template <class C>
struct Four { C a, b, c, d; };

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));
#if defined(__clang__)
#define STDETR_SHUFFLE(a, b, M, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Mask4 __attribute__((vector_size(16)));
typedef int64_t Mask2 __attribute__((vector_size(16)));
#define STDETR_SHUFFLE(a, b, M, ...) __builtin_shuffle(a, b, M{__VA_ARGS__})
#endif

template <class Small, class Big>
STDETR_INLINE Small fold(Big v) {
  constexpr int parts = int(sizeof(Big) / sizeof(Small));
  Small part[parts];
  __builtin_memcpy(part, &v, sizeof(Big));
  if (parts == 4) return (part[0] + part[parts > 2 ? 2 : 0]) + (part[1 % parts] + part[3 % parts]);
  if (parts == 2) return part[0] + part[1 % parts];
  return part[0];
}
STDETR_INLINE Four<float> lane_sums(FloatV va, FloatV vb, FloatV vc, FloatV vd) {
  const Float4 a = fold<Float4>(va), b = fold<Float4>(vb), c = fold<Float4>(vc), d = fold<Float4>(vd);
  const Float4 ab = STDETR_SHUFFLE(a, b, Mask4, 0, 4, 1, 5) + STDETR_SHUFFLE(a, b, Mask4, 2, 6, 3, 7);
  const Float4 cd = STDETR_SHUFFLE(c, d, Mask4, 0, 4, 1, 5) + STDETR_SHUFFLE(c, d, Mask4, 2, 6, 3, 7);
  const Float4 sum = STDETR_SHUFFLE(ab, cd, Mask4, 0, 1, 4, 5) + STDETR_SHUFFLE(ab, cd, Mask4, 2, 3, 6, 7);
  return {sum[0], sum[1], sum[2], sum[3]};
}
STDETR_INLINE Four<double> lane_sums(DoubleV va, DoubleV vb, DoubleV vc, DoubleV vd) {
  const Double2 a = fold<Double2>(va), b = fold<Double2>(vb), c = fold<Double2>(vc), d = fold<Double2>(vd);
  const Double2 ab = STDETR_SHUFFLE(a, b, Mask2, 0, 2) + STDETR_SHUFFLE(a, b, Mask2, 1, 3);
  const Double2 cd = STDETR_SHUFFLE(c, d, Mask2, 0, 2) + STDETR_SHUFFLE(c, d, Mask2, 1, 3);
  return {ab[0], ab[1], cd[0], cd[1]};
}

// exp for arguments that are not far above 0, with -inf -> 0 and NaN -> NaN; relative error about 1e-7.  A library
// call would not vectorise.  Polynomial: Cephes' expf (Moshier), on |r| <= ln(2)/2.
STDETR_INLINE float exp_of(float x) {
  const float bounded = x > 88.f ? 88.f : x;
  const float safe = bounded < -87.f ? -87.f : bounded;
  const float scaled = safe * 1.44269504088896341f;
  const int32_t n = int32_t(scaled + (scaled < 0.f ? -0.5f : 0.5f));
  const float r = (safe - float(n) * 0.693359375f) - float(n) * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const float result = p * bits_as<float>((n + 127) << 23);
  return bounded < -87.f ? 0.f : result;
}
STDETR_INLINE double exp_of(double x) { return __builtin_exp(x); }
STDETR_INLINE float log_of(float x) { return __builtin_logf(x); }
STDETR_INLINE double log_of(double x) { return __builtin_log(x); }

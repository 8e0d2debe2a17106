// The core of the backward kernels: one pixel quad of one head.  Included inside the namespace of an instruction set.
//
// With g the output gradient of a query and head, v the four pixels and w their shares: the sample's product with g
// needs only the four products g.v, and each pixel's gradient is g times its share.

// Const: the compile-time D, or 0 for any.  Values are read with `stride` between tokens, gradients have `grad_stride`.
template <class St, int Const>
struct Scatter {
  using C = typename CoordOf<St>::type;
  using V = typename Lanes<C>::V;
  static constexpr int vectors = Const / Lanes<C>::n;
  V g[vectors] = {};

  STDETR_INLINE void read_gradient(const St* grad_out, int64_t, C*) {
    for (int i = 0; i < vectors; ++i) g[i] = load(grad_out + i * Lanes<C>::n);
  }
  STDETR_INLINE Four<C> products(const St* r00, const St* r01, const St* r10, const St* r11) const {
    V a{}, b{}, c{}, d{};
    for (int i = 0; i < vectors; ++i) {
      const int at = i * Lanes<C>::n;
      a += g[i] * load(r00 + at);
      b += g[i] * load(r01 + at);
      c += g[i] * load(r10 + at);
      d += g[i] * load(r11 + at);
    }
    return lane_sums(a, b, c, d);
  }
  STDETR_INLINE void add(C* row, C weight) const {
    for (int i = 0; i < vectors; ++i) {
      const int at = i * Lanes<C>::n;
      store(row + at, load(row + at) + weight * g[i]);
    }
  }
};

template <class St>
struct Scatter<St, 0> {
  using C = typename CoordOf<St>::type;
  const C* g = nullptr;
  int64_t D = 0;

  STDETR_INLINE void read_gradient(const St* grad_out, int64_t channels, C* room) {
    D = channels;
    for (int64_t c = 0; c < D; ++c) room[c] = widen(grad_out[c]);
    g = room;
  }
  STDETR_INLINE Four<C> products(const St* r00, const St* r01, const St* r10, const St* r11) const {
    C sa = 0, sb = 0, sc = 0, sd = 0;
#pragma omp simd reduction(+ : sa, sb, sc, sd)
    for (int64_t c = 0; c < D; ++c) {
      sa += g[c] * widen(r00[c]);
      sb += g[c] * widen(r01[c]);
      sc += g[c] * widen(r10[c]);
      sd += g[c] * widen(r11[c]);
    }
    return {sa, sb, sc, sd};
  }
  STDETR_INLINE void add(C* row, C weight) const {
#pragma omp simd
    for (int64_t c = 0; c < D; ++c) row[c] += weight * g[c];
  }
};

// What one sample contributes: its product with g, and the slopes of that in pixels.
template <class C>
struct Slopes { C sample, x, y; };

template <class St, int Const, class C>
STDETR_INLINE Slopes<C> slopes_at(
    const Scatter<St, Const>& core, const St* frame, int64_t stride, const Block<C>& p, int j) {
  Four<C> d = core.products(frame + p.token00[j] * stride, frame + p.token01[j] * stride,
                            frame + p.token10[j] * stride, frame + p.token11[j] * stride);
  // A corner outside was read at the nearest pixel; it counts as 0.
  d.a *= p.has_top[j] * p.has_left[j];
  d.b *= p.has_top[j] * p.has_right[j];
  d.c *= p.has_bottom[j] * p.has_left[j];
  d.d *= p.has_bottom[j] * p.has_right[j];

  const C right = p.fraction_x[j], bottom = p.fraction_y[j], left = C(1) - right, top = C(1) - bottom;
  const C upper = left * d.a + right * d.b, lower = left * d.c + right * d.d;
  return {top * upper + bottom * lower, top * (d.b - d.a) + bottom * (d.d - d.c), lower - upper};
}

template <class St, int Const, class C>
STDETR_INLINE void scatter_at(
    const Scatter<St, Const>& core, C* grad_frame, int64_t stride, const Block<C>& p, int j, C weight) {
  const C top = weight * p.top[j], bottom = weight * p.bottom[j];
  core.add(grad_frame + p.token00[j] * stride, top * p.left[j]);
  core.add(grad_frame + p.token01[j] * stride, top * p.right[j]);
  core.add(grad_frame + p.token10[j] * stride, bottom * p.left[j]);
  core.add(grad_frame + p.token11[j] * stride, bottom * p.right[j]);
}

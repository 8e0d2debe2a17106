// From locations to the four pixels around each and their shares.  Included inside the namespace of an instruction set.

// Points are prepared in blocks, as arrays, so that the arithmetic vectorises.
constexpr int kBlock = 64;

template <class C>
struct Block {
  C base_x[kBlock], base_y[kBlock];    // location in [0,1] that the width and height multiply
  C shift_x[kBlock], shift_y[kBlock];  // added pixels
  C weight[kBlock];                    // attention weight or probability
  int32_t width[kBlock], height[kBlock], start[kBlock];
  // Results: token of each corner (clamped into the level), share of each row and column (0 where it is outside).
  int32_t token00[kBlock], token01[kBlock], token10[kBlock], token11[kBlock];
  C left[kBlock], right[kBlock], top[kBlock], bottom[kBlock];
  C has_left[kBlock], has_right[kBlock], has_top[kBlock], has_bottom[kBlock];  // 1 or 0
  C fraction_x[kBlock], fraction_y[kBlock];
  int32_t inside[kBlock];
};

template <class C>
STDETR_INLINE int32_t floor_of(C x) {
  const int32_t whole = int32_t(x);
  return whole - int32_t(x < C(whole));
}

template <class C>
STDETR_INLINE void find_corners(Block<C>& p, int n) {
#pragma omp simd
  for (int j = 0; j < n; ++j) {
    const C width = C(p.width[j]), height = C(p.height[j]);
    const C x = p.base_x[j] * width + (p.shift_x[j] - C(0.5));
    const C y = p.base_y[j] * height + (p.shift_y[j] - C(0.5));
    // NaN and infinity fail the comparisons.
    const bool inside = (x > C(-1)) & (x < width) & (y > C(-1)) & (y < height);
    const C x_in = inside ? x : C(0), y_in = inside ? y : C(0);
    const int32_t x0 = floor_of(x_in), y0 = floor_of(y_in);
    // The fraction is formed from the factors again: with a fused multiply-add it keeps the bits that x lost to the
    // size of the coordinate.
    const C fx_exact = (p.base_x[j] * width - (C(x0) + C(0.5))) + p.shift_x[j];
    const C fy_exact = (p.base_y[j] * height - (C(y0) + C(0.5))) + p.shift_y[j];
    const C fx = inside ? fx_exact : C(0), fy = inside ? fy_exact : C(0);
    const int32_t w = p.width[j], h = p.height[j];
    const bool has_left = x0 >= 0, has_right = x0 + 1 < w, has_top = y0 >= 0, has_bottom = y0 + 1 < h;
    p.has_left[j] = has_left ? C(1) : C(0);
    p.has_right[j] = has_right ? C(1) : C(0);
    p.has_top[j] = has_top ? C(1) : C(0);
    p.has_bottom[j] = has_bottom ? C(1) : C(0);
    p.fraction_x[j] = fx;
    p.fraction_y[j] = fy;
    p.left[j] = has_left ? C(1) - fx : C(0);
    p.right[j] = has_right ? fx : C(0);
    p.top[j] = has_top ? C(1) - fy : C(0);
    p.bottom[j] = has_bottom ? fy : C(0);
    const int32_t x_left = has_left ? x0 : 0, x_right = has_right ? x0 + 1 : w - 1;
    const int32_t row_top = p.start[j] + (has_top ? y0 : 0) * w;
    const int32_t row_bottom = p.start[j] + (has_bottom ? y0 + 1 : h - 1) * w;
    p.token00[j] = row_top + x_left;
    p.token01[j] = row_top + x_right;
    p.token10[j] = row_bottom + x_left;
    p.token11[j] = row_bottom + x_right;
    p.inside[j] = inside ? 1 : 0;
  }
}

// How many points ahead pixels are prefetched.
constexpr int kAhead = 16;

// Asks for the four pixel rows of a point.  Corners outside were clamped into the level, so every address exists.
template <class St, int Const, class C>
STDETR_INLINE void fetch_corners(const St* frame, int64_t stride, const Block<C>& p, int j) {
  if constexpr (Const > 0) {
    for (int at = 0; at < Const; at += 64 / int(sizeof(St))) {
      __builtin_prefetch(frame + p.token00[j] * stride + at);
      __builtin_prefetch(frame + p.token01[j] * stride + at);
      __builtin_prefetch(frame + p.token10[j] * stride + at);
      __builtin_prefetch(frame + p.token11[j] * stride + at);
    }
  }
}

// The level of each point, from a table with one entry per point.
template <class C>
STDETR_INLINE void set_levels(Block<C>& p, const Level* levels, int n) {
  for (int j = 0; j < n; ++j)
    p.width[j] = levels[j].width, p.height[j] = levels[j].height, p.start[j] = levels[j].start;
}

// Whether frame slot f of a query (frames: its row of frame_index, or null) reads a frame.
STDETR_INLINE bool reads(const Problem& a, const int32_t* frames, int64_t f) {
  return !frames || (frames[f] >= 0 && frames[f] < a.T);
}

// What slot f adds to the logits of its points; query_head is among B,Q,H.
template <class C>
STDETR_INLINE C frame_logit(const Problem& a, int64_t query_head, int64_t f) {
  return a.frame_logits ? static_cast<const C*>(a.frame_logits)[query_head * a.F + f] : C(0);
}

// What is to be subtracted from the logits of slot f, tables included: then exp gives the probability.  Without a usable
// logit all are 0.
template <class C>
STDETR_INLINE C normaliser_of(const Problem& a, C lse, int64_t query_head, int64_t f) {
  return lse == -C(__builtin_inf()) ? C(__builtin_inf()) : lse - frame_logit<C>(a, query_head, f);
}

// The fused op places a point at  base * size + offset * scale  pixels.
template <class C>
struct Placement { C base_x, base_y, scale_x, scale_y; };

template <class C>
STDETR_INLINE Placement<C> place(const Problem& a, int64_t b, int64_t q, int64_t f, int64_t l) {
  const C* reference = static_cast<const C*>(a.reference) + ((b * a.Q + q) * a.F + f) * a.reference_size;
  const C* ratios = static_cast<const C*>(a.valid_ratios);
  const C ratio_x = ratios ? ratios[(b * a.L + l) * 2] : C(1), ratio_y = ratios ? ratios[(b * a.L + l) * 2 + 1] : C(1);
  Placement<C> placement{reference[0] * ratio_x, reference[1] * ratio_y, C(1), C(1)};
  if (a.reference_size == 4) {
    placement.scale_x = C(0.5) * reference[2] * ratio_x * C(a.levels[l].width) / C(a.K);
    placement.scale_y = C(0.5) * reference[3] * ratio_y * C(a.levels[l].height) / C(a.K);
  }
  return placement;
}

// Backward kernels.  Included inside the namespace of an instruction set.
//
// A task owns the slice (clip, frame, head, level) of grad_value, and with it the location and weight gradients of the
// points that fall into it: nobody else writes either, so there are no atomics and the order of every sum is fixed.

// One value slice of level tokens: its gradient in coord numbers, staged in scratch or in place.
template <class C>
struct GradSlice {
  C* data;
  int64_t stride;
};

template <class St, class C>
STDETR_INLINE void flush_slice(const C* staged, St* grad_value, int64_t tokens, int64_t stride, int64_t D) {
  for (int64_t s = 0; s < tokens; ++s)
    for (int64_t c = 0; c < D; ++c) narrow(staged[s * D + c], grad_value[s * stride + c]);
}

template <class St, int Const, bool Fused>
void backward_slice(const Problem& a, int64_t task, typename CoordOf<St>::type* scratch) {
  using C = typename CoordOf<St>::type;
  const int64_t l = task % a.L, h = task / a.L % a.H, frame_task = task / (a.L * a.H);
  const int64_t b = frame_task / a.T, t = frame_task % a.T;
  const int64_t row = a.H * a.D;
  const Level level = a.levels[l];
  const int64_t tokens = int64_t(level.height) * level.width;
  const int64_t origin = ((b * a.T + t) * a.S + level.start) * row + h * a.D;
  const St* value = static_cast<const St*>(a.value) + origin;
  St* grad_value = static_cast<St*>(a.grad_value) + origin;

  C* room = scratch;  // D numbers for the generic core
  GradSlice<C> grad{scratch + a.D, a.D};
  if (a.grad_value_zeroed) {
    // Only float and double values take this way, where storage and coord are one type.
    grad = {reinterpret_cast<C*>(grad_value), row};
  } else {
    __builtin_memset(grad.data, 0, sizeof(C) * size_t(tokens * a.D));
  }

  const int64_t count = a.pairs ? a.pair_starts[frame_task + 1] - a.pair_starts[frame_task] : a.Q;
  const int32_t* pairs = a.pairs ? a.pairs + a.pair_starts[frame_task] : nullptr;
  // Many points keep their slice in the cache; few find their pixels elsewhere, and ask for them in advance.
  const bool scattered = count * a.K < tokens;
  Block<C> p;
  int64_t where[kBlock];   // index of the point among B,Q,H,F,L,K
  int64_t source[kBlock];  // index of its query and head among B,Q,H
  int64_t slot[kBlock];    // index of its frame slot among B,Q,H,F
  C scale_x[kBlock], scale_y[kBlock], delta[kBlock], normaliser[kBlock];
  for (int j = 0; j < kBlock; ++j) p.width[j] = level.width, p.height[j] = level.height, p.start[j] = 0;

  const C* locations = static_cast<const C*>(a.locations);
  const C* weights = static_cast<const C*>(a.weights);
  const St* offsets = static_cast<const St*>(a.locations);
  const St* logits = static_cast<const St*>(a.weights);
  const uint32_t slots = a.F > 0 ? uint32_t(a.F) : 1;
  C* frame_shares = Fused ? static_cast<C*>(a.grad_frame_shares) : nullptr;
  if (frame_shares) frame_shares += l * a.B * a.Q * a.H * a.F;
  int64_t loaded = -1;  // query and head whose gradient the core holds
  Scatter<St, Const> core;
  int64_t entry = 0, k = 0;
  while (entry < count) {
    int n = 0;
    while (n < kBlock && entry < count) {
      // Unsigned 32-bit division is the cheap one.
      const uint32_t pair = pairs ? uint32_t(pairs[entry]) : 0;
      const int64_t q = pairs ? pair / slots : entry, f = pairs ? pair % slots : t;
      const int64_t query_head = (b * a.Q + q) * a.H + h;
      const int64_t base = ((query_head * a.F + f) * a.L + l) * a.K;
      const int take = int(a.K - k < kBlock - n ? a.K - k : kBlock - n);
      if constexpr (Fused) {
        const Placement<C> at = place<C>(a, b, q, f, l);
        const C d = static_cast<const C*>(a.delta)[query_head];
        const C z = normaliser_of(a, static_cast<const C*>(a.saved_lse)[query_head], query_head, f);
        for (int i = 0; i < take; ++i) {
          const int j = n + i;
          const int64_t point = base + k + i;
          p.base_x[j] = at.base_x, p.base_y[j] = at.base_y;
          scale_x[j] = at.scale_x, scale_y[j] = at.scale_y;
          p.shift_x[j] = widen(offsets[point * 2]), p.shift_y[j] = widen(offsets[point * 2 + 1]);
          p.weight[j] = widen(logits[point]);
          delta[j] = d, normaliser[j] = z;
          where[j] = point, source[j] = query_head, slot[j] = query_head * a.F + f;
        }
      } else {
        for (int i = 0; i < take; ++i) {
          const int j = n + i;
          const int64_t point = base + k + i;
          p.base_x[j] = locations[point * 2], p.base_y[j] = locations[point * 2 + 1];
          p.shift_x[j] = p.shift_y[j] = C(0);
          p.weight[j] = weights[point];
          where[j] = point, source[j] = query_head;
        }
      }
      n += take;
      k += take;
      if (k == a.K) k = 0, ++entry;
    }
    if constexpr (Fused) {
#pragma omp simd
      for (int j = 0; j < n; ++j) {
        p.shift_x[j] *= scale_x[j];
        p.shift_y[j] *= scale_y[j];
        p.weight[j] = exp_of(p.weight[j] - normaliser[j]);
      }
    }
    find_corners(p, n);
    for (int j = 0; scattered && j < n && j < kAhead; ++j) fetch_corners<St, Const>(value, row, p, j);
    for (int j = 0; j < n; ++j) {
      if (scattered && j + kAhead < n) fetch_corners<St, Const>(value, row, p, j + kAhead);
      Slopes<C> slopes{C(0), C(0), C(0)};
      if (p.inside[j]) {
        if (source[j] != loaded) {
          loaded = source[j];
          core.read_gradient(static_cast<const St*>(a.grad_out) + loaded * a.D, a.D, room);
        }
        slopes = slopes_at<St, Const>(core, value, row, p, j);
        scatter_at<St, Const>(core, grad.data, grad.stride, p, j, p.weight[j]);
      }
      if constexpr (Fused) {
        // In pixels; backward_finish turns it into the offset's gradient and sums the reference's.
        St* to = static_cast<St*>(a.grad_locations) + where[j] * 2;
        narrow(p.weight[j] * slopes.x, to[0]);
        narrow(p.weight[j] * slopes.y, to[1]);
        const C logit = p.weight[j] * (slopes.sample - delta[j]);
        narrow(logit, static_cast<St*>(a.grad_weights)[where[j]]);
        if (frame_shares) frame_shares[slot[j]] += logit;
      } else {
        C* to = static_cast<C*>(a.grad_locations) + where[j] * 2;
        to[0] = p.weight[j] * slopes.x * C(level.width);
        to[1] = p.weight[j] * slopes.y * C(level.height);
        static_cast<C*>(a.grad_weights)[where[j]] = slopes.sample;
      }
    }
  }
  if (!a.grad_value_zeroed) flush_slice<St, C>(grad.data, grad_value, tokens, row, a.D);
}

template <class St, int Const, bool Fused>
void backward_discrete(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  int64_t largest = 0;
  for (int64_t l = 0; l < a.L; ++l) {
    const int64_t tokens = int64_t(a.levels[l].height) * a.levels[l].width;
    largest = tokens > largest ? tokens : largest;
  }
  const Scratch<C> scratch(a.D + (a.grad_value_zeroed ? 0 : largest * a.D));
  for (int64_t task = begin; task < end; ++task) backward_slice<St, Const, Fused>(a, task, scratch.data);
}

// The sum over channels of grad_out * out, for each query and head.
template <class St>
void prepare_delta(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  for (int64_t query_head = begin * a.H; query_head < end * a.H; ++query_head) {
    const St* grad_out = static_cast<const St*>(a.grad_out) + query_head * a.D;
    const St* out = static_cast<const St*>(a.saved_out) + query_head * a.D;
    C sum = C(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < a.D; ++c) sum += widen(grad_out[c]) * widen(out[c]);
    static_cast<C*>(a.delta)[query_head] = sum;
  }
}

// Before the slices: zeros for masked frames, which belong to no slice, and delta.
template <class St, bool Fused>
void prepare_discrete(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  using Point = typename Choose<Fused, St, C>::type;
  const int64_t points = a.L * a.K;
  for (int64_t task = begin; task < end; ++task) {
    for (int64_t h = 0; h < a.H; ++h) {
      const int64_t query_head = task * a.H + h;
      for (int64_t f = 0; a.frame_index && points > 0 && f < a.F; ++f) {
        const int64_t t = a.frame_index[task * a.F + f];
        if (t >= 0 && t < a.T) continue;
        const int64_t first = (query_head * a.F + f) * points;
        __builtin_memset(static_cast<Point*>(a.grad_locations) + first * 2, 0, sizeof(Point) * size_t(points * 2));
        __builtin_memset(static_cast<Point*>(a.grad_weights) + first, 0, sizeof(Point) * size_t(points));
      }
    }
  }
  if constexpr (Fused) prepare_delta<St>(a, begin, end);
}

// After the slices (fused, temporal): the gradient of what slots add to logits is the sum of the levels' shares, in order.
template <class C>
void finish_frame_logits(const Problem& a, int64_t begin, int64_t end) {
  if (!a.grad_frame_logits) return;
  const int64_t row = a.H * a.F, all = a.B * a.Q * row;
  const C* shares = static_cast<const C*>(a.grad_frame_shares);
  for (int64_t i = begin * row; i < end * row; ++i) {
    C sum = C(0);
    for (int64_t l = 0; l < a.L; ++l) sum += shares[l * all + i];
    static_cast<C*>(a.grad_frame_logits)[i] = sum;
  }
}

// After the slices (fused): pixel gradients become offset gradients, and add up to the reference's.
template <class St>
void finish_fused(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  finish_frame_logits<C>(a, begin, end);
  const C* ratios = static_cast<const C*>(a.valid_ratios);
  const bool boxes = a.reference_size == 4;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / a.Q, q = task % a.Q;
    for (int64_t f = 0; f < a.F; ++f) {
      C centre_x = 0, centre_y = 0, extent_x = 0, extent_y = 0;
      for (int64_t l = 0; l < a.L; ++l) {
        const Placement<C> at = place<C>(a, b, q, f, l);
        const C width = C(a.levels[l].width) * (ratios ? ratios[(b * a.L + l) * 2] : C(1));
        const C height = C(a.levels[l].height) * (ratios ? ratios[(b * a.L + l) * 2 + 1] : C(1));
        for (int64_t h = 0; h < a.H; ++h) {
          const int64_t first = (((task * a.H + h) * a.F + f) * a.L + l) * a.K;
          const St* offsets = static_cast<const St*>(a.locations) + first * 2;
          St* grads = static_cast<St*>(a.grad_locations) + first * 2;
          for (int64_t k = 0; k < a.K; ++k) {
            const C x = widen(grads[2 * k]), y = widen(grads[2 * k + 1]);
            // A point that does not count has zero gradient whatever its offset or box is (it may be infinite).
            if (x == C(0) && y == C(0)) continue;
            centre_x += x * width;
            centre_y += y * height;
            if (!boxes) continue;
            extent_x += x * width * widen(offsets[2 * k]);
            extent_y += y * height * widen(offsets[2 * k + 1]);
            narrow(x * at.scale_x, grads[2 * k]);
            narrow(y * at.scale_y, grads[2 * k + 1]);
          }
        }
      }
      C* to = static_cast<C*>(a.grad_reference) + (task * a.F + f) * a.reference_size;
      to[0] = centre_x, to[1] = centre_y;
      if (boxes) {
        const C step = a.K > 0 ? C(0.5) / C(a.K) : C(0);
        to[2] = extent_x * step;
        to[3] = extent_y * step;
      }
    }
  }
}

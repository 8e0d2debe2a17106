// Forward kernels.  Included inside the namespace of an instruction set.

// Weighted sum of pixel rows into sums (D coord numbers).  Const: the compile-time D, or 0 for any.
template <class St, int Const>
struct Gather {
  using C = typename CoordOf<St>::type;
  using V = typename Lanes<C>::V;
  static constexpr int vectors = Const / Lanes<C>::n;
  V sums[vectors];

  STDETR_INLINE void clear(int64_t, C*) {
    for (int i = 0; i < vectors; ++i) sums[i] = V{};
  }
  STDETR_INLINE void add(const St* r00, const St* r01, const St* r10, const St* r11, C w00, C w01, C w10, C w11) {
    for (int i = 0; i < vectors; ++i) {
      const int at = i * Lanes<C>::n;
      sums[i] += (w00 * load(r00 + at) + w01 * load(r01 + at)) + (w10 * load(r10 + at) + w11 * load(r11 + at));
    }
  }
  STDETR_INLINE void finish(St* out) const {
    C row[Const];
    for (int i = 0; i < vectors; ++i) store(row + i * Lanes<C>::n, sums[i]);
    for (int c = 0; c < Const; ++c) narrow(row[c], out[c]);
  }
};

template <class St>
struct Gather<St, 0> {
  using C = typename CoordOf<St>::type;
  C* sums = nullptr;
  int64_t D = 0;

  STDETR_INLINE void clear(int64_t channels, C* room) {
    D = channels;
    sums = room;
    for (int64_t c = 0; c < D; ++c) sums[c] = C(0);
  }
  STDETR_INLINE void add(const St* r00, const St* r01, const St* r10, const St* r11, C w00, C w01, C w10, C w11) {
#pragma omp simd
    for (int64_t c = 0; c < D; ++c) {
      sums[c] += (w00 * widen(r00[c]) + w01 * widen(r01[c])) + (w10 * widen(r10[c]) + w11 * widen(r11[c]));
    }
  }
  STDETR_INLINE void finish(St* out) const {
    for (int64_t c = 0; c < D; ++c) narrow(sums[c], out[c]);
  }
};

template <class St, int Const, class C>
STDETR_INLINE void add_point(
    Gather<St, Const>& gather, const St* frame, int64_t stride, const Block<C>& p, int j, C weight) {
  const C top = weight * p.top[j], bottom = weight * p.bottom[j];
  gather.add(frame + p.token00[j] * stride, frame + p.token01[j] * stride, frame + p.token10[j] * stride,
             frame + p.token11[j] * stride, top * p.left[j], top * p.right[j], bottom * p.left[j],
             bottom * p.right[j]);
}

// Softmax of one query and head over the unmasked frames, into probabilities (F*L*K).  Returns the log-sum-exp.
template <class St, class C>
STDETR_INLINE C softmax(const St* logits, const int32_t* frames, const Problem& a, C* probabilities) {
  const int64_t points = a.L * a.K;
  C highest = -C(__builtin_inf());
  for (int64_t f = 0; f < a.F; ++f) {
    const bool masked = frames && uint32_t(frames[f]) >= uint64_t(a.T);
    C* row = probabilities + f * points;
    for (int64_t j = 0; j < points; ++j) row[j] = masked ? -C(__builtin_inf()) : widen(logits[f * points + j]);
    // A NaN never wins a comparison, so it reaches the sum below through its own exponential.
    for (int64_t j = 0; j < points; ++j) highest = row[j] > highest ? row[j] : highest;
  }
  const int64_t n = a.F * points;
  if (highest == -C(__builtin_inf())) {
    bool poisoned = false;
    for (int64_t i = 0; i < n; ++i) poisoned |= probabilities[i] != probabilities[i];
    if (!poisoned) {
      for (int64_t i = 0; i < n; ++i) probabilities[i] = C(0);
      return highest;
    }
  }
  C sum = C(0);
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const C e = exp_of(probabilities[i] - highest);
    probabilities[i] = e;
    sum += e;
  }
  const C scale = C(1) / sum;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) probabilities[i] *= scale;
  return highest + log_of(sum);
}

template <class St, int Const, bool Fused>
void forward_discrete(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  const int64_t points = a.L * a.K, n = a.F * points, row = a.H * a.D, frame_size = a.S * row;
  // Scratch of this range of tasks: generic sums, probabilities and the four placement tables.
  const Scratch<C> scratch(a.D + (Fused ? 5 * n : 0));
  C* room = scratch.data;
  C* probabilities = room + a.D;
  C *base_x = probabilities + n, *base_y = base_x + n, *scale_x = base_y + n, *scale_y = scale_x + n;
  Block<C> p;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / a.Q, q = task % a.Q;
    const int32_t* frames = a.frame_index ? a.frame_index + task * a.F : nullptr;
    if (Fused) {
      for (int64_t f = 0, i = 0; f < a.F; ++f)
        for (int64_t l = 0; l < a.L; ++l) {
          const Placement<C> at = place<C>(a, b, q, f, l);
          for (int64_t k = 0; k < a.K; ++k, ++i) {
            base_x[i] = at.base_x, base_y[i] = at.base_y;
            scale_x[i] = at.scale_x, scale_y[i] = at.scale_y;
          }
        }
    }
    for (int64_t h = 0; h < a.H; ++h) {
      const int64_t first = (task * a.H + h) * n;
      Gather<St, Const> gather;
      gather.clear(a.D, room);
      if (Fused) {
        const St* logits = static_cast<const St*>(a.weights) + first;
        static_cast<C*>(a.lse)[task * a.H + h] = softmax<St, C>(logits, frames, a, probabilities);
      }
      for (int64_t f = 0; f < a.F; ++f) {
        const int64_t t = frames ? frames[f] : f;
        if (t < 0 || t >= a.T) continue;
        const St* frame = static_cast<const St*>(a.value) + (b * a.T + t) * frame_size + h * a.D;
        for (int64_t from = 0; from < points; from += kBlock) {
          const int count = int(points - from < kBlock ? points - from : kBlock);
          for (int j = 0; j < count; ++j) {
            const Level level = a.levels[(from + j) / a.K];
            p.width[j] = level.width, p.height[j] = level.height, p.start[j] = level.start;
          }
          const int64_t i = f * points + from;
          if constexpr (Fused) {
            const St* offsets = static_cast<const St*>(a.locations) + (first + i) * 2;
#pragma omp simd
            for (int j = 0; j < count; ++j) {
              p.base_x[j] = base_x[i + j];
              p.base_y[j] = base_y[i + j];
              p.shift_x[j] = widen(offsets[2 * j]) * scale_x[i + j];
              p.shift_y[j] = widen(offsets[2 * j + 1]) * scale_y[i + j];
              p.weight[j] = probabilities[i + j];
            }
          } else {
            const C* locations = static_cast<const C*>(a.locations) + (first + i) * 2;
            const C* weights = static_cast<const C*>(a.weights) + first + i;
#pragma omp simd
            for (int j = 0; j < count; ++j) {
              p.base_x[j] = locations[2 * j];
              p.base_y[j] = locations[2 * j + 1];
              p.shift_x[j] = C(0);
              p.shift_y[j] = C(0);
              p.weight[j] = weights[j];
            }
          }
          find_corners(p, count);
          for (int j = 0; j < count; ++j)
            if (p.inside[j]) add_point<St, Const>(gather, frame, row, p, j, p.weight[j]);
        }
      }
      gather.finish(static_cast<St*>(a.out) + task * row + h * a.D);
    }
  }
}

template <class St, int Const>
void forward_continuous(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  const int64_t points = a.L * a.K, row = a.H * a.D, frame_size = a.S * row;
  const Scratch<C> room(a.D);
  Block<C> p;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / a.Q;
    for (int64_t h = 0; h < a.H; ++h) {
      Gather<St, Const> gather;
      gather.clear(a.D, room.data);
      const St* clip = static_cast<const St*>(a.value) + b * a.T * frame_size + h * a.D;
      for (int64_t from = 0; from < points && a.T > 0; from += kBlock) {
        const int count = int(points - from < kBlock ? points - from : kBlock);
        const int64_t first = (task * a.H + h) * points + from;
        for (int j = 0; j < count; ++j) {
          const Level level = a.levels[(from + j) / a.K];
          p.width[j] = level.width, p.height[j] = level.height, p.start[j] = level.start;
          p.base_x[j] = static_cast<const C*>(a.locations)[(first + j) * 2];
          p.base_y[j] = static_cast<const C*>(a.locations)[(first + j) * 2 + 1];
          p.shift_x[j] = p.shift_y[j] = C(0);
        }
        find_corners(p, count);
        for (int j = 0; j < count; ++j) {
          const Pair<C> pair = frames_around<C>(a, b, static_cast<const C*>(a.tau)[first + j]);
          if (!p.inside[j] || !pair.reads) continue;
          const C weight = static_cast<const C*>(a.weights)[first + j];
          if (pair.share != C(1))
            add_point<St, Const>(gather, clip + pair.first * frame_size, row, p, j, weight * (C(1) - pair.share));
          if (pair.share != C(0))
            add_point<St, Const>(gather, clip + pair.second * frame_size, row, p, j, weight * pair.share);
        }
      }
      gather.finish(static_cast<St*>(a.out) + task * row + h * a.D);
    }
  }
}

// Forward kernels.  Included inside the namespace of an instruction set.

// Weighted sum of pixel rows, added to D coord numbers that start() names.  Const: the compile-time D, or 0 for any.
template <class St, int Const>
struct Gather {
  using C = typename CoordOf<St>::type;
  using V = typename Lanes<C>::V;
  static constexpr int vectors = Const / Lanes<C>::n;
  V sums[vectors];

  STDETR_INLINE void start(const C* from, int64_t) {
    for (int i = 0; i < vectors; ++i) sums[i] = load(from + i * Lanes<C>::n);
  }
  STDETR_INLINE void add(const St* r00, const St* r01, const St* r10, const St* r11, C w00, C w01, C w10, C w11) {
    for (int i = 0; i < vectors; ++i) {
      const int at = i * Lanes<C>::n;
      sums[i] += (w00 * load(r00 + at) + w01 * load(r01 + at)) + (w10 * load(r10 + at) + w11 * load(r11 + at));
    }
  }
  STDETR_INLINE void finish(C* to) const {
    for (int i = 0; i < vectors; ++i) store(to + i * Lanes<C>::n, sums[i]);
  }
};

template <class St>
struct Gather<St, 0> {
  using C = typename CoordOf<St>::type;
  C* sums = nullptr;
  int64_t D = 0;

  STDETR_INLINE void start(C* from, int64_t channels) {
    D = channels;
    sums = from;  // added to in place
  }
  STDETR_INLINE void add(const St* r00, const St* r01, const St* r10, const St* r11, C w00, C w01, C w10, C w11) {
#pragma omp simd
    for (int64_t c = 0; c < D; ++c) {
      sums[c] += (w00 * widen(r00[c]) + w01 * widen(r01[c])) + (w10 * widen(r10[c]) + w11 * widen(r11[c]));
    }
  }
  STDETR_INLINE void finish(C*) const {}
};

template <class St, int Const, class C>
STDETR_INLINE void add_point(
    Gather<St, Const>& gather, const St* frame, int64_t stride, const Block<C>& p, int j, C weight) {
  const C top = weight * p.top[j], bottom = weight * p.bottom[j];
  gather.add(frame + p.token00[j] * stride, frame + p.token01[j] * stride, frame + p.token10[j] * stride,
             frame + p.token11[j] * stride, top * p.left[j], top * p.right[j], bottom * p.left[j],
             bottom * p.right[j]);
}

// Log-sum-exp of one query and head over the unmasked frames; -inf where there is none.
template <class St, class C>
STDETR_INLINE C log_sum_exp(const Problem& a, int64_t query_head, const int32_t* frames) {
  const int64_t points = a.L * a.K;
  const St* logits = static_cast<const St*>(a.weights) + query_head * a.F * points;
  C highest = -C(__builtin_inf());
  bool poisoned = false;
  for (int64_t f = 0; f < a.F; ++f) {
    if (!reads(a, frames, f)) continue;
    const C extra = frame_logit<C>(a, query_head, f);
    for (int64_t j = 0; j < points; ++j) {
      const C x = widen(logits[f * points + j]) + extra;
      highest = x > highest ? x : highest;
      poisoned |= x != x;
    }
  }
  if (poisoned) return C(__builtin_nan(""));
  if (highest == -C(__builtin_inf())) return highest;
  C sum = C(0);
  for (int64_t f = 0; f < a.F; ++f) {
    if (!reads(a, frames, f)) continue;
    C part = C(0);
    const C level = highest - frame_logit<C>(a, query_head, f);
#pragma omp simd reduction(+ : part)
    for (int64_t j = 0; j < points; ++j) part += exp_of(widen(logits[f * points + j]) - level);
    sum += part;
  }
  return highest + log_of(sum);
}

// Where the points of one frame slot lie: the same for all heads of a query.
template <class C>
struct SlotTables {
  C *base_x, *base_y, *scale_x, *scale_y;
  C dt;         // temporal
  int64_t row;  // temporal: of the tables
};

// A block of points of one query, head and frame slot: placed, and not yet read.
template <class St, class C>
struct Pending {
  Block<C> p;
  const St* frame;
  C* sums;
  int count = 0;
};

// Places points from..from+count-1 of a slot, whose first point is number `first` among B,Q,H,F,L,K.
template <class St, Kind kind, class C>
STDETR_INLINE void place_points(
    const Problem& a, int64_t first, int64_t from, C normaliser, const SlotTables<C>& tables, int64_t h,
    Pending<St, C>& to) {
  Block<C>& p = to.p;
  const int count = to.count;
  if constexpr (kind == Kind::temporal) {
    // `first` is a query's and head's first point among B,Q,H,L,K.
    const St* offsets = static_cast<const St*>(a.locations) + (first + from) * 2;
    const St* velocity = static_cast<const St*>(a.velocity) + (first + from) * 2;
    const St* logits = static_cast<const St*>(a.weights) + first + from;
    const TableRow<C> row = table_row<C>(a, tables.row, h, from);
    const C dt = tables.dt;
#pragma omp simd
    for (int j = 0; j < count; ++j) {
      const C x = widen(offsets[2 * j]) + dt * widen(velocity[2 * j]) + row.offsets[2 * j];
      const C y = widen(offsets[2 * j + 1]) + dt * widen(velocity[2 * j + 1]) + row.offsets[2 * j + 1];
      p.base_x[j] = tables.base_x[from + j];
      p.base_y[j] = tables.base_y[from + j];
      p.shift_x[j] = x * tables.scale_x[from + j];
      p.shift_y[j] = y * tables.scale_y[from + j];
      p.weight[j] = exp_of(widen(logits[j]) + row.logits[j] - normaliser);
    }
  } else if constexpr (kind == Kind::fused) {
    const St* offsets = static_cast<const St*>(a.locations) + (first + from) * 2;
    const St* logits = static_cast<const St*>(a.weights) + first + from;
#pragma omp simd
    for (int j = 0; j < count; ++j) {
      p.base_x[j] = tables.base_x[from + j];
      p.base_y[j] = tables.base_y[from + j];
      p.shift_x[j] = widen(offsets[2 * j]) * tables.scale_x[from + j];
      p.shift_y[j] = widen(offsets[2 * j + 1]) * tables.scale_y[from + j];
      p.weight[j] = exp_of(widen(logits[j]) - normaliser);
    }
  } else {
    const C* locations = static_cast<const C*>(a.locations) + (first + from) * 2;
    const C* weights = static_cast<const C*>(a.weights) + first + from;
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
}

// Adds a block of points to its sums.  Meanwhile it asks for the pixels of the points that come kAhead later, which may
// belong to the next block: the rows of a few queries are scattered over the frame and would each be waited for.
template <class St, int Const, class C>
__attribute__((noinline)) void gather_points(const Problem& a, const Pending<St, C>& work, const Pending<St, C>* next) {
  if (work.count == 0) return;
  const int64_t row = a.H * a.D;
  const int ahead = work.count < kAhead ? work.count : kAhead, coming = next ? next->count : 0;
  Gather<St, Const> gather;
  gather.start(work.sums, a.D);
  for (int j = 0; j < work.count; ++j) {
    const int i = j + ahead;
    if (i < work.count) {
      fetch_corners<St, Const>(work.frame, row, work.p, i);
    } else if (i - work.count < coming) {
      fetch_corners<St, Const>(next->frame, row, next->p, i - work.count);
    }
    if (work.p.inside[j]) add_point<St, Const>(gather, work.frame, row, work.p, j, work.p.weight[j]);
  }
  gather.finish(work.sums);
}

// Queries are taken in blocks, and within a block frame after frame: what is in the cache belongs to one frame, so a
// point costs the same at any number of frames.
template <class St, int Const, Kind kind>
void forward_discrete(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  constexpr bool Fused = kind != Kind::plain, Temporal = kind == Kind::temporal;
  constexpr bool kHalf = sizeof(St) != sizeof(C);  // sums need room of their own
  const int64_t points = a.L * a.K, row = a.H * a.D, frame_size = a.S * row;
  int64_t block = row > 0 ? (int64_t(1) << 20) / (int64_t(sizeof(C)) * row) : end - begin;
  block = block < 1 ? 1 : (block > end - begin ? end - begin : block);
  const Scratch<C> scratch((kHalf ? block * row : 0) + (Fused ? 4 * points : 0));
  const Scratch<Level> levels(points);
  for (int64_t j = 0; j < points; ++j) levels.data[j] = a.levels[j / a.K];
  SlotTables<C> tables{};
  if (Fused) {
    C* room = scratch.data + (kHalf ? block * row : 0);
    tables = {room, room + points, room + 2 * points, room + 3 * points, C(0), 0};
  }
  Pending<St, C> work[2];  // one is gathered while the pixels of the other are on their way
  Pending<St, C>*next = &work[0], *current = &work[1];
  if (points <= kBlock)
    for (Pending<St, C>& one : work) set_levels(one.p, levels.data, int(points));
  C* lse = static_cast<C*>(a.lse);
  for (int64_t from = begin; from < end; from += block) {
    const int64_t to = from + block < end ? from + block : end;
    St* out = static_cast<St*>(a.out) + from * row;
    C* sums = kHalf ? scratch.data : reinterpret_cast<C*>(out);
    __builtin_memset(sums, 0, sizeof(C) * size_t((to - from) * row));
    if constexpr (Fused) {
      for (int64_t task = from; task < to; ++task) {
        const int32_t* frames = a.frame_index ? a.frame_index + task * a.F : nullptr;
        for (int64_t h = 0; h < a.H; ++h) {
          const int64_t at = task * a.H + h;
          if constexpr (Temporal) {
            lse[at] = log_sum_exp_temporal<St, C>(a, task, h, frames);
          } else {
            lse[at] = log_sum_exp<St, C>(a, at, frames);
          }
        }
      }
    }
    current->count = 0;
    for (int64_t f = 0; f < a.F; ++f) {
      for (int64_t task = from; task < to; ++task) {
        const int32_t* frames = a.frame_index ? a.frame_index + task * a.F : nullptr;
        if (!reads(a, frames, f)) continue;
        const int64_t b = task / a.Q, t = frames ? frames[f] : f;
        if constexpr (Temporal) {
          tables.dt = static_cast<const C*>(a.dt)[task * a.F + f];
          tables.row = row_of(a, tables.dt);
        }
        if constexpr (Fused) {
          for (int64_t l = 0, i = 0; l < a.L; ++l) {
            const Placement<C> at = place<C>(a, b, task - b * a.Q, f, l);
            for (int64_t k = 0; k < a.K; ++k, ++i) {
              tables.base_x[i] = at.base_x, tables.base_y[i] = at.base_y;
              tables.scale_x[i] = at.scale_x, tables.scale_y[i] = at.scale_y;
            }
          }
        }
        for (int64_t h = 0; h < a.H; ++h) {
          const int64_t at = task * a.H + h;
          const C normaliser = Fused ? normaliser_of(a, lse[at], at, f) : C(0);
          for (int64_t part = 0; part < points; part += kBlock) {
            next->count = int(points - part < kBlock ? points - part : kBlock);
            next->frame = static_cast<const St*>(a.value) + (b * a.T + t) * frame_size + h * a.D;
            next->sums = sums + (task - from) * row + h * a.D;
            if (points > kBlock) set_levels(next->p, levels.data + part, next->count);
            const int64_t first = (Temporal ? at : at * a.F + f) * points;
            place_points<St, kind, C>(a, first, part, normaliser, tables, h, *next);
            gather_points<St, Const, C>(a, *current, next);
            Pending<St, C>* done = current;
            current = next;
            next = done;
          }
        }
      }
    }
    gather_points<St, Const, C>(a, *current, nullptr);
    if constexpr (kHalf) {
      for (int64_t i = 0; i < (to - from) * row; ++i) narrow(sums[i], out[i]);
    }
  }
}

// Backward kernels of the temporal op.  Included inside the namespace of an instruction set.
//
// A query's offsets, velocity and logits serve all its frames, so a task owns (clip, head, level) over all frames, and
// with it every sum that belongs there: no atomics, one order.

// Sums of one task: three tensors without a frame axis, and the tables.
template <class C>
struct TemporalSums {
  C *offsets, *velocity, *logits;  // Q,K,2; Q,K,2; Q,K
  double* tables;                  // R,K,3
};

template <class St, int Const>
void backward_temporal_frame(
    const Problem& a, int64_t b, int64_t t, int64_t h, int64_t l, typename CoordOf<St>::type* scratch,
    const TemporalSums<typename CoordOf<St>::type>& sums) {
  using C = typename CoordOf<St>::type;
  const int64_t row = a.H * a.D, frame_task = b * a.T + t;
  const Level level = a.levels[l];
  const int64_t tokens = int64_t(level.height) * level.width;
  const int64_t origin = (frame_task * a.S + level.start) * row + h * a.D;
  const St* value = static_cast<const St*>(a.value) + origin;
  St* grad_value = static_cast<St*>(a.grad_value) + origin;
  C* room = scratch;
  GradSlice<C> grad{scratch + a.D, a.D};
  if (a.grad_value_zeroed) {
    grad = {reinterpret_cast<C*>(grad_value), row};
  } else {
    __builtin_memset(grad.data, 0, sizeof(C) * size_t(tokens * a.D));
  }
  const int64_t count = a.pairs ? a.pair_starts[frame_task + 1] - a.pair_starts[frame_task] : a.Q;
  const int32_t* pairs = a.pairs ? a.pairs + a.pair_starts[frame_task] : nullptr;
  const bool scattered = count * a.K < tokens;
  const C* ratios = static_cast<const C*>(a.valid_ratios);
  const C width = C(level.width) * (ratios ? ratios[(b * a.L + l) * 2] : C(1));
  const C height = C(level.height) * (ratios ? ratios[(b * a.L + l) * 2 + 1] : C(1));
  const bool boxes = a.reference_size == 4;
  C* references = static_cast<C*>(a.grad_references);
  if (references) references += (h * a.L + l) * a.B * a.Q * a.F * a.reference_size;

  C* frame_shares = static_cast<C*>(a.grad_frame_shares);
  if (frame_shares) frame_shares += l * a.B * a.Q * a.H * a.F;

  Block<C> p;
  int64_t query[kBlock], point[kBlock], slot[kBlock], table[kBlock];  // slot: among B,Q,F
  int64_t head_slot[kBlock];  // among B,Q,H,F
  C scale_x[kBlock], scale_y[kBlock], delta[kBlock], normaliser[kBlock], distance[kBlock], x_off[kBlock], y_off[kBlock];
  for (int j = 0; j < kBlock; ++j) p.width[j] = level.width, p.height[j] = level.height, p.start[j] = 0;
  const uint32_t slots = a.F > 0 ? uint32_t(a.F) : 1;
  int64_t loaded = -1, entry = 0, k = 0;
  Scatter<St, Const> core;
  while (entry < count) {
    int n = 0;
    while (n < kBlock && entry < count) {
      const uint32_t pair = pairs ? uint32_t(pairs[entry]) : 0;
      const int64_t q = pairs ? pair / slots : entry, f = pairs ? pair % slots : t;
      const int64_t query_head = (b * a.Q + q) * a.H + h, base = (query_head * a.L + l) * a.K;
      const int64_t at_slot = (b * a.Q + q) * a.F + f;
      const Placement<C> at = place<C>(a, b, q, f, l);
      const C dt = static_cast<const C*>(a.dt)[at_slot];
      const int64_t which = row_of(a, dt);
      const C z = normaliser_of(a, static_cast<const C*>(a.saved_lse)[query_head], query_head, f);
      const int take = int(a.K - k < kBlock - n ? a.K - k : kBlock - n);
      const TableRow<C> entries = table_row<C>(a, which, h, which < 0 ? 0 : l * a.K + k);
      for (int i = 0; i < take; ++i) {
        const int j = n + i;
        const int64_t one = base + k + i;
        const St* offset = static_cast<const St*>(a.locations) + one * 2;
        const St* velocity = static_cast<const St*>(a.velocity) + one * 2;
        p.base_x[j] = at.base_x, p.base_y[j] = at.base_y;
        scale_x[j] = at.scale_x, scale_y[j] = at.scale_y;
        x_off[j] = widen(offset[0]) + dt * widen(velocity[0]) + entries.offsets[2 * i];
        y_off[j] = widen(offset[1]) + dt * widen(velocity[1]) + entries.offsets[2 * i + 1];
        p.weight[j] = widen(static_cast<const St*>(a.weights)[one]) + entries.logits[i];
        delta[j] = static_cast<const C*>(a.delta)[query_head];
        normaliser[j] = z;
        head_slot[j] = query_head * a.F + f;
        query[j] = q, point[j] = k + i, slot[j] = at_slot, table[j] = which, distance[j] = dt;
      }
      n += take;
      k += take;
      if (k == a.K) k = 0, ++entry;
    }
#pragma omp simd
    for (int j = 0; j < n; ++j) {
      p.shift_x[j] = x_off[j] * scale_x[j];
      p.shift_y[j] = y_off[j] * scale_y[j];
      p.weight[j] = exp_of(p.weight[j] - normaliser[j]);
    }
    find_corners(p, n);
    for (int j = 0; scattered && j < n && j < kAhead; ++j) fetch_corners<St, Const>(value, row, p, j);
    for (int j = 0; j < n; ++j) {
      if (scattered && j + kAhead < n) fetch_corners<St, Const>(value, row, p, j + kAhead);
      Slopes<C> slopes{C(0), C(0), C(0)};
      const int64_t one = query[j] * a.K + point[j];
      if (p.inside[j]) {
        if (query[j] != loaded) {
          loaded = query[j];
          core.read_gradient(static_cast<const St*>(a.grad_out) + ((b * a.Q + loaded) * a.H + h) * a.D, a.D, room);
        }
        slopes = slopes_at<St, Const>(core, value, row, p, j);
        scatter_at<St, Const>(core, grad.data, grad.stride, p, j, p.weight[j]);
      }
      const C logit = p.weight[j] * (slopes.sample - delta[j]);
      const C pixels_x = p.weight[j] * slopes.x, pixels_y = p.weight[j] * slopes.y;
      sums.logits[one] += logit;
      if (frame_shares) frame_shares[head_slot[j]] += logit;
      double* entries = table[j] < 0 ? nullptr : sums.tables + (table[j] * a.K + point[j]) * 3;
      if (entries) entries[2] += double(logit);
      // A point that does not count has zero gradient whatever its offset or box is (it may be infinite).
      if (pixels_x == C(0) && pixels_y == C(0)) continue;
      const C x = pixels_x * scale_x[j], y = pixels_y * scale_y[j];
      sums.offsets[2 * one] += x;
      sums.offsets[2 * one + 1] += y;
      sums.velocity[2 * one] += distance[j] * x;
      sums.velocity[2 * one + 1] += distance[j] * y;
      if (entries) entries[0] += double(x), entries[1] += double(y);
      if (references) {
        C* to = references + slot[j] * a.reference_size;
        to[0] += pixels_x * width;
        to[1] += pixels_y * height;
        if (boxes) {
          to[2] += pixels_x * width * x_off[j] * C(0.5) / C(a.K);
          to[3] += pixels_y * height * y_off[j] * C(0.5) / C(a.K);
        }
      }
    }
  }
  if (!a.grad_value_zeroed) flush_slice<St, C>(grad.data, grad_value, tokens, row, a.D);
}

template <class St, int Const>
void backward_temporal(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  int64_t largest = 0;
  for (int64_t l = 0; l < a.L; ++l) {
    const int64_t tokens = int64_t(a.levels[l].height) * a.levels[l].width;
    largest = tokens > largest ? tokens : largest;
  }
  const int64_t mine = a.Q * a.K, entries = a.R * a.K * 3;
  const Scratch<C> scratch(a.D + (a.grad_value_zeroed ? 0 : largest * a.D));
  const Scratch<C> room(5 * mine);
  const Scratch<double> tables(entries);
  const TemporalSums<C> sums{room.data, room.data + 2 * mine, room.data + 4 * mine, tables.data};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t l = task % a.L, h = task / a.L % a.H, b = task / (a.L * a.H);
    __builtin_memset(room.data, 0, sizeof(C) * size_t(5 * mine));
    __builtin_memset(tables.data, 0, sizeof(double) * size_t(entries));
    for (int64_t t = 0; t < a.T; ++t) backward_temporal_frame<St, Const>(a, b, t, h, l, scratch.data, sums);
    for (int64_t q = 0; q < a.Q; ++q) {
      const int64_t first = (((b * a.Q + q) * a.H + h) * a.L + l) * a.K;
      for (int64_t i = 0; i < 2 * a.K; ++i) {
        narrow(sums.offsets[2 * q * a.K + i], static_cast<St*>(a.grad_locations)[2 * first + i]);
        narrow(sums.velocity[2 * q * a.K + i], static_cast<St*>(a.grad_velocity)[2 * first + i]);
      }
      for (int64_t i = 0; i < a.K; ++i) narrow(sums.logits[q * a.K + i], static_cast<St*>(a.grad_weights)[first + i]);
    }
    for (int64_t r = 0; r < a.R; ++r) {
      double* to = a.grad_tables + (((b * a.R + r) * a.H + h) * a.L + l) * a.K * 3;
      __builtin_memcpy(to, tables.data + r * a.K * 3, sizeof(double) * size_t(a.K * 3));
    }
  }
}

// After the tasks: the reference's gradient is the sum of the H*L shares, in order.
template <class St>
void finish_temporal(const Problem& a, int64_t begin, int64_t end) {
  using C = typename CoordOf<St>::type;
  finish_frame_logits<C>(a, begin, end);
  if (!a.grad_references) return;
  const int64_t size = a.F * a.reference_size, all = a.B * a.Q * size;
  const C* shares = static_cast<const C*>(a.grad_references);
  C* to = static_cast<C*>(a.grad_reference);
  for (int64_t i = begin * size; i < end * size; ++i) {
    C sum = C(0);
    for (int64_t share = 0; share < a.H * a.L; ++share) sum += shares[share * all + i];
    to[i] = sum;
  }
}

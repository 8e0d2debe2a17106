// The temporal parameterisation: the terms of a query that all frames share, and what a signed distance dt adds.
// Included inside the namespace of an instruction set.
//
//   offset(f) = offset + dt * velocity + offset_table[row]      logit(f) = logit + logit_table[row] + frame_logits[f]
//
// row follows from dt; at dt = 0 there is none, and the tables add nothing.

// -1 at dt = 0 (and where dt is NaN); rows 0..R/2-1 are dt = -R/2..-1, the others 1..R/2; dt is clamped beyond.
template <class C>
STDETR_INLINE int64_t row_of(const Problem& a, C dt) {
  const C reach = C(a.R / 2);
  const C bounded = dt > reach ? reach : (dt < -reach ? -reach : dt);
  const int64_t distance = bounded == bounded ? int64_t(__builtin_rint(double(bounded))) : 0;  // halves to even
  if (distance == 0) return -1;
  return distance < 0 ? distance + a.R / 2 : distance + a.R / 2 - 1;
}

// The entries of one head's points of a row, from point `from` on.
template <class C>
struct TableRow { const C *offsets, *logits; };

constexpr int kZeros = 2 * kBlock;

template <class C>
STDETR_INLINE TableRow<C> table_row(const Problem& a, int64_t row, int64_t h, int64_t from) {
  static constexpr C zeros[kZeros] = {};
  if (row < 0) return {zeros, zeros};
  const int64_t at = (row * a.H + h) * a.L * a.K + from;
  return {static_cast<const C*>(a.offset_table) + at * 2, static_cast<const C*>(a.logit_table) + at};
}

// Log-sum-exp of one query and head over the unmasked frames; -inf where there is none.
template <class St, class C>
STDETR_INLINE C log_sum_exp_temporal(const Problem& a, int64_t task, int64_t h, const int32_t* frames) {
  const int64_t points = a.L * a.K;
  const St* logits = static_cast<const St*>(a.weights) + (task * a.H + h) * points;
  const C* dt = static_cast<const C*>(a.dt) + task * a.F;
  C highest = -C(__builtin_inf());
  bool poisoned = false;
  for (int64_t f = 0; f < a.F; ++f) {
    if (!reads(a, frames, f)) continue;
    const int64_t row = row_of(a, dt[f]);
    const C extra = frame_logit<C>(a, task * a.H + h, f);
    for (int64_t from = 0; from < points; from += kBlock) {
      const TableRow<C> table = table_row<C>(a, row, h, from);
      for (int64_t j = from; j < points && j < from + kBlock; ++j) {
        const C x = widen(logits[j]) + table.logits[j - from] + extra;
        highest = x > highest ? x : highest;
        poisoned |= x != x;
      }
    }
  }
  if (poisoned) return C(__builtin_nan(""));
  if (highest == -C(__builtin_inf())) return highest;
  C sum = C(0);
  for (int64_t f = 0; f < a.F; ++f) {
    if (!reads(a, frames, f)) continue;
    const int64_t row = row_of(a, dt[f]);
    C part = C(0);
    const C level = highest - frame_logit<C>(a, task * a.H + h, f);
    for (int64_t from = 0; from < points; from += kBlock) {
      const TableRow<C> table = table_row<C>(a, row, h, from);
      const int64_t count = points - from < kBlock ? points - from : kBlock;
#pragma omp simd reduction(+ : part)
      for (int64_t j = 0; j < count; ++j) part += exp_of(widen(logits[from + j]) + table.logits[j] - level);
    }
    sum += part;
  }
  return highest + log_of(sum);
}

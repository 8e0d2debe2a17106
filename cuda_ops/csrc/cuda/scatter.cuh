// Gradient of value where the backward kernel does not add it itself: two sinks for one walk over the points.
//
//   SharedSink  Coarse levels hold half of the samples on a few hundred pixels, where global additions would queue.  A
//               block owns them for one (clip, head, frame), adds in shared memory in fp32 and writes once.
//   FixedSink   Deterministic pass, all levels: 64-bit fixed-point additions, whose order does not matter.
//
// A warp prepares 32 points at a time, one a lane, then visits those that count: half a warp takes a column of corners,
// a lane two neighbouring channels.
//
// Shape legend: see problem.h.
#pragma once

#include "points.cuh"

namespace stdetr {

// The two corners of one column: weights, and the units of the sink to their first channel.
template <typename A, typename Offset>
struct alignas(16) Column {
  A top_weight, low_weight;
  Offset top, low;
};

// Power of two that turns a contribution into fixed point: the sum of all that can meet in one element stays below
// 2^62.  NaN if a gradient or a weight is not finite.
__device__ __forceinline__ double fixed_scale(const Problem& p) {
  const double weight = is_fused(p.mode) ? 1.0 : __longlong_as_double(static_cast<long long>(p.largest[1]));
  const double bound = __longlong_as_double(static_cast<long long>(p.largest[0])) * weight;
  if (!(bound <= 1.7976931348623157e308)) return static_cast<double>(NAN);
  if (bound == 0) return 1;
  int exponent;
  frexp(bound, &exponent);
  return ldexp(1.0, min(61 - p.fixed_bits - exponent, 1000));
}

// Channels of a token in shared memory: even, so that two of them share a 64-bit word.
__device__ __host__ __forceinline__ int padded_channels(int channels) { return channels + (channels & 1); }

struct SharedSink {
  using Offset = int;
  static constexpr int kThreads = 1024;
  float* sums;
  int step;         // floats per token
  int64_t first;    // where token 0 of the frame would be
  static __device__ __forceinline__ void add(float* top, float top_first, float top_second, float* low,
                                             float low_first, float low_second, bool) {
    reduce_two_shared(top, top_first, top_second, low, low_first, low_second);
  }
};

struct FixedSink {
  using Offset = int64_t;
  static constexpr int kThreads = 512;
  unsigned long long* sums;
  int step;
  int64_t first;  // of frame 0
  double scale;

  template <typename A>
  __device__ __forceinline__ void add_one(unsigned long long* target, A value) const {
    atomicAdd(target, static_cast<unsigned long long>(__double2ll_rn(static_cast<double>(value) * scale)));
  }
  template <typename A>
  __device__ __forceinline__ void add(unsigned long long* top, A top_first, A top_second, unsigned long long* low,
                                      A low_first, A low_second, bool has_second) const {
    add_one(top, top_first);
    add_one(low, low_first);
    if (!has_second) return;
    add_one(top + 1, top_second);
    add_one(low + 1, low_second);
  }
};

template <typename A, typename Sink>
using column_t = Column<A, typename Sink::Offset>;

template <typename A, typename Sink>
inline size_t scatter_shared_bytes(int levels, int64_t sums) {
  return levels * sizeof(LevelEntry<A>) + Sink::kThreads * (2 * sizeof(column_t<A, Sink>) + sizeof(int64_t)) +
         static_cast<size_t>(sums) * sizeof(float);
}

// What one block walks over: frame t of head h of clip b (t < 0: all frames), levels from first_level, queries
// [begin, end).
struct Patch {
  int b, h, t, first_level, begin, end;
};

// Point j of frame entry f as two columns; false: it adds nothing.
template <typename T, Rule R, typename Sink>
__device__ __forceinline__ bool columns_of(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                           const Patch& patch, const Sink& sink, int query, int f, int j,
                                           column_t<accumulator_t<T>, Sink> (&columns)[2]) {
  using A = accumulator_t<T>;
  using Offset = typename Sink::Offset;
  const Row row(p, patch.b, query, patch.h);
  const int frame = frame_of(p, row, f);
  if (frame < 0 || (patch.t >= 0 && frame != patch.t)) return false;
  const A normaliser =
      is_fused(R) ? normaliser_of(p, row, f, static_cast<const A*>(p.lse)[row.head]) : A(0);
  const Anchor<A> anchor = anchor_of<T, R>(p, row, f);
  const Placed<A> placed = place<T, R>(p, table, anchor, row.first_point<R>(p, f) + j, j, true, normaliser);
  const LevelEntry<A> level = table[placed.level];
  const Spot<A> spot = spot_of(placed.x, placed.y, level.width, level.height);
  if (!spot.inside || placed.probability == A(0)) return false;
  const CornerWeights<A> weights = weights_of(spot, placed.probability);
  const int64_t base = sink.first + (patch.t >= 0 ? int64_t{0} : frame_start(p, frame));
  const CornerOffsets offsets = offsets_in(spot, level, base, sink.step);
  const Offset left = static_cast<Offset>(offsets.first), right = static_cast<Offset>(offsets.first + offsets.right);
  const Offset down = static_cast<Offset>(offsets.down);
  columns[0] = {weights.at[0], weights.at[2], left, left + down};
  columns[1] = {weights.at[1], weights.at[3], right, right + down};
  return true;
}

// Walks over all points of the patch.  Each warp takes a run of neighbouring queries, so that warps work on different
// parts of the frame and seldom meet.
template <typename T, Rule R, int Channels, typename Sink>
__device__ __forceinline__ void scatter_patch(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                              const Patch& patch, const Sink& sink, unsigned char* shared) {
  using A = accumulator_t<T>;
  using Stored = column_t<A, Sink>;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) & 31;
  Stored* columns = reinterpret_cast<Stored*>(shared) + warp * 64;
  // Where the point's row of grad_out starts.
  int64_t* rows = reinterpret_cast<int64_t*>(shared + Sink::kThreads * 2 * sizeof(Stored)) + warp * 32;
  constexpr int warps = Sink::kThreads / 32;
  const int share = (patch.end - patch.begin + warps - 1) / warps;
  const int begin = min(patch.begin + warp * share, patch.end), end = min(begin + share, patch.end);
  const int skipped = patch.first_level * p.points;
  // Without an index only entry t reads frame t.
  const bool in_order = patch.t >= 0 && p.frame_index == nullptr;
  const int points = static_cast<int>(p.per_entry.divisor);
  const int items = (end - begin) * points * (in_order ? 1 : p.frames);
  const int channels = Channels > 0 ? Channels : p.channels;
  const int first_channel = (lane & 15) * 2;
  const T* grad_out = static_cast<const T*>(p.grad_out) + first_channel;
  for (int base = 0; base < items; base += 32) {
    const int item = min(base + lane, items - 1);
    const int entry = divide(item, p.per_entry);
    const int j = skipped + item - entry * points;
    const int turn = in_order ? entry : divide(entry, p.per_query);
    const int f = in_order ? patch.t : entry - turn * p.frames;
    Stored made[2];
    const bool counts =
        columns_of<T, R>(p, table, patch, sink, begin + turn, f, j, made) && base + lane < items;
    const unsigned int votes = __ballot_sync(kWholeWarp, counts);
    if (counts) {
      const int slot = __popc(votes & ((1u << lane) - 1u));
      columns[2 * slot] = made[0];
      columns[2 * slot + 1] = made[1];
      rows[slot] = Row(p, patch.b, begin + turn, patch.h).head * channels;
    }
    __syncwarp();
    const int count = __popc(votes);
    for (int i = 0; i < count; ++i) {
      const Stored column = columns[2 * i + (lane >> 4)];
      const T* grad = grad_out + rows[i];
      for (int channel = first_channel; channel < channels; channel += 32) {
        const bool has_second = Channels > 0 || channel + 1 < channels;
        const T* from = grad + (channel - first_channel);
        A first, second = 0;
        if (Channels > 0 || (channels & 1) == 0) {
          load_two<T>(from, 0, first, second);
        } else {
          first = widen(__ldg(from));
          if (has_second) second = widen(__ldg(from + 1));
        }
        sink.add(sink.sums + column.top + channel, column.top_weight * first, column.top_weight * second,
                 sink.sums + column.low + channel, column.low_weight * first, column.low_weight * second, has_second);
      }
    }
    __syncwarp();
  }
}

// The part of the queries that block `part` of p.coarse_parts takes.
__device__ __forceinline__ void take_queries(const Problem& p, int part, Patch& patch) {
  const int share = (p.queries + p.coarse_parts - 1) / p.coarse_parts;
  patch.begin = min(part * share, p.queries);
  patch.end = min(patch.begin + share, p.queries);
}

// Grid: clip, frame, head, part of the queries.
template <typename T, Rule R, int Channels>
__global__ void __launch_bounds__(SharedSink::kThreads, 1) coarse_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);
  unsigned char* staged = shared + p.levels * sizeof(LevelEntry<A>);
  float* sums = reinterpret_cast<float*>(staged + SharedSink::kThreads * (2 * sizeof(column_t<A, SharedSink>) + sizeof(int64_t)));

  int block = static_cast<int>(blockIdx.x);
  Patch patch;
  take_queries(p, block % p.coarse_parts, patch);
  block /= p.coarse_parts;
  patch.h = block % p.heads;
  block /= p.heads;
  patch.t = block % p.clip;
  patch.b = block / p.clip;
  patch.first_level = p.direct_levels;

  const int channels = Channels > 0 ? Channels : p.channels;
  const int step = padded_channels(channels);
  const int first_token = p.level[p.direct_levels].start;
  const int tokens = p.tokens - first_token;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * step; i += SharedSink::kThreads) sums[i] = 0;
  load_levels(p, patch.b, table);  // ends with a barrier

  const SharedSink sink{sums, step, -static_cast<int64_t>(first_token) * step};
  scatter_patch<T, R, Channels>(p, table, patch, sink, staged);
  __syncthreads();

  float* target = static_cast<float*>(p.grad_value_sum) +
                  ((static_cast<int64_t>(patch.b) * p.clip + patch.t) * p.tokens + first_token) * p.heads * channels +
                  patch.h * channels;
  const int width = channels % 4 == 0 ? 4 : 1;
  const int per_token = channels / width;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * per_token; i += SharedSink::kThreads) {
    const int token = i / per_token, channel = (i - token * per_token) * width;
    const float* from = sums + token * step + channel;
    float* to = target + static_cast<int64_t>(token) * p.heads * channels + channel;
    if (width == 4) {
      const float four[4] = {from[0], from[1], from[2], from[3]};
      reduce_to_global<4, float>(to, four);
    } else {
      const float one[1] = {from[0]};
      reduce_to_global<1, float>(to, one);
    }
  }
}

// Grid: clip, head, part of the queries.
template <typename T, Rule R>
__global__ void __launch_bounds__(FixedSink::kThreads, 1) fixed_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);

  int block = static_cast<int>(blockIdx.x);
  Patch patch;
  take_queries(p, block % p.coarse_parts, patch);
  block /= p.coarse_parts;
  patch.h = block % p.heads;
  patch.b = block / p.heads;
  patch.t = -1;
  patch.first_level = 0;
  load_levels(p, patch.b, table);

  const double scale = fixed_scale(p);
  if (scale != scale) return;  // the sums become NaN afterwards
  const int step = p.heads * p.channels;
  const int64_t first = static_cast<int64_t>(patch.b) * p.clip * (p.tokens * step) + patch.h * p.channels;
  const FixedSink sink{reinterpret_cast<unsigned long long*>(p.grad_value_fixed), step, first, scale};
  scatter_patch<T, R, 0>(p, table, patch, sink, shared + p.levels * sizeof(LevelEntry<A>));
}

}  // namespace stdetr

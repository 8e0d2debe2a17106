// Gradient of value where the backward kernel does not add it itself: two sinks for one walk over the points.
//
//   SharedSink  Coarse levels hold half of the samples on a few hundred pixels, where global additions would queue.  A
//               block owns them for one (clip, head, frame), adds in shared memory in fp32 and writes once.
//   FixedSink   Deterministic pass, all levels: 64-bit fixed-point additions, whose order does not matter.
//
// A warp prepares 32 points at a time, one a lane, then visits the valid ones: half a warp takes a corner, a lane two
// neighbouring channels.
//
// Shape legend: see problem.h.
#pragma once

#include "points.cuh"

namespace stdetr {

constexpr int kScatterThreads = 512;
constexpr int kScatterWarps = kScatterThreads / 32;

template <typename A>
struct ScatterRecord {
  CornerWeights<A> weights;
  CornerOffsets offsets;
};

template <typename A>
inline size_t scatter_shared_bytes(int levels, int64_t accumulated) {
  return levels * sizeof(LevelEntry<A>) + kScatterThreads * (sizeof(ScatterRecord<A>) + sizeof(int)) +
         static_cast<size_t>(accumulated) * sizeof(float);
}

// Channels of a token in shared memory: even, so that two of them share a 64-bit word.
__device__ __host__ __forceinline__ int padded_channels(int channels) { return channels + (channels & 1); }

// Power of two that turns a contribution into fixed point: the sum of all that can meet in one element stays below
// 2^62.  NaN if a gradient or a weight is not finite.
__device__ __forceinline__ double fixed_scale(const Problem& p) {
  const double weight = p.mode == Mode::fused ? 1.0 : __longlong_as_double(static_cast<long long>(p.largest[1]));
  const double bound = __longlong_as_double(static_cast<long long>(p.largest[0])) * weight;
  if (!(bound <= 1.7976931348623157e308)) return static_cast<double>(NAN);
  if (bound == 0) return 1;
  int exponent;
  frexp(bound, &exponent);
  return ldexp(1.0, min(61 - p.fixed_bits - exponent, 1000));
}

struct SharedSink {
  static constexpr bool kShared = true;
  float* sums;

  template <typename A>
  __device__ __forceinline__ void add(int64_t offset, A first, A second, bool has_second) const {
    reduce_two_shared(sums + offset, first, has_second ? second : A(0));
  }
};

struct FixedSink {
  static constexpr bool kShared = false;
  unsigned long long* sums;
  double scale;

  template <typename A>
  __device__ __forceinline__ void add(int64_t offset, A first, A second, bool has_second) const {
    atomicAdd(sums + offset, static_cast<unsigned long long>(__double2ll_rn(static_cast<double>(first) * scale)));
    if (has_second) {
      atomicAdd(sums + offset + 1, static_cast<unsigned long long>(__double2ll_rn(static_cast<double>(second) * scale)));
    }
  }
};

// What one block walks over: frame t of head h of clip b (t < 0: all frames), levels from first_level, queries
// [begin, end).
struct Patch {
  int b, h, t, first_level, begin, end;
};

// Point `item` of a warp's queries for one side (a continuous point has two), as a record; false: adds nothing.
template <typename T, Mode M, bool Shared>
__device__ __forceinline__ bool scatter_record(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                               const Patch& patch, int query, int f, int j, int side,
                                               ScatterRecord<accumulator_t<T>>& record) {
  using A = accumulator_t<T>;
  const Row row(p, patch.b, query, patch.h);
  A share = 1;
  int frame;
  if constexpr (M == Mode::continuous) {
    const Moment<A> moment = moment_of<T>(p, row, j);
    frame = moment.frame[side];
    share = moment.share[side];
  } else {
    frame = frame_of(p, row, f);
  }
  if (frame < 0 || (patch.t >= 0 && frame != patch.t)) return false;
  const A lse = M == Mode::fused ? static_cast<const A*>(p.lse)[row.head] : A(0);
  const Placed<A> placed = place<T, M>(p, table, row, f, j, true, lse);
  const LevelEntry<A> level = table[placed.level];
  const Spot<A> spot = spot_of(placed.x, placed.y, level.width, level.height);
  const A weight = placed.probability * share;
  if (spot.flags == 0 || weight == A(0)) return false;
  record.weights = weights_of(spot, weight);
  if (Shared) {
    const int step = padded_channels(p.channels);
    record.offsets = offsets_in(spot, level, -static_cast<int64_t>(p.level[patch.first_level].start) * step, step);
  } else {
    record.offsets = offsets_of(p, spot, level, frame);
  }
  return true;
}

// Adds one record's four corners.  Lanes 0-15 take the left column, 16-31 the right one.
template <typename T, typename Sink>
__device__ __forceinline__ void scatter_corners(const Problem& p, const Sink& sink, const T* grad_out,
                                                const ScatterRecord<accumulator_t<T>>& record, int lane) {
  using A = accumulator_t<T>;
  const bool right = lane >= 16;
  const int64_t top = record.offsets.first + (right ? record.offsets.right : 0);
  const A top_weight = right ? record.weights.at[1] : record.weights.at[0];
  const A low_weight = right ? record.weights.at[3] : record.weights.at[2];
  for (int channel = (lane & 15) * 2; channel < p.channels; channel += 32) {
    const bool has_second = channel + 1 < p.channels;
    A first, second = 0;
    if (p.channels & 1) {
      first = widen(__ldg(grad_out + channel));
      if (has_second) second = widen(__ldg(grad_out + channel + 1));
    } else {
      load_two<T>(grad_out, channel >> 1, first, second);
    }
    if (top_weight != A(0)) sink.add(top + channel, top_weight * first, top_weight * second, has_second);
    if (low_weight != A(0)) {
      sink.add(top + record.offsets.down + channel, low_weight * first, low_weight * second, has_second);
    }
  }
}

// Walks over all points of the patch.  Each warp takes a run of neighbouring queries, so that warps work on different
// parts of the frame and seldom meet.
template <typename T, Mode M, typename Sink>
__device__ __forceinline__ void scatter_patch(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                              const Patch& patch, const Sink& sink,
                                              ScatterRecord<accumulator_t<T>>* records, int* owners) {
  using A = accumulator_t<T>;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) & 31;
  records += warp * 32;
  owners += warp * 32;
  const int share = (patch.end - patch.begin + kScatterWarps - 1) / kScatterWarps;
  const int begin = min(patch.begin + warp * share, patch.end), end = min(begin + share, patch.end);
  const int skipped = patch.first_level * p.points;
  const int points = p.levels * p.points - skipped;
  // Frame entries in order: only entry t can read frame t.
  const bool in_order = patch.t >= 0 && p.frame_index == nullptr && M != Mode::continuous;
  const int frames = in_order ? 1 : p.frames;
  const int64_t items = static_cast<int64_t>(end - begin) * frames * points;
  constexpr int sides = M == Mode::continuous ? 2 : 1;
  for (int64_t base = 0; base < items; base += 32) {
    const int64_t item = base + lane;
    const int64_t entry = item / points;
    const int j = skipped + static_cast<int>(item - entry * points);
    const int query = begin + static_cast<int>(entry / frames);
    const int f = in_order ? patch.t : static_cast<int>(entry % frames);
    for (int side = 0; side < sides; ++side) {
      const bool valid =
          item < items && scatter_record<T, M, Sink::kShared>(p, table, patch, query, f, j, side, records[lane]);
      owners[lane] = query;
      unsigned int waiting = __ballot_sync(kWholeWarp, valid);
      __syncwarp();
      while (waiting != 0) {
        const int next = __ffs(waiting) - 1;
        waiting &= waiting - 1;
        const ScatterRecord<A> record = records[next];
        const int64_t head = (static_cast<int64_t>(patch.b) * p.queries + owners[next]) * p.heads + patch.h;
        scatter_corners<T>(p, sink, static_cast<const T*>(p.grad_out) + head * p.channels, record, lane);
      }
      __syncwarp();
    }
  }
}

// Grid: clip, head, frame, part of the queries.
template <typename T, Mode M>
__global__ void __launch_bounds__(kScatterThreads) coarse_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);
  shared += p.levels * sizeof(LevelEntry<A>);
  ScatterRecord<A>* records = reinterpret_cast<ScatterRecord<A>*>(shared);
  shared += kScatterThreads * sizeof(ScatterRecord<A>);
  int* owners = reinterpret_cast<int*>(shared);
  float* sums = reinterpret_cast<float*>(shared + kScatterThreads * sizeof(int));

  int block = static_cast<int>(blockIdx.x);
  Patch patch;
  const int part = block % p.coarse_parts;
  block /= p.coarse_parts;
  patch.h = block % p.heads;
  block /= p.heads;
  patch.t = block % p.clip;
  patch.b = block / p.clip;
  patch.first_level = p.direct_levels;
  const int share = (p.queries + p.coarse_parts - 1) / p.coarse_parts;
  patch.begin = min(part * share, p.queries);
  patch.end = min(patch.begin + share, p.queries);

  const int step = padded_channels(p.channels);
  const int first_token = p.level[p.direct_levels].start;
  const int count = (p.tokens - first_token) * step;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kScatterThreads) sums[i] = 0;
  load_levels(p, patch.b, table);  // ends with a barrier

  scatter_patch<T, M>(p, table, patch, SharedSink{sums}, records, owners);
  __syncthreads();

  float* target = static_cast<float*>(p.grad_value_sum) +
                  ((static_cast<int64_t>(patch.b) * p.clip + patch.t) * p.tokens + first_token) * p.heads * p.channels +
                  patch.h * p.channels;
  const int width = p.channels % 4 == 0 ? 4 : 1;
  const int per_token = p.channels / width;
  for (int i = static_cast<int>(threadIdx.x); i < (p.tokens - first_token) * per_token; i += kScatterThreads) {
    const int token = i / per_token, channel = (i - token * per_token) * width;
    const float* from = sums + token * step + channel;
    float* to = target + static_cast<int64_t>(token) * p.heads * p.channels + channel;
    if (width == 4) {
      const float four[4] = {from[0], from[1], from[2], from[3]};
      reduce_to_global<4, float>(to, four);
    } else {
      const float one[1] = {from[0]};
      reduce_to_global<1, float>(to, one);
    }
  }
}

// Grid: clip, head, part of the queries (coarse_parts).
template <typename T, Mode M>
__global__ void __launch_bounds__(kScatterThreads) fixed_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);
  shared += p.levels * sizeof(LevelEntry<A>);
  ScatterRecord<A>* records = reinterpret_cast<ScatterRecord<A>*>(shared);
  int* owners = reinterpret_cast<int*>(shared + kScatterThreads * sizeof(ScatterRecord<A>));

  int block = static_cast<int>(blockIdx.x);
  Patch patch;
  const int part = block % p.coarse_parts;
  block /= p.coarse_parts;
  patch.h = block % p.heads;
  patch.b = block / p.heads;
  patch.t = -1;
  patch.first_level = 0;
  const int share = (p.queries + p.coarse_parts - 1) / p.coarse_parts;
  patch.begin = min(part * share, p.queries);
  patch.end = min(patch.begin + share, p.queries);
  load_levels(p, patch.b, table);

  const double scale = fixed_scale(p);
  if (scale != scale) return;  // the sums become NaN afterwards
  const int64_t head_offset =
      static_cast<int64_t>(patch.b) * p.clip * (p.tokens * p.heads * p.channels) + patch.h * p.channels;
  unsigned long long* sums = reinterpret_cast<unsigned long long*>(p.grad_value_fixed) + head_offset;
  scatter_patch<T, M>(p, table, patch, FixedSink{sums, scale}, records, owners);
}

}  // namespace stdetr

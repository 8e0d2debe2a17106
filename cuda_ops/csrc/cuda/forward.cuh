// Forward kernel: out[b,q,h,:] = sum over frames, levels and points of probability * bilinear sample.
//
// Per chunk of points, lanes first prepare records (one point each) in shared memory, then walk over the records
// together: two 16-byte shared loads, four 16-byte loads of channels, fused multiply-adds.  Nothing but the records
// is exchanged, so a warp synchronises only with itself; teams of more than one warp add up once at the end.
//
// Shape legend: see problem.h.
#pragma once

#include "softmax.cuh"
#include "team.cuh"

namespace stdetr {

// Records of a group: four a lane, at most 16.
constexpr int kForwardRecordsPerLane = 4, kForwardRecords = 16;

template <typename A>
inline size_t forward_shared_bytes(int lanes, int levels, int piece) {
  const int groups = kBlockThreads / lanes;
  const int wanted = kForwardRecordsPerLane * lanes;
  const int records = wanted < kForwardRecords ? wanted : kForwardRecords;
  const size_t staged = static_cast<size_t>(groups) * (records + 1) * (sizeof(CornerWeights<A>) + sizeof(CornerOffsets));
  const size_t sums = static_cast<size_t>(kBlockThreads) * piece * sizeof(A);
  return levels * sizeof(LevelEntry<A>) + (staged > sums ? staged : sums);
}

// Leaves a record in shared memory for each sample of points first, first + stride, ... < end of a frame entry that
// lies inside its frame; returns their number, the same for all lanes of the group.  The whole warp calls it together.
template <typename T, Rule R>
__device__ __forceinline__ int stage_forward(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                             const Anchor<accumulator_t<T>>& anchor, int64_t frame_points,
                                             int frame, int first, int stride, int end, int lane, int lanes, int slots,
                                             accumulator_t<T> normaliser,
                                             CornerWeights<accumulator_t<T>>* weights, CornerOffsets* offsets) {
  using A = accumulator_t<T>;
  const int shift = static_cast<int>(threadIdx.x) & 31 & ~(lanes - 1);
  const unsigned int before = (1u << lane) - 1u;
  const unsigned int group = lanes == 32 ? kWholeWarp : (1u << lanes) - 1u;
  int filled = 0;
  for (int base = 0; base < slots; base += lanes) {
    const int i = base + lane;
    const int j = first + i * stride;
    // Without a point a lane prepares the last one of the frame and does not count it: no branch around the loads.
    const bool exists = i < slots && j < end && frame >= 0;
    const int k = min(j, end - 1);
    const Placed<A> placed = place<T, R>(p, table, anchor, frame_points + k, k, true, normaliser);
    const LevelEntry<A> level = table[placed.level];
    const Spot<A> spot = spot_of(placed.x, placed.y, level.width, level.height);
    const bool counts = exists && spot.inside;
    const unsigned int votes = (__ballot_sync(kWholeWarp, counts) >> shift) & group;
    if (counts) {
      const int slot = filled + __popc(votes & before);
      weights[slot] = weights_of(spot, placed.probability);
      offsets[slot] = offsets_of<T>(p, spot, level, frame);
    }
    filled += __popc(votes);
  }
  return filled;
}

// sum += one bilinear sample of this lane's channels.
template <typename T, int PieceSize>
__device__ __forceinline__ void add_sample(const T* value, const CornerWeights<accumulator_t<T>>& weights,
                                           const CornerOffsets& offsets, accumulator_t<T> (&sum)[PieceSize]) {
  using A = accumulator_t<T>;
  const T* top = advance(value, offsets.first);
  const T* bottom = advance(top, offsets.down);
  const Piece<T, PieceSize> piece[4] = {
      Piece<T, PieceSize>::load(top), Piece<T, PieceSize>::load(advance(top, offsets.right)),
      Piece<T, PieceSize>::load(bottom), Piece<T, PieceSize>::load(advance(bottom, offsets.right))};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    A channel[PieceSize];
    piece[corner].unpack(channel);
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) sum[c] += weights.at[corner] * channel[c];
  }
}

template <typename T, Rule R, int PieceSize, int Channels>
__global__ void __launch_bounds__(kBlockThreads, Channels > 0 ? 3 : 2) forward_kernel(const __grid_constant__ Problem p) {
  using A = accumulator_t<T>;
  unsigned char* shared = dynamic_shared();
  LevelEntry<A>* table = reinterpret_cast<LevelEntry<A>*>(shared);
  shared += p.levels * sizeof(LevelEntry<A>);

  const Team<Channels, PieceSize> team(p);
  load_levels(p, team.b, table);
  const int slots = team.records(team.lanes, kForwardRecordsPerLane, kForwardRecords);
  const int groups = kBlockThreads / team.lanes;
  // One spare record a group moves neighbouring groups to different banks.
  CornerWeights<A>* weights = reinterpret_cast<CornerWeights<A>*>(shared) + team.group * (slots + 1);
  CornerOffsets* offsets =
      reinterpret_cast<CornerOffsets*>(reinterpret_cast<CornerWeights<A>*>(shared) + groups * (slots + 1)) +
      team.group * (slots + 1);

  const Row row(p, team.b, team.q, team.h);
  A lse = 0;
  if constexpr (is_fused(R)) {
    const int width = min(team.members, 32);
    lse = log_sum_exp<T, R>(p, row, team.member & (width - 1), width);
    if (team.active && team.member == 0 && team.first_channel == 0) static_cast<A*>(p.lse)[row.head] = lse;
  }

  const bool has_channels = Channels > 0 || team.first_channel < p.channels;
  const T* value = static_cast<const T*>(p.value) +
                   static_cast<int64_t>(team.b) * p.clip * (p.tokens * p.heads * p.channels) +
                   team.h * p.channels + (has_channels ? team.first_channel : 0);
  A sum[PieceSize];
#pragma unroll
  for (int c = 0; c < PieceSize; ++c) sum[c] = 0;

  const int per_frame = p.levels * p.points;
  const int points_per_chunk = slots << team.point_shift;
  // Every thread makes the same number of steps, so that warps stay whole.
  for (int round = 0; round < p.frames; round += p.split_frames) {
    const int f = round + team.frame_part;
    const bool has_frame = f < p.frames && team.active;
    const int frame = has_frame ? frame_of(p, row, f) : -1;
    const int entry = min(f, p.frames - 1);
    const Anchor<A> anchor = anchor_of<T, R>(p, row, entry);
    const int64_t frame_points = row.first_point<R>(p, entry);
    const A normaliser = is_fused(R) ? normaliser_of(p, row, entry, lse) : A(0);
    for (int base = 0; base < per_frame; base += points_per_chunk) {
      const int count = stage_forward<T, R>(p, table, anchor, frame_points, frame, base + team.point_part, p.split_points,
                                            per_frame, team.lane, team.lanes, slots, normaliser, weights, offsets);
      __syncwarp();
      for (int i = 0; i < count; ++i) add_sample<T, PieceSize>(value, weights[i], load_offsets(offsets + i), sum);
      __syncwarp();
    }
  }

  // Sum over the groups of the team: first inside the warp, then across warps.
  for (int step = team.lanes; step < min(team.members, 32); step *= 2) {
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) sum[c] += __shfl_xor_sync(kWholeWarp, sum[c], step);
  }
  if (team.members > 32) {
    __syncthreads();
    A* sums = reinterpret_cast<A*>(shared);
#pragma unroll
    for (int c = 0; c < PieceSize; ++c) sums[threadIdx.x * PieceSize + c] = sum[c];
    __syncthreads();
    if (team.member < team.lanes) {
      for (int other = 32; other < team.members; other += 32) {
#pragma unroll
        for (int c = 0; c < PieceSize; ++c) sum[c] += sums[(threadIdx.x + other) * PieceSize + c];
      }
    }
  }
  if (team.active && team.member < team.lanes && has_channels) {
    T* out = static_cast<T*>(p.out) + row.head * p.channels + team.first_channel;
    Piece<T, PieceSize>::store(out, sum);
  }
}

}  // namespace stdetr

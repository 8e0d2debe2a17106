// Forward kernel: out[b,q,h,:] = sum over frames, levels and points of probability * bilinear sample.
//
// Per chunk of points, lanes first prepare records (one point each) in shared memory, then walk over the records
// together: two 16-byte shared loads, four 16-byte loads of channels, fused multiply-adds.  Nothing but the records
// is exchanged, so a warp synchronises only with itself; teams of more than one warp add up once at the end.
//
// Shape legend: see problem.h.
#pragma once

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

// Leaves records of points [first, first + count) of frame entry f in shared memory, `stride` points apart.
template <typename T, Mode M>
__device__ __forceinline__ void stage_forward(const Problem& p, const LevelEntry<accumulator_t<T>>* table,
                                              const Row& row, int f, int frame, int first, int stride, int end,
                                              int lane, int lanes, int slots, accumulator_t<T> lse,
                                              CornerWeights<accumulator_t<T>>* weights, CornerOffsets* offsets) {
  using A = accumulator_t<T>;
  constexpr bool twice = M == Mode::continuous;
  const int count = twice ? slots / 2 : slots;
  for (int i = lane; i < count; i += lanes) {
    const int j = first + i * stride;
    if (j >= end) {
      offsets[twice ? 2 * i : i] = {-1, 0, 0};
      if (twice) offsets[2 * i + 1] = {-1, 0, 0};
      continue;
    }
    const Placed<A> placed = place<T, M>(p, table, row, f, j, frame >= 0, lse);
    const LevelEntry<A> level = table[placed.level];
    const Spot<A> spot = spot_of(placed.x, placed.y, level.width, level.height);
    if (!twice) {
      weights[i] = weights_of(spot, placed.probability);
      offsets[i] = offsets_of(p, spot, level, frame);
      continue;
    }
    const Moment<A> moment = moment_of<T>(p, row, j);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      weights[2 * i + side] = weights_of(spot, placed.probability * moment.share[side]);
      offsets[2 * i + side] = offsets_of(p, spot, level, moment.frame[side]);
    }
  }
}

template <typename T, Mode M, int PieceSize, int Channels>
__global__ void __launch_bounds__(kBlockThreads) forward_kernel(const __grid_constant__ Problem p) {
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
  if constexpr (M == Mode::fused) {
    const int width = min(team.members, 32);
    lse = log_sum_exp<T>(p, row, team.member & (width - 1), width);
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
  const int points_per_chunk = (M == Mode::continuous ? slots / 2 : slots) * p.split_points;
  const int records_per_point = M == Mode::continuous ? 2 : 1;
  // Every thread makes the same number of steps, so that warps stay whole.
  for (int round = 0; round < p.frames; round += p.split_frames) {
    const int f = round + team.frame_part;
    const bool has_frame = f < p.frames;
    const int frame = !has_frame ? -1 : (M == Mode::continuous ? 0 : frame_of(p, row, f));
    for (int base = 0; base < per_frame; base += points_per_chunk) {
      stage_forward<T, M>(p, table, row, f, frame, base + team.point_part, p.split_points,
                       has_frame && team.active ? per_frame : 0, team.lane, team.lanes, slots, lse, weights, offsets);
      __syncwarp();
      const int left = min(per_frame - base, points_per_chunk);
      const int count = (left + p.split_points - 1) / p.split_points * records_per_point;
      for (int i = 0; i < count; ++i) {
        const CornerOffsets at = offsets[i];
        if (at.first < 0) continue;
        const CornerWeights<A> w = weights[i];
        const T* top = value + at.first;
        const T* bottom = top + at.down;
        const Piece<T, PieceSize> piece[4] = {Piece<T, PieceSize>::load(top), Piece<T, PieceSize>::load(top + at.right),
                                              Piece<T, PieceSize>::load(bottom),
                                              Piece<T, PieceSize>::load(bottom + at.right)};
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          A channel[PieceSize];
          piece[corner].unpack(channel);
#pragma unroll
          for (int c = 0; c < PieceSize; ++c) sum[c] += w.at[corner] * channel[c];
        }
      }
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

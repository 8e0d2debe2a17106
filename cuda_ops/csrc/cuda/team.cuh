// Which part of the work a thread owns, for both schedules.
//
// A group of `lanes` threads owns one (query, head); each lane holds one 16-byte piece of the channels.  With many
// queries (encoder) a group takes all points of its query.  With few (decoder) `split_points` groups share the points
// of a frame and `split_frames` such sets share the frames, so that one warp or more work on one (query, head).
// Threads of a block share the clip b and the head h and differ in q.
//
// Shape legend: see problem.h.
#pragma once

#include "points.cuh"

namespace stdetr {

constexpr int kBlockThreads = 256, kBlockWarps = kBlockThreads / 32;

// D when it is known at compile time (32), else 0: taken from the problem.
template <int Channels, int PieceSize>
struct Team {
  int lane;        // in the group
  int lanes;       // threads of a group
  int group;       // of the block
  int point_part;  // of split_points, a power of two
  int point_shift;
  int frame_part;  // of split_frames
  int member;      // thread of the team, the groups of one query
  int members;     // threads of the team
  int first_channel;
  int b, q, h;
  bool active;  // q exists

  static constexpr int kLanes = Channels / PieceSize;

  // `turn` of `turns` runs of queries that the block takes one after the other.
  __device__ __forceinline__ explicit Team(const Problem& p, int turns = 1, int turn = 0) {
    lanes = Channels > 0 ? kLanes : p.lanes;
    const int thread = static_cast<int>(threadIdx.x);
    lane = thread & (lanes - 1);
    group = thread / lanes;
    point_part = group & (p.split_points - 1);
    point_shift = 31 - __clz(p.split_points);
    frame_part = (group >> point_shift) & (p.split_frames - 1);
    members = lanes * p.split_points * p.split_frames;
    member = thread & (members - 1);
    const int queries_per_block = kBlockThreads / members;

    int block = static_cast<int>(blockIdx.x);
    int tile = 0;
    if (Channels == 0 && p.channel_tiles > 1) {
      tile = block % p.channel_tiles;
      block /= p.channel_tiles;
    }
    h = block % p.heads;
    block /= p.heads;
    const int query_block = block % p.query_blocks;
    b = block / p.query_blocks;
    const int i = (query_block * turns + turn) * queries_per_block + thread / members;
    active = i < p.queries;
    // Threads past the end repeat the last query and write nothing: warps stay whole.
    q = ordered_query(p, active ? i : p.queries - 1);
    first_channel = (tile * lanes + lane) * PieceSize;
  }

  // Points of this group among `count` that its frame set shares, as an upper bound that is the same for all groups.
  __device__ __forceinline__ int share(int count) const { return (count + (1 << point_shift) - 1) >> point_shift; }

  // Points that a group prepares at a time.
  static __device__ __forceinline__ int records(int lanes, int a_lane, int most) {
    const int wanted = a_lane * lanes;
    return wanted < most ? wanted : most;
  }
};

}  // namespace stdetr

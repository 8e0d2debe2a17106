// Choice of schedule for one call: how many threads share a query, how many blocks, which levels go where.
#pragma once

#include <stdexcept>
#include <string>

#include "problem.h"

namespace stdetr {

constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;

inline int power_of_two_at_least(int64_t number) {
  int result = 1;
  while (result < number) result *= 2;
  return result;
}

inline int64_t ceil_divide(int64_t number, int64_t by) { return (number + by - 1) / by; }

[[noreturn]] inline void refuse(const std::string& message) { throw std::invalid_argument("stdetr: " + message); }

// Sizes that the kernels' 32-bit arithmetic relies on.
inline void check_sizes(const Problem& p) {
  constexpr int64_t limit = kMaxBlocks;
  const auto many = [](int64_t a, int64_t b) { return a != 0 && b > limit / a; };
  if (p.levels > kMaxLevels) {
    refuse("spatial_shapes has " + std::to_string(p.levels) + " levels, the CUDA kernels take at most " +
           std::to_string(kMaxLevels));
  }
  if (many(p.heads * int64_t{1}, p.channels) || many(static_cast<int64_t>(p.heads) * p.channels, p.tokens)) {
    refuse("one frame of value (S * H * D) must have fewer than 2^31 elements");
  }
  for (int l = 0; l < p.levels; ++l) {
    // Bytes of the running sums, of at most 8 a number.
    if (static_cast<int64_t>(p.heads) * p.channels * 8 > limit / p.level[l].width) {
      refuse("one row of a level (w * H * D) must have fewer than 2^28 elements");
    }
  }
  if (many(p.levels * int64_t{1}, p.points) || many(static_cast<int64_t>(p.levels) * p.points, p.frames)) {
    refuse("F * L * K must be below 2^31");
  }
  const int64_t row = static_cast<int64_t>(p.levels) * p.points;
  if (p.mode == Mode::temporal && (many(row, int64_t{3} * p.heads) || many(row * 3 * p.heads, p.table_rows))) {
    refuse("3 * R * H * L * K must be below 2^31");
  }
}

// Channels a lane holds: a 16-byte piece where D allows it.  Double exists to check gradients, not to be fast.
inline int piece_of(const Problem& p, int bytes, const Device& device) {
  const int whole = 16 / bytes;
  return bytes == 8 || device.force_scalar || p.channels % whole != 0 ? 1 : whole;
}

// Threads and blocks of the forward and backward kernels; `piece` channels a lane.
inline void plan_teams(Problem& p, int piece, const Device& device) {
  check_sizes(p);
  p.per_frame = make_fast_div(static_cast<uint32_t>(p.levels * p.points));
  p.per_level = make_fast_div(static_cast<uint32_t>(p.points));
  int lanes = power_of_two_at_least(ceil_divide(p.channels, piece));
  const int least = piece == 1 ? 4 : 1;
  p.lanes = lanes < least ? least : (lanes > 32 ? 32 : lanes);
  p.channel_tiles = static_cast<int>(ceil_divide(p.channels, static_cast<int64_t>(p.lanes) * piece));

  // Enough warps to fill the machine come first from the points of a frame (one warp), then from the frames.
  const int64_t wanted = static_cast<int64_t>(device.processors) * 32;
  const int64_t heads = static_cast<int64_t>(p.batch) * p.queries * p.heads * p.channel_tiles;
  p.split_points = p.split_frames = 1;
  const auto warps = [&] { return ceil_divide(heads * p.lanes * p.split_points * p.split_frames, 32); };
  const int most_points = power_of_two_at_least(ceil_divide(p.levels * p.points, 2));
  const int most_frames = power_of_two_at_least(p.frames);
  while (warps() < wanted && p.lanes * p.split_points < 32 && p.split_points < most_points) p.split_points *= 2;
  while (warps() < wanted && p.lanes * p.split_points * p.split_frames < 256 && p.split_frames < most_frames) {
    p.split_frames *= 2;
  }
  if (device.split_points > 0) p.split_points = device.split_points;
  if (device.split_frames > 0) p.split_frames = device.split_frames;
  if (p.lanes * p.split_points > 32 || p.lanes * p.split_points * p.split_frames > 256 ||
      (p.split_points & (p.split_points - 1)) != 0 || (p.split_frames & (p.split_frames - 1)) != 0) {
    refuse("split_points * lanes must be a power of two up to 32, times split_frames up to 256");
  }

  const int queries_per_block = 256 / (p.lanes * p.split_points * p.split_frames);
  p.query_blocks = static_cast<int>(ceil_divide(p.queries, queries_per_block));
  p.query_turns = 1;
  const bool queries_are_tokens = p.queries % p.tokens == 0 && p.split_points * p.split_frames == 1;
  p.tile_rows = device.tile_rows >= 0 ? (p.queries % p.tokens == 0 ? device.tile_rows : 0)
                                      : (queries_are_tokens ? 8 : 0);
  const int64_t blocks = static_cast<int64_t>(p.batch) * p.query_blocks * p.heads;
  if (blocks > kMaxBlocks / p.channel_tiles) refuse("B * Q * H is too large for one launch");
}

// Shared memory that the warps' sums of the temporal tables may take: two blocks must stay on a processor.
constexpr int64_t kTableBytes = 32 * 1024;

// Where the temporal backward kernel keeps the gradients of the tables, of `bytes` a number.  A block takes queries in
// several turns where the shares would be many: beyond about eight blocks a processor, or 2^22 numbers in all.  Returns
// how many numbers the shares have.
inline int64_t plan_shares(Problem& p, int bytes, const Device& device) {
  const int64_t table = int64_t{3} * p.table_rows * p.levels * p.points;
  p.block_shares = 8 * table * bytes <= kTableBytes ? 1 : 8;
  const int64_t heads = static_cast<int64_t>(p.batch) * p.heads, share = table * p.block_shares;
  if (table > 0) {
    const int64_t room = (int64_t{1} << 22) / share, wanted = 8 * static_cast<int64_t>(device.processors);
    const int64_t most = (room < wanted ? room : wanted) / heads;
    p.query_turns = static_cast<int>(ceil_divide(p.query_blocks, most < 1 ? 1 : most));
    p.query_blocks = static_cast<int>(ceil_divide(p.query_blocks, p.query_turns));
  }
  return share * heads * p.query_blocks;
}

// Bytes of shared memory of that kernel beside the records'.
inline size_t table_shared_bytes(const Problem& p, int bytes) {
  return p.block_shares != 1 ? 0 : size_t{8} * 3 * p.table_rows * p.levels * p.points * bytes;
}

// Divisors of a scatter pass that takes `points` points of a frame entry.
inline void plan_walk(Problem& p, int points) {
  p.per_entry = make_fast_div(static_cast<uint32_t>(points));
  p.per_query = make_fast_div(static_cast<uint32_t>(p.frames));
  const int64_t queries = ceil_divide(p.queries, p.coarse_parts);
  if (queries > kMaxBlocks / p.frames / points) refuse("Q * F * L * K is too large for one block of the backward pass");
}

// Which levels the coarse pass takes, and its grid.  `room` is the number of floats that fit in shared memory.
inline void plan_coarse(Problem& p, bool allowed, int64_t room, const Device& device) {
  p.direct_levels = p.levels;
  p.coarse_parts = 1;
  if (!allowed || device.coarse_levels == 0) return;
  const int step = p.channels + (p.channels & 1);
  int first = p.levels;
  while (first > 0 && static_cast<int64_t>(p.tokens - p.level[first - 1].start) * step <= room) --first;
  if (device.coarse_levels > 0) {
    const int asked = device.coarse_levels < p.levels ? p.levels - device.coarse_levels : 0;
    if (asked < first) refuse("coarse levels do not fit in shared memory");
    first = asked;
  }
  if (first == p.levels) return;
  const int64_t tokens = p.tokens - p.level[first].start;
  if (device.coarse_levels < 0) {
    // Clearing and writing the sums pays only if each is added to often: four corners per point.
    const int64_t additions = static_cast<int64_t>(p.queries) * p.frames * (p.levels - first) * p.points * 4;
    if (additions < 32 * tokens * p.clip) return;
  }
  p.direct_levels = first;
  const int64_t blocks = static_cast<int64_t>(p.batch) * p.heads * p.clip;
  const int64_t parts = ceil_divide(2 * static_cast<int64_t>(device.processors), blocks);
  const int64_t most = ceil_divide(p.queries, 64);
  p.coarse_parts = static_cast<int>(parts < most ? parts : most);
  if (device.coarse_parts > 0) p.coarse_parts = device.coarse_parts;
  if (blocks > kMaxBlocks / p.coarse_parts) refuse("B * H * T is too large for one launch");
  plan_walk(p, (p.levels - first) * p.points);
}

// Grid and scale of the deterministic pass, which adds the gradient of every level.
inline void plan_fixed(Problem& p, const Device& device) {
  p.direct_levels = 0;
  const int64_t blocks = static_cast<int64_t>(p.batch) * p.heads;
  const int64_t parts = ceil_divide(4 * static_cast<int64_t>(device.processors), blocks);
  const int64_t most = ceil_divide(p.queries, 16);
  p.coarse_parts = static_cast<int>(parts < most ? parts : most);
  if (device.coarse_parts > 0) p.coarse_parts = device.coarse_parts;
  plan_walk(p, p.levels * p.points);
  // A point adds to a pixel once.
  const double contributions = static_cast<double>(p.queries) * p.frames * p.points;
  p.fixed_bits = 0;
  while (static_cast<double>(int64_t{1} << p.fixed_bits) < contributions) ++p.fixed_bits;
  if (p.fixed_bits > 40) refuse("Q * F * K is too large for the deterministic backward pass");
}

}  // namespace stdetr

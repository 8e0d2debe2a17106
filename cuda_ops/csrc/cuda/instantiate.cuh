// Launches of all kernels for one storage type; each kernels_*.cu compiles it for its own.
#pragma once

#include <type_traits>

#include "backward.cuh"
#include "finish.cuh"
#include "forward.cuh"
#include "plan.h"
#include "run.h"
#include "temporal_backward.cuh"

namespace stdetr {

// Calls `body` with the rule as a compile-time constant.
template <typename Body>
inline void with_rule(const Problem& p, Body body) {
  const bool boxes = p.reference_size == 4;
  switch (p.mode) {
    case Mode::plain: return body(std::integral_constant<Rule, Rule::plain>{});
    case Mode::fused:
      return boxes ? body(std::integral_constant<Rule, Rule::fused_boxes>{})
                   : body(std::integral_constant<Rule, Rule::fused_points>{});
    case Mode::temporal:
      return boxes ? body(std::integral_constant<Rule, Rule::temporal_boxes>{})
                   : body(std::integral_constant<Rule, Rule::temporal_points>{});
  }
}

inline unsigned int finish_blocks(int64_t items, const Device& device) {
  const int64_t wanted = ceil_divide(items, kFinishThreads), most = static_cast<int64_t>(device.processors) * 16;
  return static_cast<unsigned int>(wanted < most ? wanted : most);
}

template <typename T>
void forward_of(Problem& p, const Device& device, Stream stream) {
  using A = accumulator_t<T>;
  const int piece = piece_of(p, sizeof(T), device);
  plan_teams(p, piece, device);
  const unsigned int blocks =
      static_cast<unsigned int>(static_cast<int64_t>(p.batch) * p.query_blocks * p.heads * p.channel_tiles);
  const size_t shared = forward_shared_bytes<A>(p.lanes, p.levels, piece);
  const auto start = [&](auto kernel) { launch("forward_kernel", kernel, blocks, kBlockThreads, shared, stream, p); };
  with_rule(p, [&](auto rule) {
    constexpr Rule R = decltype(rule)::value;
    if (piece == 1) {
      start(forward_kernel<T, R, 1, 0>);
    } else if constexpr (sizeof(T) < 8) {
      p.channels == 32 ? start(forward_kernel<T, R, kPiece<T>, 32>) : start(forward_kernel<T, R, kPiece<T>, 0>);
    }
  });
}

template <typename T, Rule R, int PieceSize, int Channels>
inline auto backward_kernel_of() {
  if constexpr (is_temporal(R)) {
    return temporal_backward_kernel<T, R, PieceSize, Channels>;
  } else {
    return backward_kernel<T, R, PieceSize, Channels>;
  }
}

template <typename T>
void backward_of(Problem& p, bool deterministic, const Device& device, Stream stream) {
  using A = accumulator_t<T>;
  const int piece = piece_of(p, sizeof(T), device);
  plan_teams(p, piece, device);
  const int64_t count = static_cast<int64_t>(p.batch) * p.clip * p.tokens * p.heads * p.channels;
  if (deterministic) {
    plan_fixed(p, device);
    clear_memory(p.grad_value_fixed, count * sizeof(int64_t), stream);
    clear_memory(p.largest, 2 * sizeof(unsigned long long), stream);
    const int64_t rows = static_cast<int64_t>(p.batch) * p.queries * p.heads;
    launch("largest_kernel", largest_kernel<T>, finish_blocks(rows * p.channels, device), kFinishThreads, 0, stream,
           static_cast<const T*>(p.grad_out), rows * p.channels, p.largest);
    if (!is_fused(p.mode)) {
      const int64_t weights = rows * p.frames * p.levels * p.points;
      launch("largest_kernel", largest_kernel<A>, finish_blocks(weights, device), kFinishThreads, 0, stream,
             static_cast<const A*>(p.weights), weights, p.largest + 1);
    }
  } else {
    // Shared memory sums are floats; a query set too small for one schedule is too small for the coarse pass.
    const bool allowed = sizeof(T) < 8 && (p.split_points * p.split_frames == 1 || device.coarse_levels > 0);
    const int64_t room =
        (device.shared_bytes - static_cast<int64_t>(scatter_shared_bytes<A, SharedSink>(p.levels, 0))) / int64_t{sizeof(float)};
    plan_coarse(p, allowed, room, device);
    clear_memory(p.grad_value_sum, count * sizeof(A), stream);
  }

  size_t shared = backward_shared_bytes<A>(p.lanes, p.levels);
  if (p.mode == Mode::temporal) {
    plan_shares(p, sizeof(A), device);
    shared += table_shared_bytes(p, sizeof(A));
  }
  // Forward tiles split D over blocks; here one block needs all of it for the dot products.
  const unsigned int blocks = static_cast<unsigned int>(static_cast<int64_t>(p.batch) * p.query_blocks * p.heads);
  p.channel_tiles = 1;
  const auto start = [&](auto kernel) { launch("backward_kernel", kernel, blocks, kBlockThreads, shared, stream, p); };
  with_rule(p, [&](auto rule) {
    constexpr Rule R = decltype(rule)::value;
    if (piece == 1) {
      start(backward_kernel_of<T, R, 1, 0>());
    } else if constexpr (sizeof(T) < 8) {
      p.channels == 32 ? start(backward_kernel_of<T, R, kPiece<T>, 32>()) : start(backward_kernel_of<T, R, kPiece<T>, 0>());
    }
  });

  if (deterministic) {
    const int64_t parts = static_cast<int64_t>(p.batch) * p.heads * p.coarse_parts;
    with_rule(p, [&](auto rule) {
      launch("fixed_kernel", fixed_kernel<T, decltype(rule)::value>, static_cast<unsigned int>(parts), FixedSink::kThreads,
             scatter_shared_bytes<A, FixedSink>(p.levels, 0), stream, p);
    });
    launch("unfix_kernel", unfix_kernel<T>, finish_blocks(count, device), kFinishThreads, 0, stream, p, count);
  } else {
    if constexpr (sizeof(T) < 8) {
      if (p.direct_levels < p.levels) {
        const int64_t parts = static_cast<int64_t>(p.batch) * p.clip * p.heads * p.coarse_parts;
        const int64_t sums =
            static_cast<int64_t>(p.tokens - p.level[p.direct_levels].start) * padded_channels(p.channels);
        with_rule(p, [&](auto rule) {
          constexpr Rule R = decltype(rule)::value;
          launch("coarse_kernel", p.channels == 32 ? coarse_kernel<T, R, 32> : coarse_kernel<T, R, 0>,
                 static_cast<unsigned int>(parts), SharedSink::kThreads, scatter_shared_bytes<A, SharedSink>(p.levels, sums),
                 stream, p);
        });
      }
    }
    if constexpr (sizeof(T) == 2) {
      launch("narrow_kernel", narrow_kernel<T>, finish_blocks(ceil_divide(count, 8), device), kFinishThreads, 0, stream,
             static_cast<const float*>(p.grad_value_sum), static_cast<T*>(p.grad_value), count);
    }
  }
  if (p.grad_reference_heads != nullptr) {
    const int entries = p.frames * p.reference_size;
    const int64_t rows = static_cast<int64_t>(p.batch) * p.queries;
    launch("sum_heads_kernel", sum_heads_kernel<A>, finish_blocks(rows * entries, device), kFinishThreads, 0, stream,
           static_cast<const A*>(p.grad_reference_heads), static_cast<A*>(p.grad_reference), rows, p.heads, entries);
  }
  if (p.table_rows > 0) {
    const int64_t elements = int64_t{3} * p.table_rows * p.heads * p.levels * p.points;
    launch("sum_tables_kernel", sum_tables_kernel<A>, finish_blocks(elements * 32, device), kFinishThreads, 0, stream, p);
  }
}

}  // namespace stdetr

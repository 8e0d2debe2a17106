// A block of threads as fibers on one operating system thread.
//
// A fiber runs until it meets a barrier, shuffle or vote, then the next one runs: ascending, descending or in a random
// order, so that a missing barrier shows as a different result.  Shared memory starts as NaN in every block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace stdetr::host {

struct Index {
  unsigned int x;
};

enum class Order : int { ascending = 0, descending = 1, random = 2 };

struct Options {
  Order order = Order::ascending;
  uint64_t seed = 0;
  // Break the rules on purpose: tests show that the harness notices.
  bool ignore_warp_barriers = false;
  bool ignore_block_barriers = false;
  size_t shared_limit = 227 * 1024;
};

// What happened in the grids since the counters were last cleared.
struct Counters {
  uint64_t grids = 0, blocks = 0, block_barriers = 0, warp_exchanges = 0;
};

Options& options();
Counters& counters();

// Runs `body` once for each thread of each block.  Throws std::runtime_error on a deadlock or a misuse.
void run_grid(const char* name, unsigned int blocks, unsigned int threads, size_t shared_bytes,
              const std::function<void()>& body);

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
unsigned char* shared_memory();

void block_barrier();
void warp_barrier();
unsigned int ballot(unsigned int mask, bool vote);
// The value of the lane whose number differs in the bits of `step`.
void exchange(unsigned int mask, const void* value, void* result, size_t bytes, int step);

void check_aligned(const void* address, size_t alignment, const char* access);

}  // namespace stdetr::host

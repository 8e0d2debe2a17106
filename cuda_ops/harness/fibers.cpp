#include "fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace stdetr::host {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned int kLanes = 32;
constexpr unsigned int kWholeWarp = 0xffffffffu;

enum class State { ready, at_block_barrier, at_warp, done };

// What a lane brings to a warp-wide operation; all lanes must bring the same kind.
struct WarpSlot {
  char kind = 0;
  uint64_t value = 0;
};

struct Fiber {
  std::unique_ptr<unsigned char[]> stack;
  ucontext_t start;
  jmp_buf resume;
  bool started = false;
  State state = State::ready;
  WarpSlot slot;
  uint64_t seen[kLanes] = {};  // values of the warp after the operation
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<unsigned int> order;
  std::vector<unsigned char> shared_storage;
  unsigned char* shared = nullptr;
  jmp_buf scheduler;
  ucontext_t scheduler_context;
  const std::function<void()>* body = nullptr;
  const char* name = "";
  unsigned int current = 0, threads = 0, block = 0, blocks = 0;
  std::exception_ptr failure;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

[[noreturn]] void fail(const std::string& message) {
  Machine& m = machine();
  throw std::runtime_error(std::string(m.name) + ", block " + std::to_string(m.block) + ", thread " +
                           std::to_string(m.current) + ": " + message);
}

// Switching by setjmp/longjmp: swapcontext would make two system calls a switch.
void yield(State state) {
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.current];
  fiber.state = state;
  if (_setjmp(fiber.resume) == 0) _longjmp(m.scheduler, 1);
}

void fiber_main() {
  Machine& m = machine();
  try {
    (*m.body)();
  } catch (...) {
    if (!m.failure) m.failure = std::current_exception();
  }
  m.fibers[m.current].state = State::done;
  _longjmp(m.scheduler, 1);
}

void step(unsigned int index) {
  Machine& m = machine();
  m.current = index;
  Fiber& fiber = m.fibers[index];
  if (_setjmp(m.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

void prepare(Fiber& fiber) {
  if (!fiber.stack) fiber.stack = std::make_unique<unsigned char[]>(kStackBytes);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  fiber.started = false;
  fiber.state = State::ready;
}

// Lets whole warps and the whole block pass their barriers; true if a fiber can run on.
bool release() {
  Machine& m = machine();
  bool any = false;
  unsigned int waiting = 0, alive = 0;
  for (unsigned int first = 0; first < m.threads; first += kLanes) {
    const unsigned int end = std::min(first + kLanes, m.threads);
    unsigned int at_warp = 0;
    for (unsigned int i = first; i < end; ++i) {
      at_warp += m.fibers[i].state == State::at_warp;
      waiting += m.fibers[i].state == State::at_block_barrier;
      alive += m.fibers[i].state != State::done;
    }
    if (at_warp != end - first) continue;
    for (unsigned int i = first; i < end; ++i) {
      if (m.fibers[i].slot.kind != m.fibers[first].slot.kind) {
        m.current = i;
        fail("the lanes of a warp met different warp operations");
      }
      for (unsigned int j = first; j < end; ++j) m.fibers[i].seen[j - first] = m.fibers[j].slot.value;
      m.fibers[i].state = State::ready;
    }
    counters().warp_exchanges += 1;
    any = true;
  }
  if (waiting > 0 && waiting == alive) {
    for (unsigned int i = 0; i < m.threads; ++i) {
      if (m.fibers[i].state == State::at_block_barrier) m.fibers[i].state = State::ready;
    }
    counters().block_barriers += 1;
    any = true;
  }
  return any;
}

void run_block() {
  Machine& m = machine();
  for (unsigned int i = 0; i < m.threads; ++i) prepare(m.fibers[i]);
  std::memset(m.shared_storage.data(), 0xff, m.shared_storage.size());
  while (true) {
    bool ran = false;
    for (const unsigned int i : m.order) {
      if (m.fibers[i].state != State::ready) continue;
      step(i);
      ran = true;
      if (m.failure) std::rethrow_exception(m.failure);
    }
    const bool finished = std::all_of(m.fibers.begin(), m.fibers.begin() + m.threads,
                                      [](const Fiber& fiber) { return fiber.state == State::done; });
    if (finished) return;
    if (!release() && !ran) fail("deadlock: some threads never reach the barrier that others wait at");
  }
}

void warp_operation(unsigned int mask, char kind, uint64_t value) {
  if (mask != kWholeWarp) fail("the harness knows whole warps only");
  Machine& m = machine();
  m.fibers[m.current].slot = {kind, value};
  yield(State::at_warp);
}

}  // namespace

Options& options() {
  static Options instance;
  return instance;
}

Counters& counters() {
  static Counters instance;
  return instance;
}

Index thread_index() { return {machine().current}; }
Index block_index() { return {machine().block}; }
Index block_size() { return {machine().threads}; }
Index grid_size() { return {machine().blocks}; }
unsigned char* shared_memory() { return machine().shared; }

void run_grid(const char* name, unsigned int blocks, unsigned int threads, size_t shared_bytes,
              const std::function<void()>& body) {
  Machine& m = machine();
  m.name = name;
  m.block = m.current = 0;
  if (blocks == 0 || threads == 0 || threads > 1024 || threads % kLanes != 0) fail("invalid launch configuration");
  if (shared_bytes > options().shared_limit) {
    fail("needs " + std::to_string(shared_bytes) + " bytes of shared memory, there are " +
         std::to_string(options().shared_limit));
  }
  m.body = &body;
  m.threads = threads;
  m.blocks = blocks;
  m.failure = nullptr;
  if (m.fibers.size() < threads) m.fibers.resize(threads);
  // The bytes behind the block's memory are NaN too, so that reading past its end shows.
  m.shared_storage.assign(shared_bytes + 4096, 0xff);
  m.shared = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(m.shared_storage.data()) + 127) / 128 * 128);
  m.order.resize(threads);
  for (unsigned int i = 0; i < threads; ++i) m.order[i] = i;
  std::vector<unsigned int> block_order(blocks);
  for (unsigned int i = 0; i < blocks; ++i) block_order[i] = i;
  std::mt19937_64 random(options().seed);
  if (options().order == Order::descending) {
    std::reverse(m.order.begin(), m.order.end());
    std::reverse(block_order.begin(), block_order.end());
  } else if (options().order == Order::random) {
    std::shuffle(block_order.begin(), block_order.end(), random);
  }
  counters().grids += 1;
  for (const unsigned int block : block_order) {
    if (options().order == Order::random) std::shuffle(m.order.begin(), m.order.end(), random);
    m.block = block;
    run_block();
    counters().blocks += 1;
    for (size_t i = m.shared - m.shared_storage.data() + shared_bytes; i < m.shared_storage.size(); ++i) {
      if (m.shared_storage[i] != 0xff) fail("wrote past the end of shared memory");
    }
  }
}

void block_barrier() {
  if (options().ignore_block_barriers) return;
  yield(State::at_block_barrier);
}

void warp_barrier() {
  if (options().ignore_warp_barriers) return;
  warp_operation(kWholeWarp, 'b', 0);
}

unsigned int ballot(unsigned int mask, bool vote) {
  warp_operation(mask, 'v', vote);
  const Fiber& fiber = machine().fibers[machine().current];
  unsigned int votes = 0;
  for (unsigned int i = 0; i < kLanes; ++i) votes |= static_cast<unsigned int>(fiber.seen[i] & 1) << i;
  return votes;
}

void exchange(unsigned int mask, const void* value, void* result, size_t bytes, int step) {
  uint64_t word = 0;
  std::memcpy(&word, value, bytes);
  warp_operation(mask, 's', word);
  const Machine& m = machine();
  const unsigned int source = (m.current % kLanes) ^ static_cast<unsigned int>(step);
  if (source >= kLanes) fail("a shuffle reaches outside the warp");
  std::memcpy(result, &m.fibers[m.current].seen[source], bytes);
}

void check_aligned(const void* address, size_t alignment, const char* access) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    fail(std::string("misaligned ") + access + " of " + std::to_string(alignment) + " bytes");
  }
}

}  // namespace stdetr::host

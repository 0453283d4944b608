// Enough of CUDA C++ to compile kernels for the host and run them there, one thread of the grid at a time.
//
// A thread runs until it waits at a barrier or a shuffle; then another one starts, each on a stack of its own. When
// all threads of a block wait, those whose barrier is complete go on. A barrier that some threads of the block do not
// reach (or reach elsewhere), and a shuffle with a lane that does not take part, are errors, as is the reading of
// such a lane. Shared memory is full of NaN (all bits set) when a block begins. With `cuda_stand_in_reversed`, blocks
// and threads run in the opposite order: a result that depends on it is a race. Compiled with -fsanitize=alignment,
// a word at an address which is no multiple of its size, a fault on a GPU, is an error too.

#pragma once

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <string>
#include <vector>

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __shared__ static __attribute__((section("cuda_shared")))
#define __syncthreads() cuda_stand_in::barrier(__LINE__)
#define __shfl_xor_sync(mask, value, other) \
    cuda_stand_in::shuffle(mask, value, cuda_stand_in::lane() ^ (other), __LINE__)
#define __shfl_down_sync(mask, value, delta) \
    cuda_stand_in::shuffle(mask, value, cuda_stand_in::below(delta), __LINE__)

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

extern "C" {
bool cuda_stand_in_reversed = false;
static bool misaligned;
// what the compiler calls (and libubsan defines) where an address is not aligned
void __ubsan_handle_type_mismatch_v1(void*, unsigned long) { misaligned = true; }
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace cuda_stand_in {

constexpr size_t STACK = 64 << 10;

struct Fiber {
    jmp_buf place;      // where it waits
    ucontext_t context; // where it begins
    bool begun = false;
    std::unique_ptr<char[]> stack{new char[STACK]};
};

enum State { FRESH, RUNNING, AT_BARRIER, IN_SHUFFLE, FINISHED };

struct Thread {
    State state = FRESH;
    int line = 0;                // of the barrier or shuffle
    unsigned mask = 0, from = 0; // of the shuffle
    char value[8], result[8];
    Fiber* fiber = nullptr;
};

static jmp_buf scheduler;
static std::vector<std::unique_ptr<Fiber>> fibers; // all there are
static std::vector<Fiber*> idle;                   // those that stand at the end of `work`
static std::vector<Thread> threads;                // of the block
static unsigned started, current;
static void (*kernel)(const void*);
static const void* arguments;

// Let a fiber run until it waits. (`swapcontext` would do, but asks the kernel for the mask of signals, twice.)
inline void resume(Fiber* fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber->begun) _longjmp(fiber->place, 1);
    fiber->begun = true;
    setcontext(&fiber->context);
}

inline void leave(Fiber* self) {
    if (!_setjmp(self->place)) _longjmp(scheduler, 1);
}

inline void enter(unsigned thread) {
    current = thread;
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
    threads[thread].state = RUNNING;
}

inline unsigned in_order(unsigned i) {
    return cuda_stand_in_reversed ? (unsigned)threads.size() - 1 - i : i;
}

// What a fiber does, which is the last idle one: one fresh thread after the other, as long as none of them waits.
inline void work() {
    for (;;) {
        Fiber* self = idle.back();
        idle.pop_back();
        while (started < threads.size()) {
            const unsigned thread = in_order(started++);
            threads[thread].fiber = self;
            enter(thread);
            kernel(arguments);
            threads[thread].state = FINISHED;
        }
        idle.push_back(self);
        leave(self);
    }
}

inline unsigned lane() { return current % 32; }
inline unsigned below(unsigned delta) { return lane() + delta < 32 ? lane() + delta : lane(); }

inline void wait(State state, int line) {
    Thread& self = threads[current];
    self.state = state;
    self.line = line;
    leave(self.fiber);
}

inline void barrier(int line) { wait(AT_BARRIER, line); }

template <class V>
V shuffle(unsigned mask, V value, unsigned from, int line) {
    static_assert(sizeof(V) <= 8, "");
    Thread& self = threads[current];
    memcpy(self.value, &value, sizeof value);
    self.mask = mask;
    self.from = from;
    wait(IN_SHUFFLE, line);
    memcpy(&value, self.result, sizeof value);
    return value;
}

// Let the threads go on whose barrier or shuffle is complete; return what is wrong, or "".
inline std::string release() {
    bool all_there = true, any = false;
    for (const Thread& t : threads) all_there &= t.state == AT_BARRIER && t.line == threads[0].line;
    if (all_there) {
        for (Thread& t : threads) t.state = RUNNING;
        return "";
    }
    for (unsigned first = 0; first < threads.size(); first += 32) {
        for (unsigned i = first; i < threads.size() && i < first + 32; i++) {
            if (threads[i].state != IN_SHUFFLE) continue;
            const Thread asked = threads[i];
            bool complete = asked.mask >> (i - first) & 1;
            for (unsigned j = 0; j < 32; j++)
                if (asked.mask >> j & 1)
                    complete &= first + j < threads.size() && threads[first + j].state == IN_SHUFFLE &&
                                threads[first + j].mask == asked.mask && threads[first + j].line == asked.line;
            if (!complete) continue;
            for (unsigned j = 0; j < 32; j++)
                if (asked.mask >> j & 1) {
                    Thread& t = threads[first + j];
                    if (!(asked.mask >> t.from & 1))
                        return "line " + std::to_string(t.line) + ": a shuffle reads a lane that takes no part";
                    memcpy(t.result, threads[first + t.from].value, 8);
                    t.state = RUNNING;
                }
            any = true;
        }
    }
    if (any) return "";
    for (const Thread& t : threads)
        if (t.state != FINISHED)
            return "line " + std::to_string(t.line) + ": a " +
                   (t.state == AT_BARRIER ? "barrier" : "shuffle") + " that not all of its threads reach";
    return "";
}

inline std::string run_block(unsigned size) {
    threads.assign(size, Thread());
    started = 0;
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    for (;;) {
        while (started < size) {
            if (idle.empty()) {
                fibers.emplace_back(new Fiber);
                Fiber* fiber = fibers.back().get();
                getcontext(&fiber->context);
                fiber->context.uc_stack.ss_sp = fiber->stack.get();
                fiber->context.uc_stack.ss_size = STACK;
                fiber->context.uc_link = nullptr;
                makecontext(&fiber->context, work, 0);
                idle.push_back(fiber);
            }
            resume(idle.back());
        }
        bool finished = true;
        for (const Thread& t : threads) finished &= t.state == FINISHED;
        if (finished) return "";
        const std::string error = release();
        if (!error.empty()) return error;
        for (unsigned i = 0; i < size; i++)
            if (threads[in_order(i)].state == RUNNING) {
                enter(in_order(i));
                resume(threads[current].fiber);
            }
    }
}

// Run `call` in every thread of the grid; dims are those of grid and block. Returns what went wrong, or null.
template <class Call>
const char* launch(const unsigned* dims, Call call) {
    static std::string error;
    gridDim = {dims[0], dims[1], dims[2]};
    blockDim = {dims[3], dims[4], dims[5]};
    misaligned = false;
    kernel = [](const void* f) { (*static_cast<const Call*>(f))(); };
    arguments = &call;
    const unsigned long long blocks = (unsigned long long)dims[0] * dims[1] * dims[2];
    for (unsigned long long i = 0; i < blocks; i++) {
        const unsigned block = (unsigned)(cuda_stand_in_reversed ? blocks - 1 - i : i);
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        error = run_block(dims[3] * dims[4] * dims[5]);
        if (error.empty() && misaligned) return "a word is read or written at an address that is not aligned";
        if (!error.empty()) { // the fibers that still wait are of no use
            idle.clear();
            fibers.clear();
            return error.c_str();
        }
    }
    return nullptr;
}

} // namespace cuda_stand_in

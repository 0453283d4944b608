// The machine of cuda_stand_in.h: threads, barriers and shuffles.

#include "cuda_stand_in.h"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <string>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

extern "C" {
bool cuda_stand_in_reversed = false;
static bool misaligned;
// called by compiled code (and defined by libubsan) if an address is not aligned
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
static std::vector<Fiber*> idle;                   // those at the end of `work`
static std::vector<Thread> threads;                // of the block
static unsigned started, current;
static void (*kernel)(const void*);
static const void* arguments;

// Let a fiber run until it waits. (`swapcontext` would do, but asks the kernel for the mask of signals, twice.)
static void resume(Fiber* fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber->begun) _longjmp(fiber->place, 1);
    fiber->begun = true;
    setcontext(&fiber->context);
}

static void leave(Fiber* self) {
    if (!_setjmp(self->place)) _longjmp(scheduler, 1);
}

static void enter(unsigned thread) {
    current = thread;
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
    threads[thread].state = RUNNING;
}

static unsigned in_order(unsigned i) {
    return cuda_stand_in_reversed ? (unsigned)threads.size() - 1 - i : i;
}

// Run in the last idle fiber: start one new thread after the other, until one waits.
static void work() {
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

unsigned lane() { return current % 32; }
unsigned below(unsigned delta) { return lane() + delta < 32 ? lane() + delta : lane(); }

static void wait(State state, int line) {
    Thread& self = threads[current];
    self.state = state;
    self.line = line;
    leave(self.fiber);
}

void barrier(int line) { wait(AT_BARRIER, line); }

// Replace this lane's 8 bytes with those of another lane.
void exchange(unsigned mask, char (&value)[8], unsigned from, int line) {
    Thread& self = threads[current];
    memcpy(self.value, value, sizeof value);
    self.mask = mask;
    self.from = from;
    wait(IN_SHUFFLE, line);
    memcpy(value, self.result, sizeof value);
}

// Let the threads continue whose barrier or shuffle is complete; return an error, or "".
static std::string release() {
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

static std::string run_block(unsigned size) {
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

const char* run(const unsigned* dims, void (*call)(const void*), const void* with) {
    static std::string error;
    gridDim = {dims[0], dims[1], dims[2]};
    blockDim = {dims[3], dims[4], dims[5]};
    misaligned = false;
    kernel = call;
    arguments = with;
    const unsigned long long blocks = (unsigned long long)dims[0] * dims[1] * dims[2];
    for (unsigned long long i = 0; i < blocks; i++) {
        const unsigned block = (unsigned)(cuda_stand_in_reversed ? blocks - 1 - i : i);
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        error = run_block(dims[3] * dims[4] * dims[5]);
        if (error.empty() && misaligned) return "a word is read or written at an address that is not aligned";
        if (!error.empty()) { // fibers that still wait are unusable
            idle.clear();
            fibers.clear();
            return error.c_str();
        }
    }
    return nullptr;
}

} // namespace cuda_stand_in

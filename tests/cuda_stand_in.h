// Enough of CUDA C++ to compile kernels for the host and run them there, one thread of the grid at a time.
//
// A thread runs until it waits at a barrier or a shuffle; then another one starts, each on a separate stack. When
// all threads of a block wait, those whose barrier is complete continue. It is an error if some threads of a block do
// not reach a barrier (or reach another one), or if a shuffle names or reads a lane that does not take part. Shared
// memory is full of NaN (all bits set) when a block begins. With `cuda_stand_in_reversed`, blocks and threads run in
// reverse order: a result that depends on the order is a race. With -fsanitize=alignment, a word at an address that
// is not a multiple of its size, which is a fault on a GPU, is an error, too.
//
// Kernels are compiled with this header; the machine, cuda_stand_in.cpp, is compiled once.

#pragma once

#include <math.h>
#include <string.h>

struct dim3 {
    unsigned x, y, z;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

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
inline double cospi(double x) { return cos(M_PI * x); }
inline double sinpi(double x) { return sin(M_PI * x); }
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

namespace cuda_stand_in {

unsigned lane();
unsigned below(unsigned delta); // the lane that is `delta` further on, if the warp has one
void barrier(int line);
void exchange(unsigned mask, char (&value)[8], unsigned from, int line);
const char* run(const unsigned* dims, void (*kernel)(const void*), const void* arguments);

template <class V>
V shuffle(unsigned mask, V value, unsigned from, int line) {
    static_assert(sizeof(V) <= 8, "");
    char bytes[8];
    memcpy(bytes, &value, sizeof value);
    exchange(mask, bytes, from, line);
    memcpy(&value, bytes, sizeof value);
    return value;
}

// Run `call` in every thread of the grid; dims are those of grid and block. Returns what went wrong, or null.
template <class Call>
const char* launch(const unsigned* dims, Call call) {
    return run(dims, [](const void* f) { (*static_cast<const Call*>(f))(); }, &call);
}

} // namespace cuda_stand_in

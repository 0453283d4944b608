// Common definitions of the kernels in kernels.cu and of those that fusion/cuda.py writes. NVRTC compiles with
//   -DXP_A=  A, the type of storage, arithmetic and sums: float or double (int for `gather`)
//   -DXP_N=  to_float16 or to_bfloat16, which rounds factors of products to N, a 16-bit type; otherwise N is A
//   -DXP_S=  S: compiles only `gather`, which reads S and writes A
// (not -DA=: NVRTC applies the options to its own header, too, whose templates use such names).
//
// Kernels over n elements accept any one-dimensional grid and block. Where a comment says "block (32, 8)", threads
// work as warps or add up in shared memory, and require that block. No kernel may be launched for zero elements.
// No kernel adds floats atomically: equal inputs give equal bits. "8 B" means 8 bytes of memory traffic per
// element, for A = float. Scalars that change from step to step are passed as pointers, because a CUDA graph
// freezes all others. Pointers must not be null unless the comment allows it.

#define A XP_A
#ifdef XP_N
#define N unsigned short
#else
#define N XP_A
#define XP_N A
#endif

typedef long long i64;
typedef unsigned long long u64;

// i runs over this thread's share of 0 .. n - 1.
#define EACH(i, n) i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x

#ifndef XP_S

constexpr int LANES = 32, ROWS = 8;  // a warp; the warps of a block (32, 8)
constexpr unsigned ALL = 0xffffffffu;

// Tests of the bit pattern, which no compiler option can optimize away.
__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
__device__ inline bool is_finite(double x) {
    return ((u64)__double_as_longlong(x) & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
}

// The nearest 16-bit number, ties to even. In integer arithmetic: CUDA's own functions need the toolkit's headers.
__device__ inline unsigned short to_bfloat16(float x) {
    const unsigned u = __float_as_uint(x);
    return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
__device__ inline unsigned short to_float16(float x) {
    const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, u = bits & 0x7fffffff;
    if (u > 0x7f800000) return 0x7fff;          // NaN
    if (u >= 0x477ff000) return sign | 0x7c00;  // 65520, halfway between the largest number and the next
    if (u < 0x38800000)                         // below 2^-14: multiples of 2^-24, the spacing of float32 from 0.5 on
        return sign | (__float_as_uint(fabsf(x) + 0.5f) - 0x3f000000);
    return sign | ((u + 0xfff + (u >> 13 & 1) - 0x38000000) >> 13);
}

// The larger number; NaN counts as the largest.
__device__ inline A larger(A x, A y) { return y > x || y != y ? y : x; }
// The smaller number; NaN counts as the smallest.
__device__ inline A smaller(A x, A y) { return y < x || y != y ? y : x; }
// 1, 0 or -1; NaN for NaN.
__device__ inline A sign(A x) { return x != x ? x : A(x > 0) - A(x < 0); }

__device__ inline A warp_sum(A x) {
    for (int far = LANES / 2; far > 0; far /= 2) x += __shfl_xor_sync(ALL, x, far);
    return x;
}

// The sum of x over a block of whole warps, for thread 0. `scratch` is shared memory.
__device__ inline A block_sum(A x, A* scratch) {
    const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    return warp == 0 ? warp_sum(lane < warps ? scratch[lane] : A(0)) : A(0);
}

// The sums of a block's 32 columns; `total` is this thread's sum of every 8th row. `part` is shared memory.
__device__ inline void column_totals(A total, A (*part)[LANES], A* out, int column, int units) {
    part[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0 && column < units) {
        for (int i = 1; i < ROWS; i++) total += part[i][threadIdx.x];
        out[column] = total;
    }
}

// Activations: kernels that fusion/cuda.py writes call these with their formulas -----------------------------

// z = z + bias and y = f(z): 8 B in place, 12 B if z is kept. bias may be null, and y may be z.
template <class F>
__device__ inline void activate(A* z, const A* __restrict__ bias, A* y, int rows, int units, F f) {
    const i64 n = (i64)rows * units, stride = (i64)gridDim.x * blockDim.x;
    i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    // update the column with i: two divisions per thread, none per element
    i64 column = i % units;
    const i64 right = stride % units;
    for (; i < n; i += stride) {
        const A score = z[i] + (bias ? bias[column] : A(0));
        if (bias && y != z) z[i] = score;
        y[i] = f(score);
        column += right;
        if (column >= units) column -= units;
    }
}

// dz[i] = f(i), rounded to N, and sums[chunk, :] = the sums of the columns of f over that chunk of rows: 4 B for each
// array that f reads, and 4 B for dz. dz and sums may be null. `column_sums` adds the sums of several chunks. `part`
// is shared memory. Grid (units / 32, chunks), rounded up; block (32, 8).
template <class F>
__device__ inline void pull_back(N* __restrict__ dz, A* __restrict__ sums, int rows, int units, A (*part)[LANES],
                                 F f) {
    const int column = blockIdx.x * LANES + threadIdx.x;
    const i64 chunk = ((i64)rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * chunk;
    const i64 end = first + chunk < rows ? first + chunk : rows;
    A total = 0;
    if (column < units)
        for (i64 row = first + threadIdx.y; row < end; row += ROWS) {
            const i64 i = row * units + column;
            const A d = f(i);
            if (dz) dz[i] = XP_N(d);
            total += d;
        }
    if (sums) column_totals(total, part, sums + (i64)blockIdx.y * units, column, units);
}

#endif

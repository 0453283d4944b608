// The kernels of the CuPy backend, compiled by NVRTC with
//   -DXP_A=  A, what is stored, computed and added up in: float or double (int for `gather`)
//   -DXP_N=  to_float16 or to_bfloat16, by which factors of products are rounded to N, of 16 bits; else N is A
//   -DXP_S=  S: only `gather` is compiled then, which reads S and writes A
// (not -DA=: NVRTC reads its own header, where such names are a template's, after it has heard of the options).
//
// Kernels over n elements take any grid and block of one dimension. Where a comment says "block (32, 8)", threads
// work as warps or add up in shared memory, and the block must be that one. Nothing may be launched over nothing.
// Nothing adds floats atomically: the same input gives the same bits. "B" counts the bytes of memory that are
// moved per element, for A = float. Scalars that change from step to step come as pointers, for a CUDA graph
// freezes the rest. A pointer that may be null says so.

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

#ifdef XP_S
#define S XP_S

// out[r, :] = data[order[r], :], converted: 8 B, and the read of `order`.
extern "C" __global__ void gather(const S* __restrict__ data, const int* __restrict__ order, A* __restrict__ out,
                                  int rows, i64 features) {
    const i64 n = rows * features, stride = (i64)gridDim.x * blockDim.x;
    i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    // row and column go along with i: two divisions a thread, none an element
    i64 row = i / features, column = i % features;
    const i64 down = stride / features, right = stride % features;
    for (; i < n; i += stride) {
        out[i] = A(data[(i64)order[row] * features + column]);
        row += down;
        column += right;
        if (column >= features) {
            column -= features;
            row++;
        }
    }
}

#else

enum { LINEAR, RELU, TANH, SIGMOID };
constexpr int LANES = 32, ROWS = 8;  // a warp; the warps of a block (32, 8)
constexpr unsigned ALL = 0xffffffffu;

// Tests of the bit pattern, which no option of the compiler takes away.
__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
__device__ inline bool is_finite(double x) {
    return ((u64)__double_as_longlong(x) & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
}

// The nearest number of 16 bits (at a tie, the even one). Made of integers: CUDA's own need headers of the toolkit.
__device__ inline unsigned short to_bfloat16(float x) {
    const unsigned u = __float_as_uint(x);
    return x != x ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
__device__ inline unsigned short to_float16(float x) {
    const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, u = bits & 0x7fffffff;
    if (u > 0x7f800000) return 0x7fff;          // NaN
    if (u >= 0x477ff000) return sign | 0x7c00;  // 65520, half way between the largest number and the next
    if (u < 0x38800000)                         // below 2^-14: multiples of 2^-24, as those of float32 from 0.5 on
        return sign | (__float_as_uint(fabsf(x) + 0.5f) - 0x3f000000);
    return sign | ((u + 0xfff + (u >> 13 & 1) - 0x38000000) >> 13);
}

// The larger number; a NaN is larger than any.
__device__ inline A larger(A x, A y) { return y > x || y != y ? y : x; }

__device__ inline A warp_sum(A x) {
    for (int far = LANES / 2; far > 0; far /= 2) x += __shfl_xor_sync(ALL, x, far);
    return x;
}

// The sum of x over a block of whole warps, for thread 0. `room` is shared memory.
__device__ inline A block_sum(A x, A* room) {
    const unsigned lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    x = warp_sum(x);
    if (lane == 0) room[warp] = x;
    __syncthreads();
    return warp == 0 ? warp_sum(lane < warps ? room[lane] : A(0)) : A(0);
}

// The sums of a block's 32 columns, of which this thread has added up every 8th row. `part` is shared memory.
__device__ inline void column_totals(A total, A (*part)[LANES], A* out, int column, int units) {
    part[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0 && column < units) {
        for (int i = 1; i < ROWS; i++) total += part[i][threadIdx.x];
        out[column] = total;
    }
}

// Layers ---------------------------------------------------------------------------------------------------

__device__ inline A activate(A z, int kind) {
    if (kind == RELU) return z <= 0 ? A(0) : z;  // NaN stays NaN
    if (kind == TANH) return tanh(z);
    if (kind == SIGMOID) {
        const A e = exp(-fabs(z));  // never overflows
        return (z >= 0 ? A(1) : e) / (1 + e);
    }
    return z;
}

__device__ inline A pull_back(A dy, A y, int kind) {
    if (kind == RELU) return y > 0 ? dy : A(0);
    if (kind == TANH) return dy * (1 - y * y);
    if (kind == SIGMOID) return dy * (y * (1 - y));
    return dy;
}

// z = f(z + bias), in place: 8 B. bias may be null.
extern "C" __global__ void bias_act(A* z, const A* __restrict__ bias, int rows, int units, int kind) {
    const i64 n = (i64)rows * units, stride = (i64)gridDim.x * blockDim.x;
    i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    // the column goes along with i: two divisions a thread, none an element
    i64 column = i % units;
    const i64 right = stride % units;
    for (; i < n; i += stride) {
        z[i] = activate(z[i] + (bias ? bias[column] : A(0)), kind);
        column += right;
        if (column >= units) column -= units;
    }
}

// dz = f'(z) dy, from y = f(z), rounded to N, and sums[chunk, :] = the sums of the columns of f'(z) dy over that chunk
// of rows: 12 B (linear: 4 B for the sums, 8 B with dz). dz and sums may be null, and y where f is linear. With several
// chunks, `column_sums` adds up what they left. Grid (units / 32, chunks), rounded up; block (32, 8).
extern "C" __global__ void act_backward(const A* __restrict__ dy, const A* __restrict__ y, N* __restrict__ dz,
                                        A* __restrict__ sums, int rows, int units, int kind) {
    __shared__ A part[ROWS][LANES];
    const int column = blockIdx.x * LANES + threadIdx.x;
    const i64 chunk = ((i64)rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * chunk;
    const i64 end = first + chunk < rows ? first + chunk : rows;
    A total = 0;
    if (column < units)
        for (i64 row = first + threadIdx.y; row < end; row += ROWS) {
            const i64 i = row * units + column;
            const A d = pull_back(dy[i], kind == LINEAR ? A(0) : y[i], kind);
            if (dz) dz[i] = XP_N(d);
            total += d;
        }
    if (sums) column_totals(total, part, sums + (i64)blockIdx.y * units, column, units);
}

// out = the sums of the columns of partial: 4 B. Grid (units / 32), rounded up; block (32, 8).
extern "C" __global__ void column_sums(const A* __restrict__ partial, A* __restrict__ out, int rows, int units) {
    __shared__ A part[ROWS][LANES];
    const int column = blockIdx.x * LANES + threadIdx.x;
    A total = 0;
    if (column < units)
        for (i64 row = threadIdx.y; row < rows; row += ROWS) total += partial[row * units + column];
    column_totals(total, part, out, column, units);
}

// y = x rounded: 6 B.
extern "C" __global__ void narrow(const A* __restrict__ x, N* __restrict__ y, i64 n) {
    for (EACH(i, n)) y[i] = XP_N(x[i]);
}

// y = x * (keep ? scale : 0): 9 B.
extern "C" __global__ void dropout(const A* __restrict__ x, const bool* __restrict__ keep, A scale,
                                   A* __restrict__ y, i64 n) {
    for (EACH(i, n)) y[i] = x[i] * (keep[i] ? scale : A(0));
}

// keep[i] = (the i-th float32 of the Philox4x64-10 stream with this key at counter (0, slot, step, 2)) >= threshold,
// bit for bit as NumPy's: 1 B. A thread makes the 8 floats of one block of the stream.
extern "C" __global__ void keep_mask(bool* keep, i64 n, u64 key0, u64 key1, u64 slot,
                                     const i64* __restrict__ step, float threshold) {
    const bool whole = (u64)keep % 8 == 0;  // 8 bytes may be stored as one word
    for (EACH(block, (n + 7) / 8)) {
        // NumPy adds 1 to the counter before its first block
        u64 word[4] = {1 + (u64)block, slot, (u64)*step, 2}, k0 = key0, k1 = key1;
        for (int round = 0; round < 10; round++) {
            const u64 high0 = __umul64hi(0xd2e7470ee14c6c93ull, word[0]), low0 = 0xd2e7470ee14c6c93ull * word[0];
            const u64 high1 = __umul64hi(0xca5a826395121157ull, word[2]), low1 = 0xca5a826395121157ull * word[2];
            word[0] = high1 ^ word[1] ^ k0;
            word[1] = low1;
            word[2] = high0 ^ word[3] ^ k1;
            word[3] = low0;
            k0 += 0x9e3779b97f4a7c15ull;
            k1 += 0xbb67ae8584caa73bull;
        }
        u64 bytes = 0;  // the low half of each word comes first
        for (int i = 0; i < 8; i++) {
            const unsigned u = (unsigned)(word[i / 2] >> (i % 2 * 32)) >> 8;
            bytes |= (u64)((float)u * 5.9604644775390625e-8f >= threshold) << (8 * i);  // u / 2^24
        }
        if (whole && 8 * block + 8 <= n)
            *(u64*)(keep + 8 * block) = bytes;
        else
            for (int i = 0; i < 8 && 8 * block + i < n; i++) keep[8 * block + i] = bytes >> (8 * i) & 1;
    }
}

// Losses ---------------------------------------------------------------------------------------------------

// a = softmax(z) = exp(z - max) / sum(exp(z - max)) of each row, values = -sum(t log(a)), and
// dz = (a sum(t) - t) * weight[row] * scale, where t is 1 at the target and 0 elsewhere (sum(t) counts as 1), or
// the row of `soft`: 20 B (28 B with soft), of which 8 B (12 B) come from the cache. One of target and soft is
// null; weight may be. A warp works on a row. Block (32, 8).
extern "C" __global__ void softmax_ce(const A* __restrict__ z, const int* __restrict__ target,
                                      const A* __restrict__ soft, const A* __restrict__ weight, A scale,
                                      A* __restrict__ dz, A* __restrict__ a, A* __restrict__ values, int rows,
                                      int classes) {
    for (i64 row = blockIdx.x * (i64)ROWS + threadIdx.y; row < rows; row += (i64)gridDim.x * ROWS) {
        const i64 start = row * classes;
        const int label = target ? target[row] : -1;
        A top = z[start], total = 0, mass = 0, score = 0;
        for (int c = threadIdx.x; c < classes; c += LANES) top = larger(top, z[start + c]);
        for (int far = LANES / 2; far > 0; far /= 2) top = larger(top, __shfl_xor_sync(ALL, top, far));
        for (int c = threadIdx.x; c < classes; c += LANES) {
            const A shifted = z[start + c] - top, t = soft ? soft[start + c] : A(c == label);
            total += exp(shifted);
            mass += t;
            if (t != 0) score += t * shifted;
        }
        total = warp_sum(total);
        mass = warp_sum(mass);
        score = warp_sum(score);
        const A nothing = total - total;  // NaN is what comes of a label that is no class
        const bool known = soft || (label >= 0 && label < classes);
        const A factor = !known ? nothing / nothing : weight ? weight[row] * scale : scale;
        for (int c = threadIdx.x; c < classes; c += LANES) {
            const A t = soft ? soft[start + c] : A(c == label), p = exp(z[start + c] - top) / total;
            a[start + c] = p;
            dz[start + c] = (soft ? p * mass - t : p - t) * factor;
        }
        if (threadIdx.x == 0) values[row] = known ? log(total) * mass - score : factor;
    }
}

// out = 1 where the first of the largest numbers of a row (NaN being the largest) is at the target, else 0: 4 B.
// A warp works on a row. Block (32, 8).
extern "C" __global__ void hits(const A* __restrict__ p, const int* __restrict__ target, A* __restrict__ out,
                                int rows, int classes) {
    for (i64 row = blockIdx.x * (i64)ROWS + threadIdx.y; row < rows; row += (i64)gridDim.x * ROWS) {
        const i64 start = row * classes;
        A best = p[start];
        int place = 0;
        for (int c = threadIdx.x; c < classes; c += LANES) {
            const A x = p[start + c];
            if (x > best || (x != x && best == best)) best = x, place = c;
        }
        for (int far = LANES / 2; far > 0; far /= 2) {
            const A x = __shfl_xor_sync(ALL, best, far);
            const int c = __shfl_xor_sync(ALL, place, far);
            const bool same = x == best || (x != x && best != best);
            if (same ? c < place : x > best || x != x) best = x, place = c;
        }
        if (threadIdx.x == 0) out[row] = A(place == target[row]);
    }
}

// out[t, f] = the sum of the weights (null: 1) of the rows with target t that were found to be f. A thread works on
// one of these numbers and reads all rows for it. A row of a class that does not exist makes all NaN.
extern "C" __global__ void confusion(const int* __restrict__ target, const int* __restrict__ found,
                                     const A* __restrict__ weight, A* __restrict__ out, int rows, int classes) {
    for (EACH(i, (i64)classes * classes)) {
        const int t = int(i / classes), f = int(i % classes);
        A total = 0;
        for (int row = 0; row < rows; row++) {
            const int a = target[row], b = found[row];
            if (a == t && b == f) total += weight ? weight[row] : A(1);
            const A nothing = total - total;
            if (a < 0 || a >= classes || b < 0 || b >= classes) total = nothing / nothing;
        }
        out[i] = total;
    }
}

// out = scale * sum(values * weight): 8 B. weight may be null. One block, of up to 32 whole warps.
extern "C" __global__ void sum_scaled(const A* __restrict__ values, const A* __restrict__ weight, A scale, A* out,
                                      int n) {
    __shared__ A room[LANES];
    A total = 0;
    for (EACH(i, n)) total += weight ? values[i] * weight[i] : values[i];
    total = block_sum(total, room);
    if (threadIdx.x == 0) *out = scale * total;
}

// The guard ------------------------------------------------------------------------------------------------

// ok = false if an element is not finite, else as it was: 4 B.
extern "C" __global__ void all_finite(const A* __restrict__ a, i64 n, bool* ok) {
    bool sound = true;
    for (EACH(i, n)) sound &= is_finite(a[i]);
    if (!sound) *ok = false;  // whoever writes writes the same
}

// partial[block] = the block's share of sum(a^2), and partial[blocks + block] that of sum(b^2): 8 B. b may be null
// (4 B). Block: whole warps.
extern "C" __global__ void sum_squares(const A* __restrict__ a, const A* __restrict__ b, A* __restrict__ partial,
                                       i64 n) {
    __shared__ A room[2][LANES];
    A first = 0, second = 0;
    for (EACH(i, n)) {
        first += a[i] * a[i];
        if (b) second += b[i] * b[i];
    }
    first = block_sum(first, room[0]);
    second = block_sum(second, room[1]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = first;
        if (b) partial[gridDim.x + blockIdx.x] = second;
    }
}

// ok = false, else as it was, if the sum of one of the rows of partial, shape (rows, n), is not at most `limit`, or
// *lr not at most `rate`, or *value not finite (may be null): 4 B. One block, of up to 32 whole warps.
extern "C" __global__ void within(const A* __restrict__ partial, A limit, const A* lr, A rate, const A* value,
                                  bool* ok, int rows, int n) {
    __shared__ A room[LANES];
    bool sound = *lr <= rate && (!value || is_finite(*value));  // false of NaN, as all of these
    for (int row = 0; row < rows; row++) {
        A total = 0;
        for (EACH(i, n)) total += partial[(i64)row * n + i];
        total = block_sum(total, room);
        sound &= total <= limit;
        __syncthreads();  // before the room is used again
    }
    if (threadIdx.x == 0 && !sound) *ok = false;
}

// sums[i] += *value * factor, or the factor where value is null; unless i is not below n.
__device__ inline void add_up(double* sums, int i, int n, const A* value, A factor) {
    if (i < n) sums[i] += value ? (double)*value * factor : factor;
}

// step += 1 and age += 1 (both may be null) if *ok; n numbers are added to the sums if *counted. One thread.
extern "C" __global__ void tally(const bool* ok, const bool* counted, i64* step, A* age, double* sums, int n,
                                 const A* value0, A factor0, const A* value1, A factor1, const A* value2, A factor2,
                                 const A* value3, A factor3, const A* value4, A factor4, const A* value5, A factor5,
                                 const A* value6, A factor6, const A* value7, A factor7) {
    if (*ok && step) *step += 1;
    if (*ok && age) *age += 1;
    if (!*counted) return;
    add_up(sums, 0, n, value0, factor0);
    add_up(sums, 1, n, value1, factor1);
    add_up(sums, 2, n, value2, factor2);
    add_up(sums, 3, n, value3, factor3);
    add_up(sums, 4, n, value4, factor4);
    add_up(sums, 5, n, value5, factor5);
    add_up(sums, 6, n, value6, factor6);
    add_up(sums, 7, n, value7, factor7);
}

// sums += more * factor if *counted: 20 B.
extern "C" __global__ void tally_array(const bool* counted, double* __restrict__ sums, const A* __restrict__ more,
                                       A factor, i64 n) {
    if (!*counted) return;
    for (EACH(i, n)) sums[i] += (double)more[i] * factor;
}

// Clipping -------------------------------------------------------------------------------------------------

// out = f min(1, most / (f sqrt(sum(partial)))), where f is *factor, or 1: 4 B. factor may be null. One block, of up
// to 32 whole warps.
extern "C" __global__ void clip_factor(const A* __restrict__ partial, A most, const A* factor, A* out, int n) {
    __shared__ A room[LANES];
    A total = 0;
    for (EACH(i, n)) total += partial[i];
    total = block_sum(total, room);
    const A f = factor ? *factor : A(1);
    if (threadIdx.x == 0) *out = f * (most / larger(most, f * sqrt(total)));  // nothing is divided by 0
}

// a *= *factor: 8 B.
extern "C" __global__ void scale(A* __restrict__ a, const A* factor, i64 n) {
    const A f = *factor;
    for (EACH(i, n)) a[i] *= f;
}

// `rescale` of ops.py in place; *ok becomes whether training goes on. One thread.
extern "C" __global__ void rescale(bool* ok, const bool* alive, i64* step, A* scale, A* streak, A good, A most) {
    if (*ok) {
        *streak += 1;
        if (*streak >= good) {
            *scale = 2 * *scale < most ? 2 * *scale : most;
            *streak = 0;
        }
    } else {
        *scale = *scale > 2 ? *scale / 2 : A(1);
        *streak = 0;
        *step += *alive;
        *ok = *alive;
    }
}

// Regularizers and optimizers, over flat arrays in place ---------------------------------------------------

// g += l1 sign(w) + 2 l2 w, and partial[block] = the block's share of sum(l1 |w| + l2 w^2): 12 B. Block: whole warps.
extern "C" __global__ void penalize(const A* __restrict__ w, A* __restrict__ g, A* __restrict__ partial, A l1, A l2,
                                    i64 n) {
    __shared__ A room[LANES];
    A total = 0;
    for (EACH(i, n)) {
        const A x = w[i];
        total += l1 * fabs(x) + l2 * (x * x);
        g[i] += l1 * ((x > 0) - (x < 0)) + 2 * l2 * x;  // NaN comes through the second term
    }
    total = block_sum(total, room);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// What the optimizers share: nothing is written where *ok is false (ok may be null), and the gradient is *factor g
// (factor may be null: g itself). `shrink` is lr decay, the share of the weights that decays.
template <class Update>
__device__ inline void optimize(const A* g, const A* factor, const bool* ok, i64 n, Update update) {
    if (ok && !*ok) return;
    const A f = factor ? *factor : A(1);
    for (EACH(i, n)) update(i, f * g[i]);
}

// w' = w - shrink w - lr g: 12 B.
extern "C" __global__ void sgd(A* __restrict__ w, const A* __restrict__ g, const A* lr, A decay, const A* factor,
                               const bool* ok, i64 n) {
    const A rate = *lr, shrink = rate * decay;
    optimize(g, factor, ok, n, [=](i64 i, A slope) { w[i] -= shrink * w[i] + rate * slope; });
}

// q = w - shrink w,  v' = momentum v - lr g,  w' = q + v', or with nesterov  w' = q + momentum v' - lr g: 20 B.
extern "C" __global__ void sgd_momentum(A* __restrict__ w, const A* __restrict__ g, A* __restrict__ v, const A* lr,
                                        A momentum, int nesterov, A decay, const A* factor, const bool* ok, i64 n) {
    const A rate = *lr, shrink = rate * decay;
    optimize(g, factor, ok, n, [=](i64 i, A slope) {
        const A step = rate * slope, new_v = momentum * v[i] - step;
        w[i] += (nesterov ? momentum * new_v - step : new_v) - shrink * w[i];
        v[i] = new_v;
    });
}

// v' = beta v + rest g,  w' = w - shrink w - lr v', where rest = 1 - beta: 20 B.
extern "C" __global__ void momentum(A* __restrict__ w, const A* __restrict__ g, A* __restrict__ v, const A* lr,
                                    A beta, A rest, A decay, const A* factor, const bool* ok, i64 n) {
    const A rate = *lr, shrink = rate * decay;
    optimize(g, factor, ok, n, [=](i64 i, A slope) {
        v[i] = beta * v[i] + rest * slope;
        w[i] -= shrink * w[i] + rate * v[i];
    });
}

// s' = rho s + rest g^2,  w' = w - shrink w - lr g / root, where rest = 1 - rho and root is sqrt(s' + epsilon) with
// `inside`, else sqrt(s') + epsilon: 20 B.
extern "C" __global__ void rmsprop(A* __restrict__ w, const A* __restrict__ g, A* __restrict__ s, const A* lr,
                                   A rho, A rest, A epsilon, int inside, A decay, const A* factor, const bool* ok,
                                   i64 n) {
    const A rate = *lr, shrink = rate * decay;
    optimize(g, factor, ok, n, [=](i64 i, A slope) {
        const A new_s = rho * s[i] + rest * (slope * slope);
        s[i] = new_s;
        w[i] -= shrink * w[i] + rate * slope / (inside ? sqrt(new_s + epsilon) : sqrt(new_s) + epsilon);
    });
}

// m' = b1 m + rest1 g,  v' = b2 v + rest2 g^2,  c = 1 - b^age = -expm1(age log(b)),
// w' = w - shrink w - lr sqrt(c2)/c1 m' / (sqrt(v') + epsilon), epsilon times sqrt(c2) with `corrected`: 28 B.
// rest = 1 - b and ln = log(b) come from the host (b = 0: ln = -infinity, c = 1).
extern "C" __global__ void adam(A* __restrict__ w, const A* __restrict__ g, A* __restrict__ m, A* __restrict__ v,
                                const A* lr, const A* age, A b1, A rest1, A ln1, A b2, A rest2, A ln2, A epsilon,
                                int corrected, A decay, const A* factor, const bool* ok, i64 n) {
    const A root2 = sqrt(-expm1(*age * ln2)), rate = *lr * root2 / -expm1(*age * ln1);
    const A small = corrected ? epsilon * root2 : epsilon, shrink = *lr * decay;
    optimize(g, factor, ok, n, [=](i64 i, A slope) {
        const A new_m = b1 * m[i] + rest1 * slope, new_v = b2 * v[i] + rest2 * (slope * slope);
        m[i] = new_m;
        v[i] = new_v;
        w[i] -= shrink * w[i] + rate * new_m / (sqrt(new_v) + small);
    });
}

#endif

// The kernels of the CuPy backend; compiled after helpers.cu, which states the conventions.

#ifdef XP_S
#define S XP_S

// out[r, :] = data[order[r], :], converted: 8 B, plus the read of `order`.
extern "C" __global__ void gather(const S* __restrict__ data, const int* __restrict__ order, A* __restrict__ out,
                                  int rows, i64 features) {
    const i64 n = rows * features, stride = (i64)gridDim.x * blockDim.x;
    i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    // update row and column with i: two divisions per thread, none per element
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

// Layers ---------------------------------------------------------------------------------------------------

// out = the column sums of partial: 4 B. Grid (units / 32), rounded up; block (32, 8).
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

// The words of a block of the Philox4x64-10 stream with this key at counter (0, slot, step, 2), as NumPy has them.
__device__ inline void philox(u64* word, i64 block, u64 key0, u64 key1, u64 slot, i64 step) {
    word[0] = 1 + (u64)block;  // NumPy adds 1 to the counter before its first block
    word[1] = slot;
    word[2] = (u64)step;
    word[3] = 2;
    for (int round = 0; round < 10; round++) {
        const u64 high0 = __umul64hi(0xd2e7470ee14c6c93ull, word[0]), low0 = 0xd2e7470ee14c6c93ull * word[0];
        const u64 high1 = __umul64hi(0xca5a826395121157ull, word[2]), low1 = 0xca5a826395121157ull * word[2];
        word[0] = high1 ^ word[1] ^ key0;
        word[1] = low1;
        word[2] = high0 ^ word[3] ^ key1;
        word[3] = low0;
        key0 += 0x9e3779b97f4a7c15ull;
        key1 += 0xbb67ae8584caa73bull;
    }
}

// keep[i] = (the i-th float32 of the Philox4x64-10 stream with this key at counter (0, slot, step, 2)) >= threshold,
// bit-equal to NumPy: 1 B. A thread generates the 8 floats of one block of the stream.
extern "C" __global__ void keep_mask(bool* keep, i64 n, u64 key0, u64 key1, u64 slot,
                                     const i64* __restrict__ step, float threshold) {
    const bool aligned = (u64)keep % 8 == 0;  // 8 bytes can be stored as one word
    for (EACH(block, (n + 7) / 8)) {
        u64 word[4], bytes = 0;
        philox(word, block, key0, key1, slot, *step);
        for (int i = 0; i < 8; i++) {  // the low half of each word comes first
            const unsigned u = (unsigned)(word[i / 2] >> (i % 2 * 32)) >> 8;
            bytes |= (u64)((float)u * 5.9604644775390625e-8f >= threshold) << (8 * i);  // u / 2^24
        }
        if (aligned && 8 * block + 8 <= n)
            *(u64*)(keep + 8 * block) = bytes;
        else
            for (int i = 0; i < 8 && 8 * block + i < n; i++) keep[8 * block + i] = bytes >> (8 * i) & 1;
    }
}

// out[2 k], out[2 k + 1] = r cos(t), r sin(t) with r = sqrt(-2 log((u + 1) 2^-32)), t = 2 pi v 2^-32, where u and v are
// the lower and the upper half of the k-th word of that stream: 4 B, computed in float64. A thread makes the 8 numbers
// of one block.
extern "C" __global__ void normals(A* __restrict__ out, i64 n, u64 key0, u64 key1, u64 slot,
                                   const i64* __restrict__ step) {
    for (EACH(block, (n + 7) / 8)) {
        u64 word[4];
        philox(word, block, key0, key1, slot, *step);
        for (i64 k = 0, i = 8 * block; k < 4 && i < n; k++, i += 2) {
            const double r = sqrt(-2.0 * log(((double)(word[k] & 0xffffffffull) + 1.0) * 2.3283064365386963e-10));
            const double turn = (double)(word[k] >> 32) * 4.656612873077393e-10;  // t / pi: `cos` needs local memory
            out[i] = A(r * cospi(turn));
            if (i + 1 < n) out[i + 1] = A(r * sinpi(turn));
        }
    }
}

// Losses ---------------------------------------------------------------------------------------------------

// a = softmax(z) = exp(z - max) / sum(exp(z - max)) of each row, values = -sum(t log(a)), and
// dz = (a sum(t) - t) * weight[row] * scale, where t is 1 at the target and 0 elsewhere (sum(t) counts as 1), or
// the row of `soft`: 20 B (28 B with soft), of which 8 B (12 B) come from the cache. One of target and soft is
// null; weight may be null. One warp per row. Block (32, 8).
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
        const A nothing = total - total;  // an invalid label gives NaN
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

// out = 1 if the first maximum of a row (NaN counts as the largest) is at the target, else 0: 4 B.
// One warp per row. Block (32, 8).
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

// out[t, f] = the sum of the weights (null: 1) of the rows with target t and found class f. One thread computes one
// entry, from all rows. A row with an invalid class makes all entries NaN.
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

// out = scale * sum(values * weight): 8 B. weight may be null. One block of up to 32 whole warps.
extern "C" __global__ void sum_scaled(const A* __restrict__ values, const A* __restrict__ weight, A scale, A* out,
                                      int n) {
    __shared__ A scratch[LANES];
    A total = 0;
    for (EACH(i, n)) total += weight ? values[i] * weight[i] : values[i];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) *out = scale * total;
}

// The guard ------------------------------------------------------------------------------------------------

// ok = false if an element is not finite, else unchanged: 4 B.
extern "C" __global__ void all_finite(const A* __restrict__ a, i64 n, bool* ok) {
    bool valid = true;
    for (EACH(i, n)) valid &= is_finite(a[i]);
    if (!valid) *ok = false;  // a race, but all threads write the same value
}

// partial[block] = the block's share of sum(a^2), and partial[blocks + block] that of sum(b^2): 8 B. b may be null
// (4 B). Block: whole warps.
extern "C" __global__ void sum_squares(const A* __restrict__ a, const A* __restrict__ b, A* __restrict__ partial,
                                       i64 n) {
    __shared__ A scratch[2][LANES];
    A first = 0, second = 0;
    for (EACH(i, n)) {
        first += a[i] * a[i];
        if (b) second += b[i] * b[i];
    }
    first = block_sum(first, scratch[0]);
    second = block_sum(second, scratch[1]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = first;
        if (b) partial[gridDim.x + blockIdx.x] = second;
    }
}

// ok = false if the sum of a row of partial, shape (rows, n), exceeds `limit` or is NaN, likewise *lr and `rate`, or
// if *value is not finite (value may be null); else unchanged: 4 B. One block of up to 32 whole warps.
extern "C" __global__ void within(const A* __restrict__ partial, A limit, const A* lr, A rate, const A* value,
                                  bool* ok, int rows, int n) {
    __shared__ A scratch[LANES];
    bool valid = *lr <= rate && (!value || is_finite(*value));  // false for NaN, like all these comparisons
    for (int row = 0; row < rows; row++) {
        A total = 0;
        for (EACH(i, n)) total += partial[(i64)row * n + i];
        total = block_sum(total, scratch);
        valid &= total <= limit;
        __syncthreads();  // before the scratch memory is reused
    }
    if (threadIdx.x == 0 && !valid) *ok = false;
}

// sums[i] += *value * factor, or += factor if value is null; nothing if i >= n.
__device__ inline void add_up(double* sums, int i, int n, const A* value, A factor) {
    if (i < n) sums[i] += value ? (double)*value * factor : factor;
}

// step += 1 and age += 1 (both may be null) if *ok; adds n numbers to the sums if *counted. One thread.
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

// out = f min(1, most / (f sqrt(sum(partial)))), where f is *factor, or 1 if factor is null: 4 B. One block of up to
// 32 whole warps.
extern "C" __global__ void clip_factor(const A* __restrict__ partial, A most, const A* factor, A* out, int n) {
    __shared__ A scratch[LANES];
    A total = 0;
    for (EACH(i, n)) total += partial[i];
    total = block_sum(total, scratch);
    const A f = factor ? *factor : A(1);
    if (threadIdx.x == 0) *out = f * (most / larger(most, f * sqrt(total)));  // no division by 0
}

// a *= *factor: 8 B.
extern "C" __global__ void scale(A* __restrict__ a, const A* factor, i64 n) {
    const A f = *factor;
    for (EACH(i, n)) a[i] *= f;
}

// `rescale` of ops.py in place; sets *ok to whether training continues. One thread.
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

// Regularizers ---------------------------------------------------------------------------------------------

// g += l1 sign(w) + 2 l2 w, and partial[block] = the block's share of sum(l1 |w| + l2 w^2): 12 B. Block: whole warps.
extern "C" __global__ void penalize(const A* __restrict__ w, A* __restrict__ g, A* __restrict__ partial, A l1, A l2,
                                    i64 n) {
    __shared__ A scratch[LANES];
    A total = 0;
    for (EACH(i, n)) {
        const A x = w[i];
        total += l1 * fabs(x) + l2 * (x * x);
        g[i] += l1 * ((x > 0) - (x < 0)) + 2 * l2 * x;  // the second term propagates NaN
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

#endif

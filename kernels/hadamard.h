/* Unnormalised Hadamard transform in natural (Sylvester) order: stages of butterflies a, b -> a + b, a - b over spans of
 * 1, 2, 4, ... elements. Spans below LANES lie within a vector, the others between whole vectors. */
#ifndef COMPRESS_HADAMARD_H
#define COMPRESS_HADAMARD_H

#include "vector.h"

/* x[lane ^ span] */
INLINE vf v_swap(vf x, const int span) {
#if defined(__clang__)
    vf y;
    for (int lane = 0; lane < LANES; lane++)
        y[lane] = x[lane ^ span];
    return y;
#else
    vi order;
    for (int lane = 0; lane < LANES; lane++)
        order[lane] = lane ^ span;
    return __builtin_shuffle(x, order);
#endif
}

/* One stage within a vector: lanes with the span's bit clear get x + partner, the others partner - x. */
INLINE vf hadamard_lanes(vf x, const int span) {
    vf sign;
    for (int lane = 0; lane < LANES; lane++)
        sign[lane] = lane & span ? -1.0f : 1.0f;
    return v_fma(x, sign, v_swap(x, span));
}

/* All stages over `count` vectors, which the compiler holds in registers. */
INLINE void hadamard_held(vf *x, const int count) {
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) {
        x[i] = hadamard_lanes(hadamard_lanes(x[i], 1), 2);
#if LANES > 4
        x[i] = hadamard_lanes(x[i], 4);
#endif
#if LANES > 8
        x[i] = hadamard_lanes(x[i], 8);
#endif
    }
#pragma GCC unroll 4
    for (int span = 1; span < count; span *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < count; i++)
            if (!(i & span)) {
                vf a = x[i], b = x[i + span];
                x[i] = a + b, x[i + span] = a - b;
            }
}

/* Stages from span `from` on, over x[0 .. size); where size < LANES the lanes behind it are left alone by being zero. */
static void hadamard(float *x, int64_t size, int64_t from) {
    if (from < LANES && from < size)
        for (int64_t i = 0; i < size; i += LANES) {
            vf v = v_load(x + i);
            if (from <= 1 && size > 1)
                v = hadamard_lanes(v, 1);
            if (from <= 2 && size > 2)
                v = hadamard_lanes(v, 2);
#if LANES > 4
            if (from <= 4 && size > 4)
                v = hadamard_lanes(v, 4);
#endif
#if LANES > 8
            if (from <= 8 && size > 8)
                v = hadamard_lanes(v, 8);
#endif
            v_store(x + i, v);
        }
    int64_t span = from < LANES ? LANES : from;
    /* two stages a pass */
    for (; span * 2 < size; span *= 4)
        for (int64_t base = 0; base < size; base += 4 * span)
            for (int64_t i = base; i < base + span; i += LANES) {
                vf a = v_load(x + i), b = v_load(x + i + span);
                vf c = v_load(x + i + 2 * span), d = v_load(x + i + 3 * span);
                vf sum = a + b, difference = a - b, sum2 = c + d, difference2 = c - d;
                v_store(x + i, sum + sum2);
                v_store(x + i + span, difference + difference2);
                v_store(x + i + 2 * span, sum - sum2);
                v_store(x + i + 3 * span, difference - difference2);
            }
    if (span < size)
        for (int64_t i = 0; i < span; i += LANES) {
            vf a = v_load(x + i), b = v_load(x + i + span);
            v_store(x + i, a + b);
            v_store(x + i + span, a - b);
        }
}

#endif

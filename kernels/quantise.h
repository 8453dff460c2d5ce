/* The inputs of products with int8 matrices as integers: x = scale * q, one scale a token.
 *
 * |q| <= 32767, as good as float32 beside weights of eight bits, or |q| <= 127 (INPUT_BITS). Bytes, where they are
 * multiplied so, stand in the order of the weights' bytes (v_load_byte_pairs). A token that holds an infinity or NaN
 * gets a NaN scale, so that all its outputs are NaN. */
#ifndef COMPRESS_QUANTISE_H
#define COMPRESS_QUANTISE_H

#include "tile.h"
#include "vector.h"

typedef int16_t vs __attribute__((vector_size(LANES * 2)));
typedef int16_t vs_unaligned __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

/* The nearest integers, ties to even, of numbers within 2^22. */
INLINE vi v_round(vf x) {
    const vf magic = v_set(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the integer */
    return (vi)(x + magic) - (vi)magic;
}

/* The largest magnitude of x [k]; infinity or NaN where one is among them. */
INLINE float largest_magnitude(const float *x, int64_t k) {
    vi most = {0}; /* as bits: magnitudes are ordered like integers, infinities and NaN above all */
    for (int64_t i = 0; i < k; i += LANES) {
        vi bits = (vi)v_abs(k - i < LANES ? v_load_part(x + i, k - i) : v_load(x + i));
        vi more = (vi)(bits > most);
        most = (bits & more) | (most & ~more);
    }
    int32_t largest_bits = 0;
    for (int lane = 0; lane < LANES; lane++)
        largest_bits = most[lane] > largest_bits ? most[lane] : largest_bits;
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    return largest;
}

/* One token; what its scale is. `limit`: the largest integer. `bytes`, with VNNI alone: q is bytes, and *sum theirs. */
INLINE float quantise_token(const float *x, int64_t k, const float limit, const int bytes, char *q, int32_t *sum) {
    const float largest = largest_magnitude(x, k);
    if (!(largest < INFINITY)) { /* NaN, too: no such number is rounded, and any integers serve */
        memset(q, 0, (size_t)quantised_stride(k) * (bytes ? 1 : 2));
        if (bytes)
            *sum = 0;
        return NAN;
    }
    const float inverse = largest > 1e-30f ? limit / largest : 0.0f;
    vi total = {0};
    for (int64_t i = 0, end = quantised_stride(k); i < end; i += LANES) {
        vf v = i + LANES <= k ? v_load(x + i) : i < k ? v_load_part(x + i, k - i) : (vf){0};
        vi rounded = v_round(v * inverse);
        if (!bytes)
            *(vs_unaligned *)(q + 2 * i) = __builtin_convertvector(rounded, vs);
#ifdef LEVEL_VNNI
        else {
            const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
            _mm_storeu_si128((__m128i *)(q + i), _mm_shuffle_epi8(_mm512_cvtepi32_epi8((__m512i)rounded), order));
            total += rounded;
        }
#endif
    }
#ifdef LEVEL_VNNI
    if (bytes)
        *sum = _mm512_reduce_add_epi32((__m512i)total);
#endif
    (void)total, (void)sum;
    return largest > 1e-30f ? largest / limit : 0.0f;
}

/* x [tokens, k] into q. `bits`: 8 or 16; `bytes`: the values are bytes. */
static void quantise(const float *x, int64_t x_stride, int64_t k, int64_t tokens, int64_t bits, int bytes,
                     struct quantised *q) {
    const float limit = bits == 8 ? 127.0f : 32767.0f;
    q->stride = quantised_stride(k) * (bytes ? 1 : 2);
    for (int64_t n = 0; n < tokens; n++) {
        char *values = q->values + n * q->stride;
        if (bytes)
            q->scales[n] = quantise_token(x + n * x_stride, k, limit, 1, values, q->sums + n);
        else
            q->scales[n] = quantise_token(x + n * x_stride, k, limit, 0, values, NULL);
    }
}

#endif

/* Activations as 16-bit integers, for products with int8 matrices: x = scale * q, |q| <= 32767, one scale a token.
 *
 * Sixteen bits are as good as float32 beside weights of eight; a token that holds an infinity or NaN gets a NaN scale,
 * so that all its outputs are NaN. */
#ifndef COMPRESS_QUANTISE_H
#define COMPRESS_QUANTISE_H

#include "tile.h"
#include "vector.h"

typedef int16_t vs __attribute__((vector_size(LANES * 2)));
typedef int16_t vs_unaligned __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

/* The nearest integers, ties to even, of numbers within 2^22. */
INLINE vs v_round_short(vf x) {
    const vf magic = v_set(12582912.0f); /* 1.5 * 2^23: the sum's low bits are the integer */
    return __builtin_convertvector((vi)(x + magic) - (vi)magic, vs);
}

INLINE float quantise_token(const float *x, int64_t k, int16_t *q) {
    const int64_t whole = k / LANES * LANES;
    vi most = {0}; /* as bits: magnitudes are ordered like integers, infinities and NaN above all */
    for (int64_t i = 0; i < k; i += LANES) {
        vi bits = (vi)v_abs(i < whole ? v_load(x + i) : v_load_part(x + i, k - i));
        vi more = (vi)(bits > most);
        most = (bits & more) | (most & ~more);
    }
    int32_t largest_bits = 0;
    for (int lane = 0; lane < LANES; lane++)
        largest_bits = most[lane] > largest_bits ? most[lane] : largest_bits;
    float largest;
    memcpy(&largest, &largest_bits, sizeof largest);
    const int finite = largest_bits < 0x7f800000;
    const vf inverse = v_set(finite && largest > 1e-30f ? 32767.0f / largest : 0.0f);
    for (int64_t i = 0, end = quantised_stride(k); i < end; i += LANES) {
        vf v = i < whole ? v_load(x + i) : i < k ? v_load_part(x + i, k - i) : (vf){0};
        *(vs_unaligned *)(q + i) = v_round_short(v * inverse);
    }
    return finite ? (largest > 1e-30f ? largest / 32767.0f : 0.0f) : NAN;
}

static void quantise(const float *x, int64_t x_stride, int64_t k, int64_t tokens, struct quantised *q) {
    q->stride = quantised_stride(k);
    for (int64_t n = 0; n < tokens; n++)
        q->scales[n] = quantise_token(x + n * x_stride, k, q->values + n * q->stride);
}

#endif

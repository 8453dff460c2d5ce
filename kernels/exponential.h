/* exp on vectors, within about 1e-7 of the true value: x = n ln 2 + r, exp(x) = 2^n p(r), p of degree 7 (Cephes). */
#ifndef COMPRESS_EXPONENTIAL_H
#define COMPRESS_EXPONENTIAL_H

#include "vector.h"

/* Arguments are held within [-87.3, 88.3], where the result is a normal number; NaN stays NaN. */
INLINE vf v_exp(vf x) {
    x = v_clamp(x, -87.3f, 88.3f);
    /* adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits */
    const vf magic = v_set(12582912.0f);
    vf shifted = v_fma(x, v_set(1.44269504088896341f), magic);
    vf n = shifted - magic;
    vf r = v_fma(n, v_set(-0.693359375f), x);
    r = v_fma(n, v_set(2.12194440e-4f), r);
    vf p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_fma(p, r * r, r) + 1.0f;
#if defined(LEVEL_AVX512)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vi power = ((vi)shifted - (vi)magic + 127) << 23;
    return p * (vf)power;
#endif
}

#endif

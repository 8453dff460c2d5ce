/* Orthonormal DCT-II and its inverse on vectors whose lanes are different tokens, by the recursion into orthogonal
 * butterflies and rotations (Plonka and Tasche, Fast and numerically stable algorithms for discrete cosine transforms):
 *   C2(n): sums and differences of mirrored elements, then C2(n/2) gives the even and C4(n/2) the odd coefficients;
 *   C4(n): rotations of mirrored elements, two C2(n/2), then sums and differences; C4 is its own inverse.
 * n is a power of two. `rotations` holds cos and sin of (2j + 1) pi / 4n for j < n/2 at [n/2 + j], all n in one table. */
#ifndef COMPRESS_COSINE_H
#define COMPRESS_COSINE_H

#include "vector.h"

struct rotations {
    const float *cosine, *sine;
};

#define SQRT_HALF 0.70710678118654752f

static void dct4(vf *x, vf *work, int64_t n, const struct rotations *r);

/* x[0..n) -> its DCT-II, in place; work [n] */
static void dct2(vf *x, vf *work, int64_t n, const struct rotations *r) {
    if (n == 1)
        return;
    const int64_t half = n / 2;
    vf *even = work, *odd = work + half;
    for (int64_t j = 0; j < half; j++) {
        even[j] = (x[j] + x[n - 1 - j]) * SQRT_HALF;
        odd[j] = (x[j] - x[n - 1 - j]) * SQRT_HALF;
    }
    dct2(even, x, half, r);
    dct4(odd, x, half, r);
    for (int64_t k = 0; k < half; k++) {
        x[2 * k] = even[k];
        x[2 * k + 1] = odd[k];
    }
}

/* The inverse (and transpose) of dct2: the same steps backwards. */
static void idct2(vf *x, vf *work, int64_t n, const struct rotations *r) {
    if (n == 1)
        return;
    const int64_t half = n / 2;
    vf *even = work, *odd = work + half;
    for (int64_t k = 0; k < half; k++) {
        even[k] = x[2 * k];
        odd[k] = x[2 * k + 1];
    }
    idct2(even, x, half, r);
    dct4(odd, x, half, r);
    for (int64_t j = 0; j < half; j++) {
        x[j] = (even[j] + odd[j]) * SQRT_HALF;
        x[n - 1 - j] = (even[j] - odd[j]) * SQRT_HALF;
    }
}

static void dct4(vf *x, vf *work, int64_t n, const struct rotations *r) {
    if (n == 1)
        return;
    const int64_t half = n / 2;
    vf *c = work, *s = work + half;
    for (int64_t j = 0; j < half; j++) {
        vf cosine = v_set(r->cosine[half + j]), sine = v_set(r->sine[half + j]);
        vf a = x[j], b = x[n - 1 - j];
        vf rotated = b * cosine - a * sine;
        c[j] = a * cosine + b * sine;
        s[j] = j % 2 ? -rotated : rotated;
    }
    dct2(c, x, half, r);
    dct2(s, x, half, r);
    x[0] = c[0];
    for (int64_t m = 1; m < half; m++) {
        x[2 * m] = (c[m] + s[half - m]) * SQRT_HALF;
        x[2 * m - 1] = (c[m] - s[half - m]) * SQRT_HALF;
    }
    x[n - 1] = -s[0];
}

#endif

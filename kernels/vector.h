/* Vectors of LANES floats at the level being compiled. Arithmetic, comparison and bit operations are the compiler's
 * own vector operators; only what they cannot say (fused multiply-add, partial loads, gathers) differs by level. */
#ifndef COMPRESS_VECTOR_H
#define COMPRESS_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(LEVEL_AVX512)
#include <immintrin.h>
#define LANES 16
#ifdef LEVEL_VNNI
#define LEVEL(name) name##_avx512_vnni
#else
#define LEVEL(name) name##_avx512
#endif
#elif defined(LEVEL_AVX2)
#include <immintrin.h>
#define LANES 8
#define LEVEL(name) name##_avx2
#elif defined(LEVEL_NEON)
#include <arm_neon.h>
#define LANES 4
#define LEVEL(name) name##_neon
#else
#define LANES 4
#define LEVEL(name) name##_scalar
#endif

#define INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef int16_t vh __attribute__((vector_size(LANES * 4)));
typedef float vf_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE vf v_load(const float *p) { return *(const vf_unaligned *)p; }
INLINE void v_store(float *p, vf v) { *(vf_unaligned *)p = v; }
INLINE void v_store_int(int32_t *p, vi v) { *(vi_unaligned *)p = v; }
INLINE vf v_set(float x) { return x - (vf){0}; }
INLINE vi v_set_int(int32_t x) { return x - (vi){0}; }
/* yes where mask, no elsewhere; a mask is what a comparison gives: all bits or none */
INLINE vf v_select(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
INLINE vf v_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
/* x with the sign of y */
INLINE vf v_copysign(vf x, vf y) { return (vf)(((vi)x & 0x7fffffff) | ((vi)y & (int32_t)0x80000000)); }

/* a * b + c */
INLINE vf v_fma(vf a, vf b, vf c) {
#if defined(LEVEL_AVX512)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(LEVEL_AVX2)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(LEVEL_NEON)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* x held within [low, high]; NaN stays NaN */
INLINE vf v_clamp(vf x, float low, float high) {
#if defined(LEVEL_AVX512)
    return (vf)_mm512_min_ps((__m512)v_set(high), _mm512_max_ps((__m512)v_set(low), (__m512)x)); /* NaN: the second */
#elif defined(LEVEL_AVX2)
    return (vf)_mm256_min_ps((__m256)v_set(high), _mm256_max_ps((__m256)v_set(low), (__m256)x));
#else
    x = v_select(x < low, v_set(low), x);
    return v_select(x > high, v_set(high), x);
#endif
}

/* The first n < LANES floats, zeros behind them. */
INLINE vf v_load_part(const float *p, int64_t n) {
#if defined(LEVEL_AVX512)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vf v = {0};
    memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
#endif
}

INLINE void v_store_part(float *p, vf v, int64_t n) {
#if defined(LEVEL_AVX512)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
    memcpy(p, &v, (size_t)n * sizeof(float));
#endif
}

/* p[0], p[stride], p[2 stride], ... */
INLINE vf v_load_strided(const float *p, int64_t stride) {
#if defined(LEVEL_AVX512)
    const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (vf)_mm512_i32gather_ps(_mm512_mullo_epi32(index, _mm512_set1_epi32((int)stride)), p, 4);
#else
    vf v;
    for (int lane = 0; lane < LANES; lane++)
        v[lane] = p[lane * stride];
    return v;
#endif
}

/* LANES bytes as integers */
INLINE vi v_load_bytes(const void *p) {
#if defined(LEVEL_AVX512)
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128(p));
#elif defined(LEVEL_AVX2)
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64(p));
#elif defined(LEVEL_NEON)
    int32_t four;
    memcpy(&four, p, sizeof four);
    return (vi)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
#else
    int8_t bytes[LANES];
    memcpy(bytes, p, sizeof bytes);
    vi v;
    for (int lane = 0; lane < LANES; lane++)
        v[lane] = bytes[lane];
    return v;
#endif
}

INLINE vf v_to_float(vi v) { return __builtin_convertvector(v, vf); }

/* LANES bfloat16 numbers as floats */
INLINE vf v_load_bfloat16(const void *p) {
#if defined(LEVEL_AVX512)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16);
#elif defined(LEVEL_AVX2)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16);
#elif defined(LEVEL_NEON)
    return (vf)vshll_n_u16(vld1_u16(p), 16);
#else
    uint16_t halves[LANES];
    memcpy(halves, p, sizeof halves);
    vi v;
    for (int lane = 0; lane < LANES; lane++)
        v[lane] = (int32_t)((uint32_t)halves[lane] << 16);
    return (vf)v;
#endif
}

/* Of four bytes a lane the first and third (odd: the second and fourth), as 16-bit integers. */
INLINE vi v_load_byte_pairs(const void *p, const int odd) {
    vh both = (vh)*(const vi_unaligned *)p;
    return (vi)((odd ? both : both << 8) >> 8);
}

/* a + the products of the 16-bit integers in b and c, the two of a lane added; no overflow is caught */
INLINE vi v_dot_pairs(vi a, vi b, vi c) {
#if defined(LEVEL_VNNI)
    return (vi)_mm512_dpwssd_epi32((__m512i)a, (__m512i)b, (__m512i)c);
#elif defined(LEVEL_AVX512)
    return (vi)_mm512_add_epi32((__m512i)a, _mm512_madd_epi16((__m512i)b, (__m512i)c));
#elif defined(LEVEL_AVX2)
    return (vi)_mm256_add_epi32((__m256i)a, _mm256_madd_epi16((__m256i)b, (__m256i)c));
#elif defined(LEVEL_NEON)
    int16x8_t x = (int16x8_t)b, y = (int16x8_t)c;
    return a + (vi)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#else
    return a + (b << 16 >> 16) * (c << 16 >> 16) + (b >> 16) * (c >> 16);
#endif
}

/* The sum of all lanes, always in the same order. */
INLINE float v_sum(vf v) {
#if defined(LEVEL_AVX512)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sum[LANES];
    v_store(sum, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++)
            sum[lane] += sum[lane + half];
    return sum[0];
#endif
}

INLINE void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

#endif

/* out[token, outputs] = start + x[token, :] . W^T over panels of 16 outputs.
 *
 * float32 and bfloat16 weights: every output is one chain of float32 multiply-adds over k = 0, 1, ... int8 weights: x is
 * quantised, products and sums over many k are exact, and these sums add up in float32, in ascending order. Either way
 * it does not matter which block of tokens and panels an output is computed in: a token's result never depends on its
 * neighbours. */
#ifndef COMPRESS_GEMM_H
#define COMPRESS_GEMM_H

#include "fetch.h"
#include "quantise.h"

enum { PANEL_VECTORS = PANEL / LANES };
enum { EXACT = 512, EXACT_BYTES = 1 << 15 }; /* 512 * 32767 * 128 and 2^15 * 127 * 255 are below 2^31 */
enum { INT8_BYTES = INT4 + 1 };              /* int8 weights, and bytes for x */

/* The micro-kernel holds tokens x panels in registers: 24, 12 or 8 vectors of sums by how many registers there are. */
#if LANES == 16
#define TOKENS_MAX 12
#define PANELS_FOR(tokens) ((tokens) >= 8 ? 2 : (tokens) >= 3 ? 4 : 8)
#elif LANES == 8
#define TOKENS_MAX 6
#define PANELS_FOR(tokens) ((tokens) >= 4 ? 1 : (tokens) >= 2 ? 2 : 4)
#elif defined(LEVEL_NEON)
#define TOKENS_MAX 6
#define PANELS_FOR(tokens) ((tokens) >= 3 ? 1 : (tokens) == 2 ? 2 : 4)
#else
#define TOKENS_MAX 2
#define PANELS_FOR(tokens) ((tokens) == 2 ? 1 : 2)
#endif

struct gemm {
    const float *x; /* [tokens, x_stride] */
    int64_t x_stride;
    struct quantised q; /* int8 weights: in the place of x */
    int64_t bits;       /*   of each integer */
    const char *panels; /* float32 [panel][k][PANEL]; bfloat16 [panel][k / 2][PANEL][2]; int8 [panel][k / 4][PANEL][4] */
    int64_t k, panel_bytes;
    const float *scale; /* int8 weights: [panel][PANEL] */
    const float *bias;  /* what sums start from: [panel][PANEL], or NULL: */
    int add;            /*   what `out` holds, or zero */
    float *out;         /* [tokens, out_stride], panels side by side */
    int64_t out_stride;
    struct fetch *fetch; /* int8 weights: rows to fetch meanwhile, or NULL */
};

typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* sums += w x[k] for one k, w being the panels' weights of this k */
INLINE void gemm_step(const struct gemm *g, const float *x, int64_t k, const vf *w, vf *sums, const int tokens,
                      const int vectors) {
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) {
        vf value = v_set(x[t * g->x_stride + k]);
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sums[t * vectors + v] = v_fma(value, w[v], sums[t * vectors + v]);
    }
}

/* Vector v of the weights of one k (float32), or of a pair of them (bfloat16: the even k in the low halves). */
INLINE const char *gemm_weight(const struct gemm *g, const char *panels, int64_t step, int v) {
    return panels + v / PANEL_VECTORS * g->panel_bytes + (step * PANEL_VECTORS + v % PANEL_VECTORS) * LANES * 4;
}

/* Fetch the block that comes next, as far as this one has come (behind the last, whatever lies there): what the processor
 * fetches of its own accord comes too late. */
INLINE void gemm_fetch_next(const struct gemm *g, const char *panels, int64_t step, const int vectors) {
    const int count = vectors / PANEL_VECTORS;
#pragma GCC unroll 8
    for (int panel = 0; panel < count; panel++)
        __builtin_prefetch(panels + (count + panel) * g->panel_bytes + step * PANEL * 4, 0, 2);
}

/* What vector v of a token's sums starts from. */
INLINE vf gemm_start(const struct gemm *g, int64_t token, int64_t panel, int v) {
    if (g->bias)
        return v_load(g->bias + panel * PANEL + v * LANES);
    return g->add ? v_load(g->out + token * g->out_stride + panel * PANEL + v * LANES) : (vf){0};
}

INLINE void gemm_block(const struct gemm *g, int64_t token, int64_t panel, const int dtype, const int tokens,
                       const int count) {
    const int vectors = count * PANEL_VECTORS;
    const float *x = g->x + token * g->x_stride;
    const char *panels = g->panels + panel * g->panel_bytes;
    vf sums[TOKENS_MAX * 8 * PANEL_VECTORS], w[8 * PANEL_VECTORS], odd[8 * PANEL_VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++)
            sums[t * vectors + v] = gemm_start(g, token + t, panel, v);
    if (dtype == FLOAT32) {
        for (int64_t k = 0; k < g->k; k++) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++)
                w[v] = v_load((const float *)gemm_weight(g, panels, k, v));
            gemm_fetch_next(g, panels, k, vectors);
            gemm_step(g, x, k, w, sums, tokens, vectors);
        }
    } else {
        for (int64_t k = 0; k < g->k; k += 2) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) {
                vu pair = *(const vu_unaligned *)gemm_weight(g, panels, k / 2, v);
                w[v] = (vf)(pair << 16);
                odd[v] = (vf)(pair & 0xffff0000u);
            }
            gemm_fetch_next(g, panels, k / 2, vectors);
            gemm_step(g, x, k, w, sums, tokens, vectors);
            if (k + 1 < g->k)
                gemm_step(g, x, k + 1, odd, sums, tokens, vectors);
        }
    }
    float *out = g->out + token * g->out_stride + panel * PANEL;
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            v_store(out + t * g->out_stride + v * LANES, sums[t * vectors + v]);
}

/* sums += products of four k, step by step, in the order of the weights' bytes */
INLINE void gemm_pairs(const struct gemm *g, const char *x, const char *panels, int64_t from, int64_t to, vi *sums,
                       const int tokens, const int vectors) {
    vi w[8 * PANEL_VECTORS];
    for (int64_t k = from; k < to; k += 4) {
        gemm_fetch_next(g, panels, k / 4, vectors);
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++)
                w[v] = v_load_byte_pairs(gemm_weight(g, panels, k / 4, v), odd);
#pragma GCC unroll 16
            for (int t = 0; t < tokens; t++) {
                int32_t pair;
                memcpy(&pair, x + t * g->q.stride + 2 * k + 4 * odd, sizeof pair);
                vi values = v_set_int(pair);
#pragma GCC unroll 16
                for (int v = 0; v < vectors; v++)
                    sums[t * vectors + v] = v_dot_pairs(sums[t * vectors + v], w[v], values);
            }
        }
    }
}

#ifdef LEVEL_VNNI
/* The same of bytes; the instruction wants one side unsigned, so weights count 128 too much. */
INLINE void gemm_bytes(const struct gemm *g, const char *x, const char *panels, int64_t from, int64_t to, vi *sums,
                       const int tokens, const int vectors) {
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    __m512i w[8];
    for (int64_t k = from; k < to; k += 4) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            w[v] = _mm512_xor_si512(_mm512_loadu_si512(gemm_weight(g, panels, k / 4, v)), sign);
        gemm_fetch_next(g, panels, k / 4, vectors);
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++) {
            int32_t four;
            memcpy(&four, x + t * g->q.stride + k, sizeof four);
            __m512i values = _mm512_set1_epi32(four);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++)
                sums[t * vectors + v] =
                    (vi)_mm512_dpbusd_epi32((__m512i)sums[t * vectors + v], w[v], values);
        }
    }
}
#endif

INLINE void gemm_integers(const struct gemm *g, const char *x, const char *panels, int64_t from, int64_t to,
                          const int bytes, vi *sums, const int tokens, const int vectors) {
#ifdef LEVEL_VNNI
    if (bytes) {
        gemm_bytes(g, x, panels, from, to, sums, tokens, vectors);
        return;
    }
#endif
    (void)bytes;
    gemm_pairs(g, x, panels, from, to, sums, tokens, vectors);
}

/* The same in integers; `bytes`: those of q are bytes. */
INLINE void gemm_block_int8(const struct gemm *g, int64_t token, int64_t panel, const int bytes, const int tokens,
                            const int count) {
    const int vectors = count * PANEL_VECTORS;
    const char *x = g->q.values + token * g->q.stride;
    const char *panels = g->panels + panel * g->panel_bytes;
    const int64_t exact = g->bits == 8 ? EXACT_BYTES : EXACT;
    int64_t from = 0;
    do { /* once without any k, too: the start is written */
        const int64_t to = lesser(from + exact, g->k);
        vi sums[TOKENS_MAX * 8 * PANEL_VECTORS];
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++)
                sums[t * vectors + v] = bytes && !from ? v_set_int(-128 * g->q.sums[token + t]) : (vi){0};
        int64_t k = from;
        for (; fetch_left(g->fetch) && k + FETCH_EVERY < to; k += FETCH_EVERY) {
            gemm_integers(g, x, panels, k, k + FETCH_EVERY, bytes, sums, tokens, vectors);
            fetch_some(g->fetch);
        }
        gemm_integers(g, x, panels, k, to, bytes, sums, tokens, vectors);
        float *out = g->out + token * g->out_stride + panel * PANEL;
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++) {
            vf unit = v_set(g->q.scales[token + t]);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) {
                float *to_out = out + t * g->out_stride + v * LANES;
                vf start = from ? v_load(to_out) : gemm_start(g, token + t, panel, v);
                vf scale = unit * v_load(g->scale + panel * PANEL + v * LANES);
                v_store(to_out, v_fma(__builtin_convertvector(sums[t * vectors + v], vf), scale, start));
            }
        }
        from += exact;
    } while (from < g->k);
}

INLINE void gemm_block_typed(const struct gemm *g, int64_t token, int64_t panel, const int dtype, const int tokens,
                             const int count) {
    if (dtype == INT8 || dtype == INT8_BYTES)
        gemm_block_int8(g, token, panel, dtype == INT8_BYTES, tokens, count);
    else
        gemm_block(g, token, panel, dtype, tokens, count);
}

INLINE void gemm_panels(const struct gemm *g, int64_t token, int64_t panel, int64_t end, const int dtype,
                        const int tokens) {
    const int wide = PANELS_FOR(tokens);
    for (; panel + wide <= end; panel += wide)
        gemm_block_typed(g, token, panel, dtype, tokens, wide);
    if (wide > 4 && panel + 4 <= end)
        gemm_block_typed(g, token, panel, dtype, tokens, 4), panel += 4;
    if (wide > 2 && panel + 2 <= end)
        gemm_block_typed(g, token, panel, dtype, tokens, 2), panel += 2;
    if (wide > 1 && panel < end)
        gemm_block_typed(g, token, panel, dtype, tokens, 1);
}

INLINE void gemm_typed(const struct gemm *g, int64_t tokens, int64_t panel, int64_t panel_end, const int dtype) {
    enum { PANELS_HELD = 8 }; /* panels that stay cached while the tokens go by */
    for (; panel < panel_end; panel += PANELS_HELD) {
        int64_t end = panel + PANELS_HELD < panel_end ? panel + PANELS_HELD : panel_end;
        for (int64_t token = 0, step; token < tokens; token += step) {
            int64_t left = tokens - token;
#define TAKE(n)                                            \
    if (n <= TOKENS_MAX && left >= n) {                    \
        step = n;                                          \
        gemm_panels(g, token, panel, end, dtype, n);       \
        continue;                                          \
    }
            TAKE(12)
            TAKE(8)
            TAKE(6)
            TAKE(4)
            TAKE(3)
            TAKE(2)
            TAKE(1)
#undef TAKE
            step = 1;
        }
    }
}

static void gemm_float32(const struct gemm *g, int64_t tokens, int64_t panel, int64_t panel_end) {
    gemm_typed(g, tokens, panel, panel_end, FLOAT32);
}

static void gemm_bfloat16(const struct gemm *g, int64_t tokens, int64_t panel, int64_t panel_end) {
    gemm_typed(g, tokens, panel, panel_end, BFLOAT16);
}

static void gemm_int8(const struct gemm *g, int64_t tokens, int64_t panel, int64_t panel_end) {
    gemm_typed(g, tokens, panel, panel_end, INT8);
}

#ifdef LEVEL_VNNI
static void gemm_int8_bytes(const struct gemm *g, int64_t tokens, int64_t panel, int64_t panel_end) {
    gemm_typed(g, tokens, panel, panel_end, INT8_BYTES);
}
#endif

/* Whether this level multiplies x as bytes. */
INLINE int gemm_takes_bytes(const struct gemm *g) {
#ifdef LEVEL_VNNI
    return g->bits == 8 && g->k <= EXACT_BYTES;
#else
    (void)g;
    return 0;
#endif
}

/* Panels [panel, panel_end) over x, or over q which is there already; out, bias, scale and panels are those of panel 0. */
INLINE void gemm_prepared(const struct gemm *g, int64_t dtype, int64_t tokens, int64_t panel, int64_t panel_end) {
    if (dtype == FLOAT32)
        gemm_float32(g, tokens, panel, panel_end);
    else if (dtype == BFLOAT16)
        gemm_bfloat16(g, tokens, panel, panel_end);
#ifdef LEVEL_VNNI
    else if (gemm_takes_bytes(g))
        gemm_int8_bytes(g, tokens, panel, panel_end);
#endif
    else
        gemm_int8(g, tokens, panel, panel_end);
}

/* The same over x; g.q has room for QUANTISED_TOKENS. */
INLINE void gemm(struct gemm g, int64_t dtype, int64_t tokens, int64_t panel, int64_t panel_end) {
    if (dtype != INT8) {
        gemm_prepared(&g, dtype, tokens, panel, panel_end);
        return;
    }
    for (int64_t count; tokens > 0 && panel < panel_end; tokens -= count) {
        count = tokens < QUANTISED_TOKENS ? tokens : QUANTISED_TOKENS;
        quantise(g.x, g.x_stride, g.k, count, g.bits, gemm_takes_bytes(&g), &g.q);
        gemm_prepared(&g, dtype, count, panel, panel_end);
        g.x += count * g.x_stride;
        g.out += count * g.out_stride;
    }
}

INLINE int64_t gemm_panel_bytes(int64_t k, int64_t dtype) {
    return PANEL * (dtype == FLOAT32 ? k * 4 : dtype == BFLOAT16 ? (k + 1) / 2 * 4 : (k + 3) / 4 * 4);
}

/* A product with one of the FFN's matrices over k inputs. */
INLINE struct gemm tile_gemm(const struct tile *t, enum part matrix, int64_t k) {
    const struct ffn *f = t->ffn;
    return (struct gemm){.panels = f->weights + f->offset[matrix], .scale = part_floats(f, matrix + 1), .q = t->q, .k = k,
                         .bits = matrix == HASH ? 16 : f->input_bits,
                         .panel_bytes = gemm_panel_bytes(k, f->weight_dtype)};
}

#endif

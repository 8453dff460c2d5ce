/* The hash: z = P(x) for each kind of projection, scored at once. */
#include "cosine.h"
#include "gemm.h"
#include "hadamard.h"
#include "score.h"

enum { HELD = LANES == 16 ? 16 : 8 }; /* vectors of a transform that fit the registers */

INLINE void hash_prefetch(const struct tile *t, int64_t token, int64_t table, int64_t table_end) {
    if (t->tokens <= PREFETCH_TOKENS && t->size == 1)
        prefetch_rows(t, token, table, lesser(table_end, t->ffn->tables));
}

/* lowrank, dense: a group of PANEL tables has one panel a bit, so that z comes out with tables in its lanes. */
static void hash_panels(const struct tile *t) {
    const struct ffn *f = t->ffn;
    const int64_t z_stride = f->bits * PANEL;
    const struct gemm whole = tile_gemm(t, HASH, f->projection == LOWRANK ? f->rank : f->d_in);
    struct gemm g = whole;
    g.x_stride = f->projection == LOWRANK ? f->input_width : f->d_in;
    g.out = t->work, g.out_stride = z_stride;
    for (int64_t token = 0, count; token < t->tokens; token += count) {
        count = lesser(HASHED_TOKENS, t->tokens - token);
        g.x = (f->projection == LOWRANK ? t->inputs : t->x) + token * g.x_stride;
        if (f->weight_dtype == INT8)
            quantise(g.x, g.x_stride, g.k, count, g.bits, 0, &g.q);
        for (int64_t group = share(t, f->groups); group < share_end(t, f->groups); group++) {
            g.panels = whole.panels + group * f->bits * g.panel_bytes;
            g.scale = whole.scale + group * z_stride;
            g.bias = part_floats(f, HASH_BIAS) + group * z_stride;
            gemm_prepared(&g, f->weight_dtype, count, 0, f->bits);
            for (int64_t n = 0; n < count; n++)
                for (int lane = 0; lane < PANEL; lane += LANES) {
                    vf z[MAX_BITS];
                    for (int64_t j = 0; j < f->bits; j++)
                        z[j] = v_load(t->work + n * z_stride + j * PANEL + lane);
                    score_lanes(t, token + n, group * PANEL + lane, z);
                }
            if (count <= PREFETCH_TOKENS)
                for (int64_t n = 0; n < count; n++)
                    hash_prefetch(t, token + n, group * PANEL, (group + 1) * PANEL);
        }
    }
}

/* v = H w2 H w1 h in `count` vectors */
INLINE void rotate_held(const float *h, const float *w1, const float *w2, float *v, const int count) {
    vf x[HELD];
#pragma GCC unroll 16
    for (int i = 0; i < count; i++)
        x[i] = v_load(h + i * LANES) * v_load(w1 + i * LANES);
    hadamard_held(x, count);
#pragma GCC unroll 16
    for (int i = 0; i < count; i++)
        x[i] *= v_load(w2 + i * LANES);
    hadamard_held(x, count);
#pragma GCC unroll 16
    for (int i = 0; i < count; i++)
        v_store(v + i * LANES, x[i]);
}

static void rotate(const struct ffn *f, const float *h, const float *w1, float *v) {
    const int64_t width = f->width;
    const float *w2 = w1 + width;
    if (width == f->transform && width == HELD * LANES)
        rotate_held(h, w1, w2, v, HELD);
    else if (width == f->transform && width == HELD / 2 * LANES)
        rotate_held(h, w1, w2, v, HELD / 2);
    else {
        for (int64_t i = 0; i < width; i += LANES)
            v_store(v + i, v_load(h + i) * v_load(w1 + i));
        hadamard(v, f->transform, 1);
        for (int64_t i = 0; i < width; i += LANES)
            v_store(v + i, v_load(v + i) * v_load(w2 + i));
        hadamard(v, f->transform, 1);
    }
}

/* Hadamard: v = H w2 H w1 h; of a repeat's v bit j of table i is element j * each + i. */
static void hash_hadamard(const struct tile *t) {
    const struct ffn *f = t->ffn;
    const int64_t width = f->width, each = f->transform / f->bits;
    const int64_t padded = f->groups * PANEL, z_stride = padded + PANEL; /* room for overlong copies */
    const float *diagonals = (const float *)(f->weights + f->offset[HASH]);
    const float *bias = (const float *)(f->weights + f->offset[HASH_BIAS]);
    float *h = t->work, *v = h + width, *z = v + width + PANEL; /* z [bits][z_stride] */
    memset(v, 0, (size_t)(width + PANEL + f->bits * z_stride) * sizeof *v);
    for (int64_t token = share(t, t->tokens), end = share_end(t, t->tokens); token < end; token++) {
        memcpy(h, t->inputs + token * f->input_width, (size_t)f->rank * 4);
        memset(h + f->rank, 0, (size_t)(width - f->rank) * 4);
        for (int64_t repeat = 0; repeat < f->repeats; repeat++) {
            rotate(f, h, diagonals + repeat * 2 * width, v);
            for (int64_t j = 0; j < f->bits; j++)
                for (int64_t i = 0; i < each && repeat * each + i < padded; i += LANES)
                    v_store(z + j * z_stride + repeat * each + i, v_load(v + j * each + i));
        }
        for (int64_t table = 0; table < padded; table += LANES) {
            vf lanes[MAX_BITS];
            for (int64_t j = 0; j < f->bits; j++)
                lanes[j] = v_load(z + j * z_stride + table) + v_load(bias + j * padded + table);
            score_lanes(t, token, table, lanes);
            hash_prefetch(t, token, table, table + LANES);
        }
    }
}

/* Tables [from, to) of one token, whose z [tables * bits] is in its natural order. */
static void score_tables(const struct tile *t, int64_t token, const float *z, int64_t from, int64_t to) {
    const struct ffn *f = t->ffn;
    for (int64_t table = from; table < to; table += LANES) {
        vf lanes[MAX_BITS];
        int64_t left = f->tables - table;
        margin_load(z + table * f->bits, f->bits, left > 0 ? left : 0, lanes);
        score_lanes(t, token, table, lanes);
        hash_prefetch(t, token, table, table + LANES);
    }
}

static void score_token(const struct tile *t, int64_t token, const float *z) {
    score_tables(t, token, z, 0, t->ffn->groups * PANEL);
}

/* z = mix * transformed + (1 - mix) * x + bias, over the D elements of one repeat */
INLINE void finish_transform(const struct ffn *f, const float *transformed, const float *x, float mix, int64_t repeat,
                             float *z) {
    const float *bias = (const float *)(f->weights + f->offset[HASH_BIAS]) + repeat * f->transform;
    z += repeat * f->transform;
    for (int64_t i = 0; i < f->transform; i += LANES) {
        vf v = v_load(transformed + i);
        if (mix != 1.0f)
            v = v_fma(v_set(mix), v, (1.0f - mix) * v_load(x + i));
        int64_t left = f->transform - i;
        if (left >= LANES)
            v_store(z + i, v + v_load(bias + i));
        else
            v_store_part(z + i, v + v_load_part(bias + i, left), left);
    }
}

/* x of `count` tokens behind `token`, padded with zeros. */
static void bh4_input(const struct tile *t, int64_t token, int64_t count, float *x) {
    const int64_t width = t->ffn->width, d_in = t->ffn->d_in;
    for (int64_t n = 0; n < count; n++) {
        memcpy(x + n * width, t->x + (token + n) * d_in, (size_t)d_in * 4);
        memset(x + n * width + d_in, 0, (size_t)(width - d_in) * 4);
    }
}

/* Blocks [block, end) of a block-diagonal matrix, the `factor`-th of all repeats, over `from` [count, width]. */
static void bh4_blocks(const struct tile *t, int64_t factor, const float *from, float *to, int64_t count, int64_t block,
                       int64_t end, struct fetch *fetch) {
    const struct ffn *f = t->ffn;
    const struct gemm whole = tile_gemm(t, HASH, f->block_width);
    const int64_t panels = f->block_width / PANEL;
    struct gemm g = whole;
    g.x_stride = g.out_stride = f->width;
    g.fetch = fetch;
    if (f->weight_dtype == INT8)
        quantise(from, f->width, f->width, count, g.bits, 0, &g.q);
    for (g.q.values += 2 * block * f->block_width; block < end; block++) {
        const int64_t first = (factor * f->blocks + block) * panels;
        g.x = from + block * f->block_width;
        g.out = to + block * f->block_width;
        g.panels = whole.panels + first * g.panel_bytes;
        g.scale = whole.scale + first * PANEL;
        gemm_prepared(&g, f->weight_dtype, count, 0, panels);
        g.q.values += 2 * f->block_width;
    }
}

static void bh4_transform(const struct ffn *f, float *x, int64_t count) {
    for (int64_t n = 0; n < count; n++)
        hadamard(x + n * f->width, f->transform, f->hadamard_from);
}

static void bh4_finish(const struct ffn *f, const float *transformed, const float *x, int64_t repeat, int64_t count,
                       float *z) {
    for (int64_t n = 0; n < count; n++)
        finish_transform(f, transformed + n * f->width, x + n * f->width, 0.7f, repeat, z + n * f->repeats * f->width);
}

/* BH4: four times a block-diagonal matrix, then a Hadamard transform; a few tokens share a pass over the weights, and
 * where a thread has whole tokens, the rows of those before them come to the cache meanwhile. */
static void hash_bh4(const struct tile *t) {
    enum { CHUNK = 12, CHUNK_FETCHING = 8 };
    const struct ffn *f = t->ffn;
    const int64_t width = f->width;
    float *x = t->work, *from = x + CHUNK * width, *to = from + CHUNK * width, *z = to + CHUNK * width;
    struct fetch *fetch = t->size == 1 && fetch_left(fetch_early(t)) ? t->fetch : NULL;
    if (fetch)
        fetch_until(t, 0);
    const int64_t chunk = fetch ? CHUNK_FETCHING : CHUNK;
    for (int64_t token = share(t, t->tokens), end = share_end(t, t->tokens); token < end; token += chunk) {
        const int64_t count = lesser(chunk, end - token);
        bh4_input(t, token, count, x);
        for (int64_t repeat = 0; repeat < f->repeats; repeat++) {
            for (int64_t factor = 0; factor < BH4_FACTORS; factor++) {
                bh4_blocks(t, repeat * BH4_FACTORS + factor, factor ? from : x, to, count, 0, f->blocks, fetch);
                bh4_transform(f, to, count);
                float *swap = from;
                from = to, to = swap;
            }
            bh4_finish(f, from, x, repeat, count, z);
        }
        for (int64_t n = 0; n < count; n++)
            score_token(t, token + n, z + n * f->repeats * width);
        if (fetch)
            fetch_until(t, token + count);
    }
}

/* The same for a few tokens, a factor a step, whose blocks the team shares: each thread transforms all of what the last
 * step left, and in the step behind the last factor scores tables of its own. */
static void hash_bh4_step(const struct tile *t) {
    const struct ffn *f = t->ffn;
    const int64_t width = f->width, count = t->tokens, repeat = t->step / BH4_FACTORS, factor = t->step % BH4_FACTORS;
    float *x = t->work, *from = x + count * width, *z = from + count * width; /* this thread's, from step to step */
    if (t->step) {
        memcpy(from, t->mixed[(t->step - 1) % 2], (size_t)(count * width) * 4);
        bh4_transform(f, from, count);
    } else
        bh4_input(t, 0, count, x);
    if (!factor && repeat)
        bh4_finish(f, from, x, repeat - 1, count, z);
    if (repeat < f->repeats) {
        bh4_blocks(t, t->step, factor ? from : x, t->mixed[t->step % 2], count, share(t, f->blocks), share_end(t, f->blocks),
                   NULL);
        return;
    }
    for (int64_t n = 0; n < count; n++)
        score_tables(t, n, z + n * f->repeats * width, share(t, f->groups) * PANEL, share_end(t, f->groups) * PANEL);
}

/* ACDC: four layers x -> IDCT(D * DCT(A * x)) with diagonal A and D, LANES tokens at a time, one a lane. */
static void hash_acdc(const struct tile *t) {
    const struct ffn *f = t->ffn;
    const int64_t d = f->transform, z_stride = f->repeats * f->width;
    vf *x = (vf *)t->work, *v = x + f->width, *work = v + f->width;
    float *z = (float *)(work + f->width);
    const float *cosine = (const float *)(f->weights + f->offset[ROTATIONS]);
    const struct rotations rotations = {cosine, cosine + d};
    for (int64_t token = share(t, t->tokens), end = share_end(t, t->tokens); token < end; token += LANES) {
        int64_t count = lesser(LANES, end - token);
        memset(x, 0, (size_t)f->width * sizeof *x);
        for (int64_t n = 0; n < count; n++)
            for (int64_t i = 0; i < f->d_in; i++)
                ((float *)&x[i])[n] = t->x[(token + n) * f->d_in + i];
        for (int64_t repeat = 0; repeat < f->repeats; repeat++) {
            memcpy(v, x, (size_t)d * sizeof *v);
            for (int64_t layer = 0; layer < 4; layer++) {
                const float *diagonals = (const float *)(f->weights + f->offset[HASH]) + (repeat * 4 + layer) * 2 * d;
                for (int64_t i = 0; i < d; i++)
                    v[i] *= diagonals[i];
                dct2(v, work, d, &rotations);
                for (int64_t i = 0; i < d; i++)
                    v[i] *= diagonals[d + i];
                idct2(v, work, d, &rotations);
            }
            const float *bias = (const float *)(f->weights + f->offset[HASH_BIAS]) + repeat * d;
            for (int64_t i = 0; i < d; i++) {
                vf value = v[i] + bias[i];
                for (int64_t n = 0; n < count; n++)
                    z[n * z_stride + repeat * d + i] = value[n];
            }
        }
        for (int64_t n = 0; n < count; n++)
            score_token(t, token + n, z + n * z_stride);
    }
}

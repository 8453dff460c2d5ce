/* The read of tables in 8 and 4 bits in integers, with AVX-512 VNNI: four rows' bytes are interleaved, so that one
 * instruction multiplies and adds 64 of them. A byte of 4-bit rows holds two columns: its upper four bits give 16 times
 * the one, and what the whole byte has beyond that is the other, plus 8.
 *
 * The weights of a group of 16 tables (and their second cells) become 16-bit fractions of their largest, high and low
 * byte apart; products and sums of a group are exact, and the groups add up in float32 in ascending order: a token's
 * result depends on no other token. Weights are never negative: scores and scales are not. */
#if defined(LEVEL_VNNI) && !defined(COMPRESS_ROWS_VNNI_H)
#define COMPRESS_ROWS_VNNI_H

#include "fetch.h"
#include "vector.h"

/* What one group's weights become; in the place of 16 floats. */
struct fractions {
    uint8_t high[PANEL], low[PANEL];
    float unit;
    int32_t sum;
};

/* Weights of LANES tables' cells (LANES == PANEL) into fractions; unit and sum, of all cells, stand with the first. */
INLINE void to_fractions(float *const *slots, const vf *weights, const int cells) {
    __m512 largest = (__m512)weights[0];
    __mmask16 unordered = _mm512_cmp_ps_mask(largest, largest, _CMP_UNORD_Q);
    if (cells == 2) {
        __m512 second = (__m512)weights[1];
        unordered |= _mm512_cmp_ps_mask(second, second, _CMP_UNORD_Q);
        largest = _mm512_max_ps(largest, second);
    }
    float most = _mm512_reduce_max_ps(largest);
    float inverse = most > 0.0f ? 65535.0f / most : 0.0f;
    int32_t sum = 0;
    for (int c = 0; c < cells; c++) {
        __m512i fraction = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)weights[c], _mm512_set1_ps(inverse)));
        struct fractions *out = (struct fractions *)slots[c];
        _mm_storeu_si128((__m128i *)out->high, _mm512_cvtepi32_epi8(_mm512_srli_epi32(fraction, 8)));
        _mm_storeu_si128((__m128i *)out->low, _mm512_cvtepi32_epi8(fraction));
        sum += _mm512_reduce_add_epi32(_mm512_and_si512(fraction, _mm512_set1_epi32(0xffff))); /* NaN is no fraction */
    }
    struct fractions *first = (struct fractions *)slots[0];
    first->unit = unordered ? NAN : most / 65535.0f;
    first->sum = sum;
}

/* Four rows' bytes interleaved: lane l of mixed[k] holds bytes 16 l + 4 k + 0..3 of each; `half`: of 32 bytes. */
INLINE void interleave(const char *const *rows, int64_t offset, const int half, __m512i *mixed) {
    const __mmask16 lanes = half ? 0xff : 0xffff;
    __m512i a = _mm512_maskz_loadu_epi32(lanes, rows[0] + offset), b = _mm512_maskz_loadu_epi32(lanes, rows[1] + offset);
    __m512i c = _mm512_maskz_loadu_epi32(lanes, rows[2] + offset), d = _mm512_maskz_loadu_epi32(lanes, rows[3] + offset);
    __m512i ab = _mm512_unpacklo_epi8(a, b), ab2 = _mm512_unpackhi_epi8(a, b);
    __m512i cd = _mm512_unpacklo_epi8(c, d), cd2 = _mm512_unpackhi_epi8(c, d);
    mixed[0] = _mm512_unpacklo_epi16(ab, cd), mixed[1] = _mm512_unpackhi_epi16(ab, cd);
    mixed[2] = _mm512_unpacklo_epi16(ab2, cd2), mixed[3] = _mm512_unpackhi_epi16(ab2, cd2);
}

/* Sums of interleaved bytes, weighted by high and by low bytes of fractions. */
struct sums {
    __m512i high[4], low[4];
};

INLINE void add_weighted(struct sums *sums, __m512i high, __m512i low, const __m512i *mixed) {
    for (int k = 0; k < 4; k++) {
        sums->high[k] = _mm512_dpbusd_epi32(sums->high[k], high, mixed[k]);
        sums->low[k] = _mm512_dpbusd_epi32(sums->low[k], low, mixed[k]);
    }
}

/* Columns of a row into the order in which sums of them come, or back: lanes of four vectors exchanged. */
INLINE void transpose_lanes(__m512i *s) {
    __m512i a = _mm512_shuffle_i32x4(s[0], s[1], 0x44), b = _mm512_shuffle_i32x4(s[2], s[3], 0x44);
    __m512i c = _mm512_shuffle_i32x4(s[0], s[1], 0xee), d = _mm512_shuffle_i32x4(s[2], s[3], 0xee);
    s[0] = _mm512_shuffle_i32x4(a, b, 0x88), s[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    s[2] = _mm512_shuffle_i32x4(c, d, 0x88), s[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

/* Numbers of `units` times ROW_UNIT columns, 1 or 2, as sums of them come: int8, those of each unit; in 4 bits, those in
 * the lower and those in the upper halves of bytes. */
struct columns {
    __m512i part[2][4];
};

/* Which column vector k of a part begins with, once back in order; -1: none. */
INLINE int first_column(int part, int k, const int units, const int dtype) {
    if (dtype == INT8)
        return part < units ? part * ROW_UNIT + k * LANES : -1;
    return k / 2 < units ? k / 2 * ROW_UNIT + part * ROW_UNIT / 2 + k % 2 * LANES : -1;
}

INLINE void load_columns(struct columns *c, const float *out, const int units, const int dtype) {
    for (int part = 0; part < 2; part++)
        for (int k = 0; k < 4; k++) {
            const int column = first_column(part, k, units, dtype);
            c->part[part][k] = column < 0 ? _mm512_setzero_si512() : (__m512i)v_load(out + column);
        }
}

INLINE void store_columns(const struct columns *c, float *out, const int units, const int dtype) {
    for (int part = 0; part < 2; part++)
        for (int k = 0; k < 4; k++) {
            const int column = first_column(part, k, units, dtype);
            if (column >= 0)
                v_store(out + column, (vf)c->part[part][k]);
        }
}

INLINE void transpose_columns(struct columns *c) {
    for (int part = 0; part < 2; part++)
        transpose_lanes(c->part[part]);
}

/* out += unit * sums, in floats and integers */
INLINE void add_scaled(struct columns *out, float unit, const struct columns *sums) {
    for (int part = 0; part < 2; part++)
        for (int k = 0; k < 4; k++)
            out->part[part][k] = (__m512i)v_fma(v_set(unit), (vf)_mm512_cvtepi32_ps(sums->part[part][k]),
                                                (vf)out->part[part][k]);
}

/* The rows of a group of tables that token n reads, `units` times ROW_UNIT columns of them, weighted in integers; what one
 * of these is worth. */
INLINE float sum_group(struct columns *out, const struct tile *t, int64_t n, int64_t group, int64_t column,
                       const int units, const int dtype) {
    const struct ffn *f = t->ffn;
    const int64_t width = f->groups * PANEL, first = n * f->cells * width + group * PANEL;
    const int32_t *index = t->index + first;
    const float *weight = t->weight + first;
    const char *from = f->table_rows + row_columns_bytes(column, dtype);
    const __m512i upper_bits = _mm512_set1_epi8((char)0xf0);
    struct sums sums[2] = {0}; /* int8: of each unit; in 4 bits: of whole bytes, and of their upper halves */
    for (int64_t c = 0; c < f->cells; c++) {
        const struct fractions *fractions = (const struct fractions *)(weight + c * width);
        for (int quad = 0; quad < PANEL; quad += 4) {
            const char *rows[4];
            for (int i = 0; i < 4; i++)
                rows[i] = from + index[c * width + quad + i] * f->row_bytes;
            int32_t four_high, four_low;
            memcpy(&four_high, fractions->high + quad, 4);
            memcpy(&four_low, fractions->low + quad, 4);
            const __m512i high = _mm512_set1_epi32(four_high), low = _mm512_set1_epi32(four_low);
            __m512i mixed[4];
            if (dtype == INT4) {
                interleave(rows, 0, units == 1, mixed);
                add_weighted(&sums[0], high, low, mixed);
                for (int k = 0; k < 4; k++)
                    mixed[k] = _mm512_and_si512(mixed[k], upper_bits);
                add_weighted(&sums[1], high, low, mixed);
                continue;
            }
            for (int u = 0; u < units; u++) {
                interleave(rows, u * ROW_UNIT, 0, mixed);
                add_weighted(&sums[u], high, low, mixed);
            }
        }
    }
    const struct fractions *whole = (const struct fractions *)weight;
    for (int k = 0; k < 4; k++) {
        __m512i a = _mm512_add_epi32(_mm512_slli_epi32(sums[0].high[k], 8), sums[0].low[k]);
        __m512i b = _mm512_add_epi32(_mm512_slli_epi32(sums[1].high[k], 8), sums[1].low[k]);
        if (dtype == INT4) {
            a = _mm512_sub_epi32(_mm512_sub_epi32(a, b), _mm512_set1_epi32(8 * whole->sum));
            b = _mm512_srai_epi32(b, 4);
        }
        out->part[0][k] = a, out->part[1][k] = b;
    }
    return whole->unit;
}

/* Fetch `units` of the rows of a group that token n reads. */
INLINE void prefetch_group(const struct tile *t, int64_t n, int64_t group, int64_t column, const int units,
                           const int dtype) {
    const struct ffn *f = t->ffn;
    const char *from = f->table_rows + row_columns_bytes(column, dtype);
    for (int64_t c = 0; c < f->cells; c++) {
        const int32_t *index = t->index + (n * f->cells + c) * f->groups * PANEL + group * PANEL;
        for (int i = 0; i < PANEL; i++)
            for (int64_t line = 0; line < row_columns_bytes(units * ROW_UNIT, dtype); line += CACHE_LINE)
                prefetch(from + index[i] * f->row_bytes + line);
    }
}

/* Fetch token n's share of a slice that all tokens read next into the second-level cache: a line of a group's rows. */
INLINE void prefetch_slice(const struct tile *t, int64_t n, int64_t group, int64_t column) {
    const struct ffn *f = t->ffn;
    const int64_t first = group * PANEL * f->rows, rows = lesser(PANEL, f->tables - group * PANEL) * f->rows;
    for (int64_t row = rows * n / t->tokens, end = rows * (n + 1) / t->tokens; row < end; row++)
        __builtin_prefetch(f->table_rows + (first + row) * f->row_bytes + row_at(f, column), 0, 2);
}

/* Columns of whole rows, while their next columns, or the next token's first, are on their way. */
INLINE void row_block(const struct tile *t, int64_t n, int64_t at, int64_t next, const int units, const int dtype) {
    float *out = t->out + n * t->ffn->out_width + at;
    struct columns total, sums;
    load_columns(&total, out, units, dtype);
    transpose_columns(&total);
    for (int64_t group = 0; group < t->ffn->groups; group++) {
        if (next > at)
            prefetch_group(t, n, group, next, 2, dtype);
        else if (n + 1 < t->tokens)
            prefetch_group(t, n + 1, group, next, 2, dtype);
        for (int lines = 0; lines < PANEL && fetch_left(t->fetch); lines += FETCH_LINES) /* as many as are read */
            fetch_some(t->fetch);
        const float unit = sum_group(&sums, t, n, group, at, units, dtype);
        add_scaled(&total, unit, &sums);
    }
    transpose_columns(&total);
    store_columns(&total, out, units, dtype);
}

/* Whole rows, which come from memory in long bursts, those of later tokens meanwhile. */
INLINE void whole_rows(const struct tile *t, int64_t column, int64_t column_end, const int dtype) {
    const int64_t pair = 2 * ROW_UNIT;
    fetch_behind(t->fetch, t->index + t->ffn->cells * t->ffn->groups * PANEL);
    for (int64_t n = 0; n < t->tokens; n++) {
        int64_t at = column;
        for (; at + pair <= column_end; at += pair)
            row_block(t, n, at, at + pair < column_end ? at + pair : column, 2, dtype);
        if (at < column_end)
            row_block(t, n, at, column, 1, dtype);
    }
}

/* The same columns of one group's tables, a line of each row of int8. */
INLINE void slice_block(const struct tile *t, int64_t n, int64_t group, int64_t column) {
    float *out = t->out + n * t->ffn->out_width + column;
    struct columns total, sums;
    const float unit = sum_group(&sums, t, n, group, column, 1, INT8);
    transpose_columns(&sums);
    load_columns(&total, out, 1, INT8);
    add_scaled(&total, unit, &sums);
    store_columns(&total, out, 1, INT8);
}

/* Slices of one group's tables, which stay in the second-level cache while all tokens stream past; the next slice is on
 * its way meanwhile. Compiled by itself, as whole_rows_INT8 is. */
static __attribute__((noinline)) void slices(const struct tile *t, int64_t column, int64_t column_end) {
    const int64_t groups = t->ffn->groups;
    for (; column < column_end; column += ROW_UNIT) {
        const int64_t next = column + ROW_UNIT;
        for (int64_t group = 0; group < groups; group++) {
            const int last = group + 1 == groups, more = !last || next < column_end;
            for (int64_t n = 0; n < t->tokens; n++) {
                if (more)
                    prefetch_slice(t, n, last ? 0 : group + 1, last ? next : column);
                slice_block(t, n, group, column);
            }
        }
    }
}

/* Compiled by themselves: beside other code the compiler holds sums in memory. */
#define APART(how, dtype)                                                                                              \
    static __attribute__((noinline)) void how##_##dtype(const struct tile *t, int64_t column, int64_t column_end) {    \
        how(t, column, column_end, dtype);                                                                             \
    }
APART(whole_rows, INT8)
APART(whole_rows, INT4)
#undef APART

static void read_rows_vnni(const struct tile *t, int64_t column, int64_t column_end) {
    if (t->ffn->table_dtype == INT8)
        (t->slices ? slices : whole_rows_INT8)(t, column, column_end);
    else
        whole_rows_INT4(t, column, column_end);
}
#endif

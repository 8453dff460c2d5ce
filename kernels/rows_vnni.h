/* The read of int8 tables in integers, with AVX-512 VNNI: four rows' bytes are interleaved, so that one instruction
 * multiplies and adds 64 of them.
 *
 * The weights of a group of 16 tables (and their second cells) become 16-bit fractions of their largest, high and low
 * byte apart; products and sums of a group are exact, and the groups add up in float32 in ascending order: a token's
 * result depends on no other token. Weights are never negative: scores and scales are not. */
#if defined(LEVEL_VNNI) && !defined(COMPRESS_ROWS_VNNI_H)
#define COMPRESS_ROWS_VNNI_H

#include "tile.h"
#include "vector.h"

/* What one group's weights become; in the place of 16 floats. */
struct fractions {
    uint8_t high[PANEL], low[PANEL];
    float unit;
};

/* Weights of LANES tables' cells (LANES == PANEL) into fractions; the unit stands with the first cell. */
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
    for (int c = 0; c < cells; c++) {
        __m512i fraction = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)weights[c], _mm512_set1_ps(inverse)));
        struct fractions *out = (struct fractions *)slots[c];
        _mm_storeu_si128((__m128i *)out->high, _mm512_cvtepi32_epi8(_mm512_srli_epi32(fraction, 8)));
        _mm_storeu_si128((__m128i *)out->low, _mm512_cvtepi32_epi8(fraction));
        out->unit = unordered ? NAN : most / 65535.0f;
    }
}

/* sums[0..3] += the interleaved bytes of four rows, weighted; lane l of sums[k] holds columns 16 l + 4 k + 0..3 */
INLINE void four_rows(const char *const *rows, int64_t offset, __m512i high, __m512i low, __m512i *high_sums,
                      __m512i *low_sums) {
    __m512i a = _mm512_loadu_si512(rows[0] + offset), b = _mm512_loadu_si512(rows[1] + offset);
    __m512i c = _mm512_loadu_si512(rows[2] + offset), d = _mm512_loadu_si512(rows[3] + offset);
    __m512i ab = _mm512_unpacklo_epi8(a, b), ab2 = _mm512_unpackhi_epi8(a, b);
    __m512i cd = _mm512_unpacklo_epi8(c, d), cd2 = _mm512_unpackhi_epi8(c, d);
    __m512i mixed[4] = {_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd), _mm512_unpacklo_epi16(ab2, cd2),
                        _mm512_unpackhi_epi16(ab2, cd2)};
    for (int k = 0; k < 4; k++) {
        high_sums[k] = _mm512_dpbusd_epi32(high_sums[k], high, mixed[k]);
        low_sums[k] = _mm512_dpbusd_epi32(low_sums[k], low, mixed[k]);
    }
}

/* out[0..63] += unit * (256 high + low), columns back in their order */
INLINE void add_columns(float *out, float unit, const __m512i *high, const __m512i *low) {
    __m512i s[4];
    for (int k = 0; k < 4; k++)
        s[k] = _mm512_add_epi32(_mm512_slli_epi32(high[k], 8), low[k]);
    __m512i a = _mm512_shuffle_i32x4(s[0], s[1], 0x44), b = _mm512_shuffle_i32x4(s[2], s[3], 0x44);
    __m512i c = _mm512_shuffle_i32x4(s[0], s[1], 0xee), d = _mm512_shuffle_i32x4(s[2], s[3], 0xee);
    s[0] = _mm512_shuffle_i32x4(a, b, 0x88), s[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    s[2] = _mm512_shuffle_i32x4(c, d, 0x88), s[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
    for (int k = 0; k < 4; k++)
        v_store(out + k * LANES, v_fma(v_set(unit), (vf)_mm512_cvtepi32_ps(s[k]), v_load(out + k * LANES)));
}

/* The rows of a group of tables that token n reads, `units` times ROW_UNIT columns of them. */
INLINE void read_group(const struct tile *t, int64_t n, int64_t group, int64_t column, const int units) {
    const struct ffn *f = t->ffn;
    const int64_t width = f->groups * PANEL, first = n * f->cells * width + group * PANEL;
    const int32_t *index = t->index + first;
    const float *weight = t->weight + first;
    __m512i high[8] = {0}, low[8] = {0};
    for (int64_t c = 0; c < f->cells; c++) {
        const struct fractions *fractions = (const struct fractions *)(weight + c * width);
        for (int quad = 0; quad < PANEL; quad += 4) {
            const char *rows[4];
            for (int i = 0; i < 4; i++)
                rows[i] = f->table_rows + index[c * width + quad + i] * f->row_bytes + column;
            int32_t four_high, four_low;
            memcpy(&four_high, fractions->high + quad, 4);
            memcpy(&four_low, fractions->low + quad, 4);
            for (int u = 0; u < units; u++)
                four_rows(rows, u * ROW_UNIT, _mm512_set1_epi32(four_high), _mm512_set1_epi32(four_low), high + 4 * u,
                          low + 4 * u);
        }
    }
    float *out = t->out + n * f->out_width + column, unit = ((const struct fractions *)weight)->unit;
    for (int u = 0; u < units; u++)
        add_columns(out + u * ROW_UNIT, unit, high + 4 * u, low + 4 * u);
}

/* Fetch the rows of a group that token n reads. */
INLINE void prefetch_group(const struct tile *t, int64_t n, int64_t group, int64_t column, int64_t column_end) {
    const struct ffn *f = t->ffn;
    for (int64_t c = 0; c < f->cells; c++) {
        const int32_t *index = t->index + (n * f->cells + c) * f->groups * PANEL + group * PANEL;
        for (int i = 0; i < PANEL; i++)
            for (int64_t line = column; line < column_end; line += 64)
                prefetch(f->table_rows + index[i] * f->row_bytes + line);
    }
}

/* Fetch token n's share of a slice that all tokens read next into the second-level cache: ROW_UNIT columns of a group. */
INLINE void prefetch_slice(const struct tile *t, int64_t n, int64_t group, int64_t column) {
    const struct ffn *f = t->ffn;
    const int64_t first = group * PANEL * f->rows, rows = lesser(PANEL, f->tables - group * PANEL) * f->rows;
    for (int64_t row = rows * n / t->tokens, end = rows * (n + 1) / t->tokens; row < end; row++)
        __builtin_prefetch(f->table_rows + (first + row) * f->row_bytes + column, 0, 2);
}

/* Compiled by themselves: beside other code the compiler holds sums in memory. */
#define APART static __attribute__((noinline))

/* Whole rows, which come from memory in long bursts, a group's while those of the next are on their way. */
APART void read_whole_rows(const struct tile *t, int64_t column, int64_t column_end) {
    const int64_t groups = t->ffn->groups;
    for (int64_t n = 0; n < t->tokens; n++)
        for (int64_t group = 0; group < groups; group++) {
            const int last = group + 1 == groups;
            if (!last || n + 1 < t->tokens)
                prefetch_group(t, last ? n + 1 : n, last ? 0 : group + 1, column, column_end);
            int64_t at = column;
            for (; at + 2 * ROW_UNIT <= column_end; at += 2 * ROW_UNIT)
                read_group(t, n, group, at, 2);
            if (at < column_end)
                read_group(t, n, group, at, 1);
        }
}

/* Slices of ROW_UNIT columns of one group's tables, which stay in the second-level cache while all tokens stream past;
 * the next slice is on its way meanwhile. */
APART void read_slices(const struct tile *t, int64_t column, int64_t column_end) {
    const int64_t groups = t->ffn->groups;
    for (; column < column_end; column += ROW_UNIT)
        for (int64_t group = 0; group < groups; group++) {
            const int last = group + 1 == groups, more = !last || column + ROW_UNIT < column_end;
            for (int64_t n = 0; n < t->tokens; n++) {
                if (more)
                    prefetch_slice(t, n, last ? 0 : group + 1, last ? column + ROW_UNIT : column);
                read_group(t, n, group, column, 1);
            }
        }
}

static void read_rows_vnni(const struct tile *t, int64_t column, int64_t column_end) {
    if (t->slices)
        read_slices(t, column, column_end);
    else
        read_whole_rows(t, column, column_end);
}
#endif

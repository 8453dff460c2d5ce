/* From z to the rows that are read: codes, margin scores, and with two cells the neighbour across the nearest plane. */
#include "exponential.h"
#include "margin.h"
#include "rows_vnni.h"
#include "tile.h"

/* The least |z| of each lane, and its bit's place in the code; the first bit wins ties. */
INLINE void nearest_plane(const vf *z, int64_t bits, vf *least, vi *place) {
    *least = v_abs(z[0]);
    *place = v_set_int(1 << (bits - 1));
    for (int64_t j = 1; j < bits; j++) {
        vf magnitude = v_abs(z[j]);
        vi nearer = (vi)(magnitude < *least);
        *least = v_select(nearer, magnitude, *least);
        *place = (v_set_int(1 << (bits - 1 - j)) & nearer) | (*place & ~nearer);
    }
}

/* Tables [table, table + LANES) of one token, z as one vector a bit: rows and weights into the tile. */
INLINE void score_lanes(const struct tile *t, int64_t token, int64_t table, const vf *z) {
    const struct ffn *f = t->ffn;
    const int64_t width = f->groups * PANEL;
    int32_t *index = t->index + token * f->cells * width + table;
    float *weight = t->weight + token * f->cells * width + table;
    const float *scales = f->bytes[SCALES] ? (const float *)(f->weights + f->offset[SCALES]) : NULL;
    vi code, row;
    vf score;
    margin_lanes(z, f->bits, &code, &score);
    for (int lane = 0; lane < LANES; lane++)
        row[lane] = lane;
    row += (int32_t)table;
    vi exists = (vi)(row < (int32_t)f->tables); /* tables that only fill the group read nothing of the first row */
    row = ((row << (int32_t)f->bits) + code) & exists;
    score = (vf)((vi)score & exists);
    vf weights[2] = {{0}, {0}};
    if (f->cells == 2) {
        vf least;
        vi place;
        nearest_plane(z, f->bits, &least, &place);
        float sharpness = *(const float *)(f->weights + f->offset[SHARPNESS]);
        vf other = 1.0f / (1.0f + v_exp(least * sharpness)); /* sigmoid(-2 m / temperature) */
        vi neighbour = (row ^ place) & exists;
        weights[1] = score * other;
        if (scales)
            weights[1] *= v_load(scales + table);
        v_store_int(index + width, neighbour);
        score *= 1.0f - other;
    }
    weights[0] = scales ? score * v_load(scales + table) : score;
    v_store_int(index, row);
#ifdef LEVEL_VNNI
    if (scales) {
        float *const slots[2] = {weight, weight + width};
        if (f->cells == 2)
            to_fractions(slots, weights, 2);
        else
            to_fractions(slots, weights, 1);
        return;
    }
#endif
    v_store(weight, weights[0]);
    if (f->cells == 2)
        v_store(weight + width, weights[1]);
}

/* A few tokens' rows go to the cache as soon as they are known. */
INLINE void prefetch_rows(const struct tile *t, int64_t token, int64_t table, int64_t table_end) {
    const struct ffn *f = t->ffn;
    for (int64_t c = 0; c < f->cells; c++) {
        const int32_t *index = t->index + (token * f->cells + c) * f->groups * PANEL;
        for (int64_t h = table; h < table_end; h++)
            for (int64_t line = 0; line < f->row_bytes; line += 64)
                prefetch(f->table_rows + index[h] * f->row_bytes + line);
    }
}

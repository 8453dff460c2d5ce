/* The read: out[token] += sum over tables h, then cells c, of weight * row, a block of columns at a time.
 *
 * A large tile takes a few tables at a time, so that their slice stays in the second-level cache while the tokens stream
 * past; the order of a token's sum is the same either way. Rows are prefetched a few reads ahead. */
#include "rows_vnni.h"
#include "tile.h"
#include "vector.h"

enum { READ_AHEAD = 8, READ_CACHE = 768 << 10 };

#if LANES == 16
enum { READ_VECTORS = 24 }; /* sums held in registers: a block of columns */
#else
enum { READ_VECTORS = 8 };
#endif
enum { UNIT_VECTORS = ROW_UNIT / LANES, SUM_VECTORS = READ_VECTORS > UNIT_VECTORS ? READ_VECTORS : UNIT_VECTORS };

/* LANES numbers of a row, widened; column i = 0 begins a unit where they are in 4 bits. */
INLINE vf row_load(const char *row, int64_t i, const int dtype) {
    if (dtype == INT4) {
        const int64_t half = ROW_UNIT / 2;
        const vi both = v_load_bytes(row + i / ROW_UNIT * half + i % half);
        return v_to_float(i % ROW_UNIT < half ? (both & 15) - 8 : both >> 4);
    }
    if (dtype == INT8)
        return v_to_float(v_load_bytes(row + i));
    if (dtype == BFLOAT16)
        return v_load_bfloat16(row + 2 * i);
    return v_load((const float *)row + i);
}

INLINE void read_block(const struct tile *t, int64_t column, int64_t table, int64_t table_end, const int vectors,
                       const int dtype) {
    const struct ffn *f = t->ffn;
    const int64_t width = f->groups * PANEL, reads = f->cells * width;
    const char *rows = f->table_rows + row_columns_bytes(column, dtype);
    for (int64_t n = 0; n < t->tokens; n++) {
        const int32_t *index = t->index + n * reads;
        const float *weight = t->weight + n * reads;
        float *out = t->out + n * f->out_width + column;
        vf sum[SUM_VECTORS];
#pragma GCC unroll 24
        for (int v = 0; v < vectors; v++)
            sum[v] = v_load(out + v * LANES);
        for (int64_t h = table; h < table_end; h++) {
            /* the read that comes READ_AHEAD tables later, perhaps in the next token */
            int64_t ahead = h + READ_AHEAD, token = 0;
            if (ahead >= table_end)
                ahead = lesser(ahead - table_end + table, table_end - 1), token = n + 1 < t->tokens;
            for (int64_t c = 0; c < f->cells; c++) {
                const char *next = rows + index[token * reads + c * width + ahead] * f->row_bytes;
#pragma GCC unroll 24
                for (int64_t line = 0; line < row_columns_bytes(vectors * LANES, dtype); line += 64)
                    prefetch(next + line);
                const char *row = rows + index[c * width + h] * f->row_bytes;
                vf w = v_set(weight[c * width + h]);
#pragma GCC unroll 24
                for (int v = 0; v < vectors; v++)
                    sum[v] = v_fma(w, row_load(row, v * LANES, dtype), sum[v]);
            }
        }
#pragma GCC unroll 24
        for (int v = 0; v < vectors; v++)
            v_store(out + v * LANES, sum[v]);
    }
}

INLINE void read_columns(const struct tile *t, int64_t column, int64_t column_end, const int dtype) {
    const struct ffn *f = t->ffn;
    while (column < column_end) {
        int64_t left = (column_end - column) / LANES, vectors = dtype == INT4 ? SUM_VECTORS : READ_VECTORS;
        while (vectors > left)
            vectors -= vectors > 8 ? 8 : vectors / 2;
        int64_t slice = f->rows * row_columns_bytes(vectors * LANES, dtype);
        int64_t group = !t->slices ? f->tables : slice < READ_CACHE ? READ_CACHE / slice : 1;
        for (int64_t table = 0; table < f->tables; table += group) {
            int64_t end = lesser(table + group, f->tables);
            if (SUM_VECTORS == 24 && vectors == 24)
                read_block(t, column, table, end, 24, dtype);
            else if (SUM_VECTORS >= 16 && vectors == 16)
                read_block(t, column, table, end, 16, dtype);
            else if (vectors == 8)
                read_block(t, column, table, end, 8, dtype);
            else
                read_block(t, column, table, end, 4, dtype);
        }
        column += vectors * LANES;
    }
}

static void read_rows(const struct tile *t, int64_t column, int64_t column_end) {
    switch (t->ffn->table_dtype) {
#ifdef LEVEL_VNNI
    case INT8:
    case INT4:
        read_rows_vnni(t, column, column_end);
        break;
#else
    case INT8:
        read_columns(t, column, column_end, INT8);
        break;
    case INT4:
        read_columns(t, column, column_end, INT4);
        break;
#endif
    case BFLOAT16:
        read_columns(t, column, column_end, BFLOAT16);
        break;
    default:
        read_columns(t, column, column_end, FLOAT32);
    }
}

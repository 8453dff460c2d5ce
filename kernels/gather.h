/* The training gather over float32 tables and its gradients, one block of columns at a time: a block's slice of several
 * tables stays in the second-level cache while all tokens stream past. */
#include "vector.h"
#include "level.h"

enum { GATHER_VECTORS = 8, GATHER_CACHE = 1 << 20 };

/* `full` whole vectors of columns, then `part` single columns. Sums run over tables, then cells, always ascending. */
INLINE void gather_block(const struct gather_args *a, int64_t token, int64_t token_end, int64_t column, int64_t table,
                         int64_t table_end, const int full, int64_t part) {
    const int64_t reads = a->tables_count * a->cells;
    for (int64_t n = token; n < token_end; n++) {
        const int32_t *codes = a->codes + n * reads;
        const float *weights = a->weights + n * reads;
        float *y = a->y + n * a->width + column;
        vf sum[GATHER_VECTORS], tail = {0};
        for (int v = 0; v < full; v++)
            sum[v] = table ? v_load(y + v * LANES) : (vf){0};
        if (part && table)
            tail = v_load_part(y + full * LANES, part);
        for (int64_t h = table; h < table_end; h++) {
            const float *rows = a->tables + h * a->rows * a->width + column;
            for (int64_t c = 0; c < a->cells; c++) {
                const float *row = rows + codes[h * a->cells + c] * a->width;
                vf weight = v_set(weights[h * a->cells + c]);
                for (int v = 0; v < full; v++)
                    sum[v] = v_fma(weight, v_load(row + v * LANES), sum[v]);
                if (part)
                    tail = v_fma(weight, v_load_part(row + full * LANES, part), tail);
            }
        }
        for (int v = 0; v < full; v++)
            v_store(y + v * LANES, sum[v]);
        if (part)
            v_store_part(y + full * LANES, tail, part);
    }
}

static void LEVEL(gather)(const struct gather_args *a, int64_t token, int64_t token_end, int64_t column,
                          int64_t column_end) {
    int64_t slice = a->rows * (column_end - column) * (int64_t)sizeof(float);
    int64_t group = slice < GATHER_CACHE ? GATHER_CACHE / slice : 1;
    for (int64_t table = 0; table < a->tables_count; table += group) {
        int64_t end = table + group < a->tables_count ? table + group : a->tables_count;
        int64_t at = column, left;
        while ((left = column_end - at) > 0) {
            int64_t step = left;
            if (left >= 8 * LANES)
                gather_block(a, token, token_end, at, table, end, 8, 0), step = 8 * LANES;
            else if (left >= 4 * LANES)
                gather_block(a, token, token_end, at, table, end, 4, 0), step = 4 * LANES;
            else if (left >= 2 * LANES)
                gather_block(a, token, token_end, at, table, end, 2, 0), step = 2 * LANES;
            else if (left >= LANES)
                gather_block(a, token, token_end, at, table, end, 1, left - LANES);
            else
                gather_block(a, token, token_end, at, table, end, 0, left);
            at += step;
        }
    }
}

/* One row at a time: the row and its gradient stay in registers while the tokens that read it stream past. */
INLINE void backward_block(const struct gather_backward_args *a, int64_t first, int64_t column, const int full,
                           int64_t part) {
    for (int64_t r = 0; r < a->rows; r++) {
        const float *row = a->table + r * a->width + column;
        vf cell[GATHER_VECTORS], grad[GATHER_VECTORS], cell_tail = {0}, grad_tail = {0};
        for (int v = 0; v < full; v++) {
            cell[v] = v_load(row + v * LANES);
            grad[v] = (vf){0};
        }
        if (part)
            cell_tail = v_load_part(row + full * LANES, part);
        for (int64_t i = a->starts[r]; i < a->starts[r + 1]; i++) {
            int64_t read = a->order[i], token = a->cells == 1 ? read : read / a->cells;
            const float *g = a->grad_y + token * a->columns + (column - first);
            vf weight = v_set(a->weights[i]), even = {0}, odd = {0};
            for (int v = 0; v < full; v++) {
                vf value = v_load(g + v * LANES);
                grad[v] = v_fma(weight, value, grad[v]);
                if (v % 2)
                    odd = v_fma(cell[v], value, odd);
                else
                    even = v_fma(cell[v], value, even);
            }
            if (part) {
                vf value = v_load_part(g + full * LANES, part);
                grad_tail = v_fma(weight, value, grad_tail);
                odd = v_fma(cell_tail, value, odd);
            }
            float dot = v_sum(even + odd);
            a->dots[read] = column ? a->dots[read] + dot : dot;
        }
        float *out = a->grad_table + r * a->width + column;
        for (int v = 0; v < full; v++)
            v_store(out + v * LANES, grad[v]);
        if (part)
            v_store_part(out + full * LANES, grad_tail, part);
    }
}

static void LEVEL(gather_backward)(const struct gather_backward_args *a, int64_t column, int64_t column_end) {
    const int64_t first = column;
    int64_t left;
    while ((left = column_end - column) > 0) {
        int64_t step = left;
        if (left >= 8 * LANES)
            backward_block(a, first, column, 8, 0), step = 8 * LANES;
        else if (left >= 4 * LANES)
            backward_block(a, first, column, 4, 0), step = 4 * LANES;
        else if (left >= 2 * LANES)
            backward_block(a, first, column, 2, 0), step = 2 * LANES;
        else if (left >= LANES)
            backward_block(a, first, column, 1, left - LANES);
        else
            backward_block(a, first, column, 0, left);
        column += step;
    }
}

/* Training ops: how the work is divided among threads. Each output element is computed by one thread in one order. */
#include "training.h"

#include <string.h>

#include "level.h"
#include "memory.h"

enum { GRADIENT_CACHE = 1 << 20 }; /* bytes of grad_y that stay cached */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

int codes_valid(const int32_t *codes, int64_t count, int64_t rows) {
    uint32_t highest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t code = (uint32_t)codes[i];
        highest = code > highest ? code : highest;
    }
    return count == 0 || (int64_t)highest < rows;
}

void gather(const float *tables, const int32_t *codes, const float *weights, float *y, int64_t tokens,
            int64_t tables_count, int64_t rows, int64_t width, int64_t cells, int threads) {
    const struct level *level = level_current();
    struct gather_args args = {tables, codes, weights, y, tokens, tables_count, rows, width, cells};
    if (tables_count == 0) {
        memset(y, 0, (size_t)(tokens * width) * sizeof(float));
        return;
    }
    /* blocks of columns share no table bytes; tokens are split only as far as an even division needs it */
    int64_t blocks = (width + level->gather_columns - 1) / level->gather_columns;
    int64_t tiles = smaller(threads / gcd(blocks, threads), tokens);
    int64_t items = blocks * tiles;
#pragma omp parallel for num_threads(threads) schedule(static) if (items > 1 && tokens * tables_count * width > 1 << 16)
    for (int64_t item = 0; item < items; item++) {
        int64_t column = item / tiles * level->gather_columns, tile = item % tiles;
        level->gather(&args, tokens * tile / tiles, tokens * (tile + 1) / tiles, column,
                      smaller(width, column + level->gather_columns));
    }
}

/* A counting sort of one table's reads by row; within a row reads stay ascending. */
static void sort_reads(const int32_t *codes, const float *weights, int64_t tokens, int64_t stride, int64_t cells,
                       int64_t rows, int32_t *starts, int32_t *order, float *sorted_weights) {
    memset(starts, 0, (size_t)(rows + 1) * sizeof(int32_t));
    for (int64_t n = 0; n < tokens; n++)
        for (int64_t c = 0; c < cells; c++)
            starts[codes[n * stride + c] + 1]++;
    for (int64_t r = 0; r < rows; r++)
        starts[r + 1] += starts[r];
    for (int64_t n = 0; n < tokens; n++)
        for (int64_t c = 0; c < cells; c++) {
            int32_t at = starts[codes[n * stride + c]]++;
            order[at] = (int32_t)(n * cells + c);
            sorted_weights[at] = weights[n * stride + c];
        }
    /* each start now stands where the next row's reads begin */
    memmove(starts + 1, starts, (size_t)rows * sizeof(int32_t));
    starts[0] = 0;
}

/* Where a table's sorted reads lie in the workspace. */
struct reads {
    int32_t *starts, *order;
    float *weights, *dots;
};

static struct reads reads_at(int32_t *workspace, int64_t rows, int64_t count, int64_t table) {
    int32_t *starts = workspace + table * (rows + 1 + 3 * count);
    int32_t *order = starts + rows + 1;
    return (struct reads){starts, order, (float *)(order + count), (float *)(order + 2 * count)};
}

int gather_backward(const float *grad_y, const float *tables, const int32_t *codes, const float *weights,
                    float *grad_tables, float *grad_weights, int64_t tokens, int64_t tables_count, int64_t rows,
                    int64_t width, int64_t cells, int threads) {
    const struct level *level = level_current();
    const int64_t count = tokens * cells, stride = tables_count * cells;
    /* a block of grad_y, [tokens, columns] in one piece, stays in the second-level cache while a thread's tables go by */
    int64_t columns = level->gather_columns;
    while (columns > 32 && tokens * columns * 4 > GRADIENT_CACHE)
        columns /= 2;
    const int64_t blocks = (width + columns - 1) / columns;
    const int64_t packed_size = blocks * tokens * columns;
    float *packed = scratch((size_t)(packed_size + tables_count * (rows + 1 + 3 * count)) * 4);
    if (!packed)
        return -1;
    int32_t *workspace = (int32_t *)packed + packed_size;
    int parallel = tokens * tables_count * width > 1 << 16;
#pragma omp parallel num_threads(threads) if (parallel)
    {
#pragma omp for schedule(static) nowait
        for (int64_t n = 0; n < tokens; n++)
            for (int64_t block = 0; block < blocks; block++) {
                int64_t column = block * columns;
                memcpy(packed + (block * tokens + n) * columns, grad_y + n * width + column,
                       (size_t)smaller(columns, width - column) * 4);
            }
#pragma omp for schedule(static)
        for (int64_t h = 0; h < tables_count; h++) {
            struct reads r = reads_at(workspace, rows, count, h);
            sort_reads(codes + h * cells, weights + h * cells, tokens, stride, cells, rows, r.starts, r.order, r.weights);
        }
        for (int64_t block = 0; block < blocks; block++) {
            int64_t column = block * columns;
#pragma omp for schedule(static) nowait
            for (int64_t h = 0; h < tables_count; h++) {
                struct reads r = reads_at(workspace, rows, count, h);
                struct gather_backward_args args = {
                    packed + block * tokens * columns, tables + h * rows * width, grad_tables + h * rows * width,
                    r.starts, r.order, r.weights, r.dots, rows, width, cells, columns};
                level->gather_backward(&args, column, smaller(width, column + columns));
            }
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t n = 0; n < tokens; n++)
            for (int64_t h = 0; h < tables_count; h++) {
                const float *dots = reads_at(workspace, rows, count, h).dots;
                for (int64_t c = 0; c < cells; c++)
                    grad_weights[n * stride + h * cells + c] = dots[n * cells + c];
            }
    }
    return 0;
}

enum { MARGIN_CHUNK = 4096 }; /* tables a work item; a multiple of every level's lanes */

void margin_scores(const float *z, int64_t bits, int64_t count, int32_t *codes, float *scores, int threads) {
    const struct level *level = level_current();
    int64_t chunks = (count + MARGIN_CHUNK - 1) / MARGIN_CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static) if (chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t at = chunk * MARGIN_CHUNK;
        level->margin(z + at * bits, bits, smaller(MARGIN_CHUNK, count - at), codes + at, scores + at);
    }
}

void margin_scores_backward(const float *z, const float *scores, const float *grad_scores, int64_t bits, int64_t count,
                            float *grad_z, int threads) {
    const struct level *level = level_current();
    int64_t chunks = (count + MARGIN_CHUNK - 1) / MARGIN_CHUNK;
#pragma omp parallel for num_threads(threads) schedule(static) if (chunks > 1)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t at = chunk * MARGIN_CHUNK;
        level->margin_backward(z + at * bits, scores + at, grad_scores + at, bits, smaller(MARGIN_CHUNK, count - at),
                               grad_z + at * bits);
    }
}

/* A tile of tokens on its way through one FFN, and the team of threads that works on it. */
#ifndef COMPRESS_TILE_H
#define COMPRESS_TILE_H

#include "ffn.h"
#include "memory.h"

enum { TILE_TOKENS = 512 };
enum { TEAM_WORK = 1 << 17 };   /* multiply-adds, from which on more than one thread pays */
enum { ROWS_TILE = 16 };        /* tokens at a time that read whole rows, where these fit: */
enum { ROWS_CACHED = 6 << 20 }; /* bytes of all their rows */
enum { PREFETCH_TOKENS = 4 };   /* up to so many, a thread's whole rows are fetched as soon as they are known */
enum { QUANTISED_TOKENS = 96 }; /* at a time: they stay in the second-level cache while all weights stream past */
enum { HASHED_TOKENS = 48 };    /* by matrices in panels, at a time */
enum { STEP_TOKENS = 8 };       /* up to so many, a larger team shares the blocks of BH4's factors instead of tokens */

/* Inputs of products with int8 weights (quantise.h). */
struct quantised {
    char *values;     /* [tokens, stride]: 16-bit integers, or bytes; zeros behind the last */
    float *scales;    /* [tokens] */
    int32_t *sums;    /* [tokens]: of the values, where they are bytes */
    int64_t stride;   /* in bytes */
};

/* Rows that are fetched while matrices are multiplied (fetch.h). */
struct fetch {
    const char *rows;          /* of all tables, from the first column that is read */
    const int32_t *next, *end; /* numbers of rows */
    int64_t row_bytes;
    int64_t lines, line;       /* cache lines of a row that are read, and the next one of the next row */
};

struct tile {
    const struct ffn *ffn;
    const float *x; /* [tokens, d_in] */
    float *y;       /* [tokens, d_out] */
    int64_t tokens;
    float *inputs;  /* [tokens, input_width]: code, gate (later the neurons' outputs), up */
    int32_t *index; /* [tokens, cells, groups * PANEL]: rows to read, numbered through all tables */
    float *weight;  /* likewise: what each row counts; fractions where rows_vnni.h reads them */
    float *out;     /* [tokens, out_width] */
    float *mixed[2]; /* [tokens, width]: what BH4's blocks gave in a step of the hash, and in the next */
    float *work;    /* work_floats for this thread */
    struct quantised q; /* room for QUANTISED_TOKENS, for this thread */
    struct fetch *fetch; /* this thread's */
    int slices;     /* tables are read in slices that stay cached, not row by row */
    int rank, size; /* this thread's place in the team */
    int step, steps; /* of the hash, which takes several where a team shares BH4's factors */
};

static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

/* This thread's share of n units of work. */
static inline int64_t share(const struct tile *t, int64_t n) { return n * t->rank / t->size; }
static inline int64_t share_end(const struct tile *t, int64_t n) { return n * (t->rank + 1) / t->size; }

/* Where a row's columns begin, a multiple of ROW_UNIT. */
static inline int64_t row_at(const struct ffn *f, int64_t column) { return row_columns_bytes(column, f->table_dtype); }

/* So many tokens' rows may be fetched before they are read. */
static inline int rows_fit(const struct ffn *f, int64_t tokens) {
    return tokens * f->tables * f->cells * f->row_bytes <= ROWS_CACHED;
}

static inline int64_t quantised_stride(int64_t k) { return (k + PANEL - 1) / PANEL * PANEL; }

/* Inputs a token that a thread has quantised at a time. */
static inline int64_t quantised_width(const struct ffn *f) {
    int64_t widths[] = {f->d_in, f->rank_width, f->neuron_width, f->width}, most = 0;
    for (int i = 0; i < 4; i++)
        most = widths[i] > most ? widths[i] : most;
    return f->weight_dtype == INT8 ? quantised_stride(most) : 0;
}

/* Floats of `work` that a thread needs. */
static inline int64_t work_floats(const struct ffn *f) {
    enum { TRANSFORM_TOKENS = 16 };
    int64_t panels = HASHED_TOKENS * MAX_BITS * PANEL;
    int64_t transforms = TRANSFORM_TOKENS * (3 + f->repeats) * f->width;
    return panels > transforms ? panels : transforms;
}

#endif

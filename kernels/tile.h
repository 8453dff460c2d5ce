/* A tile of tokens on its way through one FFN, and the team of threads that works on it. */
#ifndef COMPRESS_TILE_H
#define COMPRESS_TILE_H

#include "ffn.h"

enum { TILE_TOKENS = 512 };

struct tile {
    const struct ffn *ffn;
    const float *x; /* [tokens, d_in] */
    float *y;       /* [tokens, d_out] */
    int64_t tokens;
    float *inputs;  /* [tokens, input_width]: code, gate (later the neurons' outputs), up */
    int32_t *index; /* [tokens, cells, groups * PANEL]: rows to read, numbered through all tables */
    float *weight;  /* likewise: what each row counts */
    float *out;     /* [tokens, out_width] */
    float *work;    /* work_floats for this thread */
    int vnni;       /* weights of int8 rows are fractions (rows_vnni.h) */
    int rank, size; /* this thread's place in the team */
};

static inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

/* This thread's share of n units of work. */
static inline int64_t share(const struct tile *t, int64_t n) { return n * t->rank / t->size; }
static inline int64_t share_end(const struct tile *t, int64_t n) { return n * (t->rank + 1) / t->size; }

/* Floats of `work` that a thread needs. */
static inline int64_t work_floats(const struct ffn *f) {
    enum { LOWRANK_TOKENS = 48, TRANSFORM_TOKENS = 16 };
    int64_t panels = LOWRANK_TOKENS * MAX_BITS * PANEL;
    int64_t transforms = TRANSFORM_TOKENS * (3 + f->repeats) * f->width;
    return panels > transforms ? panels : transforms;
}

#endif

/* One table of functions per instruction set. Every level compiles the same bodies (gather.h, margin.h, ...) at its own
 * vector width; levels.c picks one when the process starts. No function here spawns threads: each does a range of the
 * work, and the drivers (training.c, inference.c) divide it. */
#ifndef COMPRESS_LEVEL_H
#define COMPRESS_LEVEL_H

#include <stdint.h>

/* y[n, columns] = sum over h, c of weights[n, h, c] * tables[h, codes[n, h, c], columns] */
struct gather_args {
    const float *tables;   /* [tables_count, rows, width] */
    const int32_t *codes;  /* [tokens, tables_count, cells] */
    const float *weights;  /* [tokens, tables_count, cells] */
    float *y;              /* [tokens, width] */
    int64_t tokens, tables_count, rows, width, cells;
};

/* The gradient of one table over one block of columns, its reads sorted by row. */
struct gather_backward_args {
    const float *grad_y;       /* [tokens, columns]: the block alone, in one piece */
    const float *table;        /* [rows, width] */
    float *grad_table;         /* [rows, width] */
    const int32_t *starts;     /* [rows + 1]: where each row's reads begin in `order` */
    const int32_t *order;      /* [reads]: indices of reads (token * cells + cell), by row, then ascending */
    const float *weights;      /* [reads], in `order`'s order */
    float *dots;               /* [reads], by read: <grad_y[token], table row> over the columns done so far */
    int64_t rows, width, cells, columns;
};

struct tile;
struct linear_part;

struct level {
    const char *name;
    int64_t gather_columns;  /* columns a block of the training gather */
    void (*gather)(const struct gather_args *, int64_t token, int64_t token_end, int64_t column, int64_t column_end);
    void (*gather_backward)(const struct gather_backward_args *, int64_t column, int64_t column_end);
    void (*margin)(const float *z, int64_t bits, int64_t count, int32_t *codes, float *scores);
    void (*margin_backward)(const float *z, const float *scores, const float *grad_scores, int64_t bits, int64_t count,
                            float *grad_z);
    void (*forward_code)(const struct tile *);
    void (*forward_hash)(const struct tile *);
    void (*forward_neurons)(const struct tile *);
    void (*forward_outputs)(const struct tile *);
    void (*linear_part)(const struct linear_part *);
};

extern const struct level level_scalar;
#if defined(__x86_64__) && defined(__GNUC__)
#define COMPRESS_X86 1
extern const struct level level_avx2;
extern const struct level level_avx512;
extern const struct level level_avx512_vnni;
#endif
#if defined(__aarch64__)
#define COMPRESS_NEON 1
extern const struct level level_neon;
#endif

/* Best first; `levels_available` counts how many this processor runs, and they stand at the head of the list. */
int levels_available(void);
const struct level *level_at(int index);
const struct level *level_current(void);
void level_select(int index);

#endif

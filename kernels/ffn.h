/* One packed LookupFFN: its sizes, and where its parts lie.
 *
 *   h = A x + a;   z = P(h or x) + c;   codes and scores of z;
 *   y = U h + W_down (act(W_gate x) * W_up x) + bias + sum of weighted table rows
 *
 * Matrices lie in panels of PANEL outputs: float32 as [panel][k][PANEL], bfloat16 as [panel][k / 2][PANEL][2], int8 as
 * [panel][k / 4][PANEL][4], the layout of dot products of bytes. Rows in 4 bits lie in units of ROW_UNIT columns: as a
 * signed byte, byte j of a unit is 16 (column j + ROW_UNIT / 2) + (column j) + 8. The format is the same for every
 * instruction set. */
#ifndef COMPRESS_FFN_H
#define COMPRESS_FFN_H

#include <stddef.h>
#include <stdint.h>

enum { PANEL = 16, ROW_UNIT = 64, MAX_BITS = 16, BH4_FACTORS = 4 };

enum projection { HADAMARD, LOWRANK, DENSE, BH4, ACDC };
enum activation { GELU, GELU_TANH, QUICK_GELU, RELU, RELU2, SILU, TANH, SIGMOID };
enum dtype { FLOAT32, BFLOAT16, INT8, INT4 /* tables alone */ };

/* The numbers that Python passes, in this order. */
enum setting {
    D_IN, D_OUT, TABLES, BITS, PROJECTION, BLOCK, RANK, NEURONS, GATED, ACTIVATION, CELLS, TABLE_DTYPE, WEIGHT_DTYPE,
    INPUT_BITS, /* what the inputs of int8 matrices become: 8 or 16 bits; those of the hash always 16 */
    SETTINGS
};

/* Parts of the one buffer that holds everything but the tables. */
enum part {
    INPUT,        /* panels over x: code, then gate, then up, each padded to whole panels */
    INPUT_SCALE,  /* float32 an output, behind each matrix in int8 */
    INPUT_BIAS,   /* float32, in the same order */
    HASH,         /* lowrank, dense: panels [group][bit][PANEL tables]; BH4: panels of each block;
                   * Hadamard [repeat][2][width], ACDC: float32 diagonals */
    HASH_SCALE,
    HASH_BIAS,    /* float32: lowrank, dense [group][bit][PANEL tables]; Hadamard [bits][groups * PANEL];
                   * BH4, ACDC [tables * bits] */
    LINEAR,       /* panels over the code: U */
    LINEAR_SCALE,
    DOWN,         /* panels over the neurons */
    DOWN_SCALE,
    OUTPUT_BIAS,  /* float32 [out_width] */
    SCALES,       /* float32 [groups * PANEL], integer tables only */
    SHARPNESS,    /* float32: 2 / exp(log_temperature), two cells only */
    ROTATIONS,    /* float32 [2, width]: cosines and sines of the fast DCT, ACDC only */
    PARTS
};

struct ffn {
    int64_t d_in, d_out, tables, bits, projection, block, rank, neurons, gated, activation, cells;
    int64_t table_dtype, weight_dtype, input_bits;
    int64_t rows;           /* rows a table */
    int64_t groups;         /* tables in groups of PANEL */
    int64_t rank_width;     /* rank, padded to whole panels */
    int64_t neuron_width;   /* neurons, likewise */
    int64_t input_width;    /* code, gate, up: what the input panels give */
    int64_t out_width;      /* d_out, padded to ROW_UNIT */
    int64_t row_bytes;      /* bytes a table row */
    int64_t transform;      /* D: size of the Hadamard or cosine transforms */
    int64_t width;          /* D, padded to a whole panel */
    int64_t repeats;        /* transforms of width D */
    int64_t block_width;    /* BH4's block, at least a panel */
    int64_t blocks;         /* blocks a BH4 factor */
    int64_t hadamard_from;  /* first span of the Hadamard transform that is not folded into the blocks */
    int64_t offset[PARTS], bytes[PARTS];
    int64_t weight_bytes, table_bytes;  /* of the two buffers */
    const char *weights, *table_rows;
};

/* Bytes of a row's columns, which are whole units where they are in 4 bits. */
static inline int64_t row_columns_bytes(int64_t columns, int64_t dtype) {
    return dtype == FLOAT32 ? columns * 4 : dtype == BFLOAT16 ? columns * 2 : dtype == INT8 ? columns : columns / 2;
}

static inline const float *part_floats(const struct ffn *f, int part) {
    return (const float *)(f->weights + f->offset[part]);
}

/* Fill in sizes and offsets; 0, or -1 where the settings contradict each other. */
int ffn_layout(struct ffn *ffn, const int64_t settings[SETTINGS]);

/* Run x [tokens, d_in] -> y [tokens, d_out]. A token's result depends neither on the other tokens nor on `threads`.
 * 0, or -1 where memory for intermediate results cannot be had. */
int ffn_forward(const struct ffn *ffn, const float *x, float *y, int64_t tokens, int threads);

/* Threads of another library: it calls task(context, index, count) for every index below `count`, which is at most
 * `threads`, and returns when all are done. Tasks may run one after the other. */
typedef void (*ffn_task)(void *context, int index, int count);
typedef void (*ffn_pool)(int threads, ffn_task task, void *context);
int ffn_forward_on(ffn_pool pool, const struct ffn *ffn, const float *x, float *y, int64_t tokens, int threads);

#endif

/* One linear layer with int8 weights by itself, y = x W^T + bias: what a model's other layers become (pack.rest). */
#ifndef COMPRESS_LINEAR_H
#define COMPRESS_LINEAR_H

#include <stdint.h>

struct linear {
    const char *panels;  /* [panel][k / 4][PANEL][4], as ffn.h has it */
    const float *scale;  /* an output, in whole panels */
    const float *bias;   /* likewise, or NULL */
    int64_t k, outputs;
};

/* x [tokens, k] -> y [tokens, outputs], x in 8 bits with a scale a token. A token's result depends neither on the other
 * tokens nor on `threads`. 0, or -1 where memory for the rounded inputs cannot be had. */
int linear_forward(const struct linear *linear, const float *x, float *y, int64_t tokens, int threads);

/* A thread's part of it, at the level in use. */
struct linear_part {
    const struct linear *linear;
    const float *x;
    float *y;
    int64_t token, token_end, panel, panel_end;
    char *memory; /* linear.c: for what is rounded */
};

#endif

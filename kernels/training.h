/* Training ops over whole tensors, float32 and contiguous. What `threads` is never changes a result. */
#ifndef COMPRESS_TRAINING_H
#define COMPRESS_TRAINING_H

#include <stdint.h>

/* Whether every code lies in [0, rows). */
int codes_valid(const int32_t *codes, int64_t count, int64_t rows);

void gather(const float *tables, const int32_t *codes, const float *weights, float *y, int64_t tokens,
            int64_t tables_count, int64_t rows, int64_t width, int64_t cells, int threads);

/* Returns 0, or -1 where memory for the sorted reads cannot be had. */
int gather_backward(const float *grad_y, const float *tables, const int32_t *codes, const float *weights,
                    float *grad_tables, float *grad_weights, int64_t tokens, int64_t tables_count, int64_t rows,
                    int64_t width, int64_t cells, int threads);

void margin_scores(const float *z, int64_t bits, int64_t count, int32_t *codes, float *scores, int threads);

void margin_scores_backward(const float *z, const float *scores, const float *grad_scores, int64_t bits, int64_t count,
                            float *grad_z, int threads);

#endif

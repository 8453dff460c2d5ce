/* Runs packed FFNs and int8 linear layers from files at every instruction set of the machine, for builds with sanitisers
 * and for processors that are only emulated. A file begins with 0 for an FFN: SETTINGS numbers, the count of tokens and a
 * tolerance; weights, tables; or with 1 for a linear layer: its inputs, outputs, whether it has a bias, the count of tokens
 * and a tolerance; panels, scales, biases. Then x and the expected y, whose tokens are NaN where they cannot be told.
 * Buffers are exactly as large as they must be, so that the sanitiser sees any read behind them. Prints the levels that ran;
 * 1 where a result is wrong. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ffn.h"
#include "level.h"
#include "linear.h"
#include "memory.h"

static void *take(FILE *file, size_t bytes, size_t alignment) {
    void *memory = alignment ? aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment) : malloc(bytes);
    if ((bytes && !memory) || fread(memory, 1, bytes, file) != bytes) {
        fprintf(stderr, "a file is too short\n");
        exit(2);
    }
    return memory;
}

static int wrong(const float *y, const float *expected, int64_t count, double tolerance) {
    for (int64_t i = 0; i < count; i++)
        if (!isnan(expected[i]) && !(fabs((double)y[i] - expected[i]) <= tolerance)) {
            fprintf(stderr, "element %lld: %g instead of %g\n", (long long)i, y[i], expected[i]);
            return 1;
        }
    return 0;
}

struct call {
    int (*forward)(const void *layer, const float *x, float *y, int64_t tokens, int threads);
    int (*in_turn)(const void *layer, const float *x, float *y, int64_t tokens, int threads); /* or NULL */
    const void *layer;
    int64_t d_in, d_out, tokens;
    double tolerance;
};

static int student(const void *f, const float *x, float *y, int64_t tokens, int threads) {
    return ffn_forward(f, x, y, tokens, threads);
}

/* A pool of one thread, for which the last task comes first. */
static void run_in_turn(int threads, ffn_task task, void *context) {
    for (int index = threads; index-- > 0;)
        task(context, index, threads);
}

static int student_in_turn(const void *f, const float *x, float *y, int64_t tokens, int threads) {
    return ffn_forward_on(run_in_turn, f, x, y, tokens, threads);
}

static int linear(const void *l, const float *x, float *y, int64_t tokens, int threads) {
    return linear_forward(l, x, y, tokens, threads);
}

/* All tokens, by one thread and by several, single ones, and some by a team that never meets; x and the expected y are what is left of the file. */
static int run(const struct call *c, FILE *file, const char *path) {
    const size_t bytes = (size_t)(c->tokens * c->d_out) * 4;
    float *x = take(file, (size_t)(c->tokens * c->d_in) * 4, 0);
    float *expected = take(file, bytes, 0), *y = malloc(bytes), *other = malloc(bytes);
    int failed = 0;
    for (int level = 0; level < levels_available(); level++) {
        level_select(level);
        failed |= c->forward(c->layer, x, y, c->tokens, 1) || wrong(y, expected, c->tokens * c->d_out, c->tolerance);
        for (int threads = 2; threads <= 3; threads++)
            failed |= c->forward(c->layer, x, other, c->tokens, threads) || memcmp(y, other, bytes);
        for (int64_t n = 0; n < c->tokens; n += c->tokens / 3 + 1)
            failed |= c->forward(c->layer, x + n * c->d_in, other, 1, 2) ||
                      memcmp(y + n * c->d_out, other, (size_t)c->d_out * 4);
        const int64_t few = c->tokens < 11 ? c->tokens : 11;
        if (c->in_turn)
            failed |= c->in_turn(c->layer, x, other, few, 3) || memcmp(y, other, (size_t)(few * c->d_out) * 4);
        if (failed) {
            fprintf(stderr, "%s at %s\n", path, level_at(level)->name);
            break;
        }
    }
    free(x), free(expected), free(y), free(other);
    return failed;
}

static int run_student(FILE *file, const char *path) {
    struct { int64_t settings[SETTINGS], tokens; double tolerance; } head;
    struct ffn f;
    if (fread(&head, sizeof head, 1, file) != 1 || ffn_layout(&f, head.settings))
        return 1;
    char *weights = take(file, (size_t)f.weight_bytes, CACHE_LINE), *tables = take(file, (size_t)f.table_bytes, 0);
    f.weights = weights, f.table_rows = tables;
    const int failed = run(&(struct call){student, student_in_turn, &f, f.d_in, f.d_out, head.tokens, head.tolerance}, file, path);
    free(weights), free(tables);
    return failed;
}

static int run_linear(FILE *file, const char *path) {
    struct { int64_t k, outputs, has_bias, tokens; double tolerance; } head;
    if (fread(&head, sizeof head, 1, file) != 1)
        return 1;
    const int64_t panels = (head.outputs + PANEL - 1) / PANEL;
    char *values = take(file, (size_t)(panels * ((head.k + 3) / 4) * PANEL * 4), CACHE_LINE);
    float *scale = take(file, (size_t)panels * PANEL * 4, 0);
    float *bias = head.has_bias ? take(file, (size_t)panels * PANEL * 4, 0) : NULL;
    const struct linear l = {.panels = values, .scale = scale, .bias = bias, .k = head.k, .outputs = head.outputs};
    const int failed = run(&(struct call){linear, NULL, &l, head.k, head.outputs, head.tokens, head.tolerance}, file, path);
    free(values), free(scale), free(bias);
    return failed;
}

static int run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    int64_t layer_alone;
    if (!file || fread(&layer_alone, sizeof layer_alone, 1, file) != 1)
        return 1;
    const int failed = layer_alone ? run_linear(file, path) : run_student(file, path);
    fclose(file);
    return failed;
}

int main(int count, char **paths) {
    for (int i = 1; i < count; i++)
        if (run_file(paths[i]))
            return 1;
    for (int level = 0; level < levels_available(); level++)
        printf("%s\n", level_at(level)->name);
    return 0;
}

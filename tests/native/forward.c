/* Runs packed FFNs from files at every instruction set of the machine, for builds with sanitisers and for processors that
 * are only emulated. Each file: SETTINGS numbers, the count of tokens and a tolerance; weights, tables, x and the expected
 * y, whose tokens are NaN where they cannot be told. Buffers are exactly as large as they must be, so that the sanitiser
 * sees any read behind them. Prints the levels that ran; 1 where a result is wrong. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ffn.h"
#include "level.h"
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

static int run(const char *path) {
    FILE *file = fopen(path, "rb");
    struct { int64_t settings[SETTINGS], tokens; double tolerance; } head;
    if (!file || fread(&head, sizeof head, 1, file) != 1)
        return 1;
    struct ffn f;
    if (ffn_layout(&f, head.settings))
        return 1;
    char *weights = take(file, (size_t)f.weight_bytes, CACHE_LINE), *tables = take(file, (size_t)f.table_bytes, 0);
    float *x = take(file, (size_t)(head.tokens * f.d_in) * 4, 0);
    const size_t bytes = (size_t)(head.tokens * f.d_out) * 4;
    float *expected = take(file, bytes, 0), *y = malloc(bytes), *other = malloc(bytes);
    fclose(file);
    f.weights = weights, f.table_rows = tables;
    int failed = 0;
    for (int level = 0; level < levels_available(); level++) {
        level_select(level);
        failed |= ffn_forward(&f, x, y, head.tokens, 1) || wrong(y, expected, head.tokens * f.d_out, head.tolerance);
        for (int threads = 2; threads <= 3; threads++)
            failed |= ffn_forward(&f, x, other, head.tokens, threads) || memcmp(y, other, bytes);
        for (int64_t n = 0; n < head.tokens; n += head.tokens / 3 + 1)
            failed |= ffn_forward(&f, x + n * f.d_in, other, 1, 2) ||
                      memcmp(y + n * f.d_out, other, (size_t)f.d_out * 4);
        if (failed) {
            fprintf(stderr, "%s at %s\n", path, level_at(level)->name);
            break;
        }
    }
    free(weights), free(tables), free(x), free(expected), free(y), free(other);
    return failed;
}

int main(int count, char **paths) {
    for (int i = 1; i < count; i++)
        if (run(paths[i]))
            return 1;
    for (int level = 0; level < levels_available(); level++)
        printf("%s\n", level_at(level)->name);
    return 0;
}

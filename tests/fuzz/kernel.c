/* libFuzzer's entry into the kernel: a student's settings, an int8 layer's sizes or a training function's, tokens and
 * threads from the input, buffers exactly as large as the layout says, filled from the rest of the input; at an
 * instruction set that the input names. With REPLAY a program that runs the files it is given at every one, and prints
 * how many these are and how many of them the kernel took. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ffn.h"
#include "level.h"
#include "linear.h"
#include "memory.h"
#include "training.h"

enum { MOST_BYTES = 1 << 18, MOST_WORK = 1 << 20 };

struct input {
    const uint8_t *data;
    size_t size, at;
};

static uint8_t next(struct input *in) { return in->at < in->size ? in->data[in->at++] : 0; }

/* Mostly small numbers; 255 announces any 64 bits, 254 something near a power of two. */
static int64_t number(struct input *in) {
    uint8_t first = next(in);
    if (first == 254) {
        uint8_t power = next(in) % 63;
        return ((int64_t)1 << power) + (int8_t)next(in);
    }
    if (first < 255)
        return first;
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | next(in);
    return (int64_t)value;
}

/* One of `count` that exist, from `first` on; seldom any number. */
static int64_t choice(struct input *in, int64_t first, int64_t count) {
    uint8_t byte = next(in);
    return byte >= 250 ? number(in) : first + byte % count;
}

static int64_t setting(struct input *in, int which) {
    switch (which) {
    case BITS:
        return choice(in, 1, MAX_BITS);
    case PROJECTION:
        return choice(in, HADAMARD, ACDC + 1);
    case BLOCK:
        return (int64_t)1 << (choice(in, 0, 7) & 31);
    case GATED:
        return choice(in, 0, 2);
    case ACTIVATION:
        return choice(in, GELU, SIGMOID + 1);
    case CELLS:
        return choice(in, 1, 2);
    case TABLE_DTYPE:
        return choice(in, FLOAT32, INT4 + 1);
    case WEIGHT_DTYPE:
        return choice(in, FLOAT32, INT8 + 1);
    case INPUT_BITS: {
        const int64_t units = choice(in, 1, 2);
        return units == 1 || units == 2 ? 8 * units : units;
    }
    default:
        return number(in);
    }
}

/* A buffer of its own, so that the sanitiser sees what is read behind it; nothing in it is left as it was allocated. */
static void *filled(struct input *in, size_t bytes, size_t alignment) {
    size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    uint8_t *memory = aligned_alloc(alignment, rounded ? rounded : alignment);
    uint8_t pattern[61];
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = next(in);
    for (size_t i = 0; i < bytes; i++)
        memory[i] = pattern[i % sizeof pattern];
    return memory;
}

static int forward(struct input *in) {
    int64_t settings[SETTINGS];
    for (int i = 0; i < SETTINGS; i++)
        settings[i] = setting(in, i);
    struct ffn f;
    const int64_t tokens = next(in) % 40, threads = 1 + next(in) % 3;
    if (ffn_layout(&f, settings))
        return 0;
    const int64_t work = f.weight_bytes + (f.repeats + 4) * f.width * 16;
    if (f.weight_bytes < 0 || f.table_bytes < 0)
        abort();
    if (f.weight_bytes > MOST_BYTES || f.table_bytes > MOST_BYTES || f.d_in > MOST_BYTES || work * (tokens + 1) > MOST_WORK)
        return 0;
    for (int part = 0; part < PARTS; part++)
        if (f.bytes[part] < 0 || f.offset[part] < 0 || f.offset[part] + f.bytes[part] > f.weight_bytes)
            abort();
    char *weights = filled(in, (size_t)f.weight_bytes, CACHE_LINE), *tables = filled(in, (size_t)f.table_bytes, 4);
    float *x = filled(in, (size_t)(tokens * f.d_in) * 4, 4), *y = malloc((size_t)(tokens * f.d_out) * 4);
    f.weights = weights, f.table_rows = tables;
    ffn_forward(&f, x, y, tokens, (int)threads);
    free(weights), free(tables), free(x), free(y);
    return 1;
}

static void linear(struct input *in) {
    const int64_t tokens = next(in) % 40, k = 1 + next(in) % 200, outputs = 1 + next(in) % 120;
    const int64_t wide = (outputs + PANEL - 1) / PANEL * PANEL;
    const int biased = next(in) % 2;
    char *panels = filled(in, (size_t)(wide * ((k + 3) / 4 * 4)), CACHE_LINE);
    float *scale = filled(in, (size_t)wide * 4, CACHE_LINE);
    float *bias = biased ? filled(in, (size_t)wide * 4, CACHE_LINE) : NULL;
    float *x = filled(in, (size_t)(tokens * k) * 4, 4), *y = malloc((size_t)(tokens * outputs) * 4);
    const struct linear l = {.panels = panels, .scale = scale, .bias = bias, .k = k, .outputs = outputs};
    linear_forward(&l, x, y, tokens, 1 + next(in) % 3);
    free(panels), free(scale), free(bias), free(x), free(y);
}

static void training(struct input *in) {
    const int64_t tokens = next(in) % 20, count = 1 + next(in) % 20, bits = 1 + next(in) % 8, width = 1 + next(in) % 80;
    const int64_t cells = 1 + next(in) % 2, rows = (int64_t)1 << bits, reads = tokens * count * cells;
    float *tables = filled(in, (size_t)(count * rows * width) * 4, 4), *y = malloc((size_t)(tokens * width) * 4);
    float *z = filled(in, (size_t)(tokens * count * bits) * 4, 4), *scores = malloc((size_t)(tokens * count) * 4);
    int32_t *codes = filled(in, (size_t)reads * 4, 4);
    float *weights = filled(in, (size_t)reads * 4, 4), *grad_tables = malloc((size_t)(count * rows * width) * 4);
    float *grad_weights = malloc((size_t)reads * 4), *grad_z = malloc((size_t)(tokens * count * bits) * 4);
    if (codes_valid(codes, reads, rows)) {
        gather(tables, codes, weights, y, tokens, count, rows, width, cells, 1);
        gather_backward(y, tables, codes, weights, grad_tables, grad_weights, tokens, count, rows, width, cells, 1);
    }
    int32_t *hashed = malloc((size_t)(tokens * count) * 4);
    margin_scores(z, bits, tokens * count, hashed, scores, 1);
    if (!codes_valid(hashed, tokens * count, rows))
        abort();
    margin_scores_backward(z, scores, scores, bits, tokens * count, grad_z, 1);
    free(hashed);
    free(tables), free(y), free(z), free(scores), free(codes), free(weights), free(grad_tables), free(grad_weights);
    free(grad_z);
}

/* Whether the kernel ran: settings may be refused. */
static int run(const uint8_t *data, size_t size) {
    struct input in = {data, size, 1};
    const int kind = size ? data[0] % 8 : 0;
    if (kind > 1)
        return forward(&in);
    if (kind)
        linear(&in);
    else
        training(&in);
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    level_select(size ? data[0] / 8 % levels_available() : 0);
    run(data, size);
    return 0;
}

#ifdef REPLAY
int main(int count, char **paths) {
    static uint8_t data[1 << 16];
    int ran = 0;
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(paths[i], "rb");
        if (!file)
            return 2;
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        for (int level = 0; level < levels_available(); level++) {
            level_select(level);
            ran += run(data, size);
        }
    }
    printf("%d %d\n", count - 1, ran / levels_available());
    return 0;
}
#endif

/* Inference: how tokens are divided among threads. Many tokens: each thread takes its own; few: all threads work on the
 * same tile, each on its own outputs. */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "level.h"
#include "memory.h"
#include "tile.h"

enum { OWN_TOKENS = 32, TEAM_WORK = 1 << 17 };

#ifdef _OPENMP
static int thread_number(void) { return omp_get_thread_num(); }
static int thread_count(void) { return omp_get_num_threads(); }
#else
static int thread_number(void) { return 0; }
static int thread_count(void) { return 1; }
#endif

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static size_t aligned(size_t bytes) { return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

/* Bytes of a tile's buffers, and those buffers laid out from `base` (NULL: only count). */
static size_t tile_buffers(struct tile *t, char *base, int64_t tokens) {
    const struct ffn *f = t->ffn;
    const size_t inputs = aligned((size_t)(tokens * f->input_width) * 4);
    const size_t reads = aligned((size_t)(tokens * f->cells * f->groups * PANEL) * 4);
    if (base) { /* an offset to NULL is undefined */
        t->inputs = (float *)base;
        t->index = (int32_t *)(base + inputs);
        t->weight = (float *)(base + inputs + reads);
        t->out = (float *)(base + inputs + 2 * reads);
    }
    return inputs + 2 * reads + aligned((size_t)(tokens * f->out_width) * 4);
}

/* Multiply-adds a token, roughly. */
static int64_t work_per_token(const struct ffn *f) {
    int64_t bytes = f->bytes[INPUT] + f->bytes[HASH] + f->bytes[LINEAR] + f->bytes[DOWN];
    return bytes / (f->weight_dtype == FLOAT32 ? 4 : f->weight_dtype == BFLOAT16 ? 2 : 1) + f->tables * f->cells * f->d_out;
}

/* Tokens [token, end) through tiles; `together`: every thread of the team calls this with the same tokens. */
static void run_tiles(const struct level *level, struct tile t, char *buffers, int64_t token, int64_t end,
                      int64_t tile_tokens, int together) {
    const float *x = t.x;
    float *y = t.y;
    tile_buffers(&t, buffers, tile_tokens);
    for (; token < end; token += tile_tokens) {
        t.x = x + token * t.ffn->d_in;
        t.y = y + token * t.ffn->d_out;
        t.tokens = smaller(tile_tokens, end - token);
        level->forward_inputs(&t);
        if (together) {
#pragma omp barrier
        }
        level->forward_hash(&t);
        if (together) {
#pragma omp barrier
        }
        level->forward_outputs(&t);
        if (together) {
#pragma omp barrier
        }
    }
}

int ffn_forward(const struct ffn *f, const float *x, float *y, int64_t tokens, int threads) {
    const struct level *level = level_current();
    if (threads < 1 || tokens * work_per_token(f) < TEAM_WORK)
        threads = 1;
    const int together = threads > 1 && tokens < OWN_TOKENS * (int64_t)threads;
    const int64_t tile_tokens = smaller(together ? tokens : (tokens + threads - 1) / threads, TILE_TOKENS);
    struct tile tile = {.ffn = f, .x = x, .y = y};
    const size_t buffers = tile_buffers(&tile, NULL, tile_tokens), work = aligned((size_t)work_floats(f) * 4);
    const size_t scales = aligned(QUANTISED_TOKENS * 4), values = QUANTISED_TOKENS * (size_t)quantised_width(f) * 2;
    const size_t each = aligned(buffers + work + scales + values);
    char *memory = scratch((size_t)threads * each);
    if (!memory)
        return -1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        struct tile mine = tile;
        const int thread = thread_number(), count = thread_count(); /* perhaps fewer than were asked for */
        char *own = memory + (size_t)thread * each;
        mine.work = (float *)(own + buffers);
        mine.q.scales = (float *)(own + buffers + work);
        mine.q.values = (int16_t *)(own + buffers + work + scales);
        mine.rank = together ? thread : 0;
        mine.size = together ? count : 1;
        if (together)
            run_tiles(level, mine, memory, 0, tokens, tile_tokens, 1);
        else
            run_tiles(level, mine, own, tokens * thread / count, tokens * (thread + 1) / count, tile_tokens, 0);
    }
    return 0;
}

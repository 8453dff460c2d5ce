/* One linear layer: how its tokens or outputs are divided among threads. */
#ifdef _OPENMP
#include <omp.h>
#endif

#include "level.h"
#include "linear.h"
#include "memory.h"
#include "tile.h"

enum { OWN_TOKENS = 32 }; /* a thread, from which on each has tokens of its own */

/* Scales, sums, one panel's outputs and the rounded inputs of QUANTISED_TOKENS. */
static size_t part_bytes(int64_t k) {
    size_t bytes = QUANTISED_TOKENS * (4 + 4 + PANEL * 4 + (size_t)quantised_stride(k) * 2);
    return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

static void run_part(const struct linear_part *whole, int index, int count, int together) {
    struct linear_part part = *whole;
    part.memory += (size_t)index * part_bytes(whole->linear->k);
    if (together) {
        part.panel = whole->panel_end * index / count;
        part.panel_end = whole->panel_end * (index + 1) / count;
    } else {
        part.token = whole->token_end * index / count;
        part.token_end = whole->token_end * (index + 1) / count;
    }
    level_current()->linear_part(&part);
}

int linear_forward(const struct linear *l, const float *x, float *y, int64_t tokens, int threads) {
    const int64_t panels = (l->outputs + PANEL - 1) / PANEL;
    if (threads < 1 || tokens * l->k * l->outputs < TEAM_WORK)
        threads = 1;
    const int together = tokens < OWN_TOKENS * (int64_t)threads;
    const struct linear_part whole = {.linear = l, .x = x, .y = y, .token_end = tokens, .panel_end = panels,
                                      .memory = scratch((size_t)threads * part_bytes(l->k))};
    if (!whole.memory)
        return -1;
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        run_part(&whole, omp_get_thread_num(), omp_get_num_threads(), together);
        return 0;
    }
#endif
    run_part(&whole, 0, 1, together);
    return 0;
}

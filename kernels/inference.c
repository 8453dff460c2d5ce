/* Inference: how tokens are divided among threads. Many tokens: each thread takes its own; few, or tables so large that
 * they should come from memory once: all threads work on the same tile, each on its own outputs. */
#ifdef _OPENMP
#include <omp.h>
#endif
#include <sched.h>
#include <stdatomic.h>

#include "level.h"
#include "memory.h"
#include "tile.h"

enum { OWN_TOKENS = 4 };        /* a thread, from which on each has tokens of its own */
enum { OWN_TABLES = 64 << 20 }; /* bytes of tables that each thread may read in slices for itself */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The size of equal parts of n, the last perhaps smaller, none above `most`. */
static int64_t even_part(int64_t n, int64_t most) {
    const int64_t parts = (n + most - 1) / most;
    return parts > 0 ? (n + parts - 1) / parts : n;
}

/* Whether a tile of so many tokens reads most of each table, and its rows are too many to be fetched ahead. Rows in 4 bits
 * are few enough lines to come faster whole, in longer bursts. */
static int slices_pay(const struct ffn *f, int64_t tokens) {
    enum { READ_TILE = 64 };
    return f->table_dtype != INT4 && tokens >= READ_TILE && tokens >= f->rows * 3 / 4 && !rows_fit(f, ROWS_TILE);
}

static size_t aligned(size_t bytes) { return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

/* Steps of the hash in a team: BH4's factors one by one, where tokens are too few to be divided. */
static int hash_steps(const struct ffn *f, int64_t tokens, int threads) {
    const int one_by_one = f->tables && f->projection == BH4 && tokens <= STEP_TOKENS && 2 * tokens <= threads;
    return one_by_one ? (int)f->repeats * BH4_FACTORS + 1 : 1;
}

/* Bytes of a tile's buffers, and those buffers laid out from `base` (NULL: only count). */
static size_t tile_buffers(struct tile *t, char *base, int64_t tokens) {
    const struct ffn *f = t->ffn;
    const size_t inputs = aligned((size_t)(tokens * f->input_width) * 4);
    const size_t reads = aligned((size_t)(tokens * f->cells * f->groups * PANEL) * 4);
    const size_t out = aligned((size_t)(tokens * f->out_width) * 4);
    const size_t mixed = t->steps > 1 ? aligned((size_t)(tokens * f->width) * 4) : 0;
    if (base) { /* an offset to NULL is undefined */
        t->inputs = (float *)base;
        t->index = (int32_t *)(base + inputs);
        t->weight = (float *)(base + inputs + reads);
        t->out = (float *)(base + inputs + 2 * reads);
        t->mixed[0] = (float *)(base + inputs + 2 * reads + out);
        t->mixed[1] = (float *)(base + inputs + 2 * reads + out + mixed);
    }
    return inputs + 2 * reads + out + 2 * mixed;
}

/* Multiply-adds a token, roughly. */
static int64_t work_per_token(const struct ffn *f) {
    int64_t bytes = f->bytes[INPUT] + f->bytes[HASH] + f->bytes[LINEAR] + f->bytes[DOWN];
    return bytes / (f->weight_dtype == FLOAT32 ? 4 : f->weight_dtype == BFLOAT16 ? 2 : 1) + f->tables * f->cells * f->d_out;
}

/* One pass: what every task of it works on. */
struct pass {
    const struct level *level;
    struct tile tile;
    int64_t tokens, tile_tokens;
    size_t buffers, work, state, each;
    char *memory; /* a part of `each` bytes a task; a team shares the buffers at its head */
    _Alignas(CACHE_LINE) atomic_int_fast64_t finished; /* shares of a team's steps */
};

enum { CODE, LOOKUP_HASH, KEPT_NEURONS, OUTPUTS, PHASES };

/* Whether this FFN has such a phase at all. */
static int has_phase(const struct ffn *f, int phase) {
    return phase == OUTPUTS || (phase == CODE ? f->rank_width : phase == LOOKUP_HASH ? f->tables : f->neuron_width) > 0;
}

static void run_phase(const struct level *level, int phase, const struct tile *t) {
    if (phase == CODE)
        level->forward_code(t);
    else if (phase == LOOKUP_HASH)
        level->forward_hash(t);
    else if (phase == KEPT_NEURONS)
        level->forward_neurons(t);
    else
        level->forward_outputs(t);
}

/* A task's tile; `team`: it shares its buffers. */
static struct tile task_tile(const struct pass *p, int index, int count, int team) {
    char *own = p->memory + (size_t)index * p->each;
    struct tile t = p->tile;
    tile_buffers(&t, team ? p->memory : own, p->tile_tokens);
    t.work = (float *)(own + p->buffers);
    t.q.scales = (float *)(own + p->buffers + p->work);
    t.q.sums = (int32_t *)(t.q.scales + QUANTISED_TOKENS);
    t.q.values = own + p->buffers + p->work + p->state;
    t.fetch = t.ffn->tables ? (struct fetch *)(t.q.sums + QUANTISED_TOKENS) : NULL;
    t.rank = team ? index : 0;
    t.size = team ? count : 1;
    return t;
}

static void place_tile(const struct pass *p, struct tile *t, int64_t token, int64_t end) {
    t->x = p->tile.x + token * t->ffn->d_in;
    t->y = p->tile.y + token * t->ffn->d_out;
    t->tokens = smaller(p->tile_tokens, end - token);
}

/* A task's own tokens. */
static void run_own(void *context, int index, int count) {
    const struct pass *p = context;
    struct tile t = task_tile(p, index, count, 0);
    const int64_t end = p->tokens * (index + 1) / count;
    for (int64_t token = p->tokens * index / count; token < end; token += p->tile_tokens) {
        place_tile(p, &t, token, end);
        for (int phase = 0; phase < PHASES; phase++)
            if (has_phase(t.ffn, phase))
                run_phase(p->level, phase, &t);
    }
}

/* Steps of a task's share that some thread has begun: phases, and the steps that the hash takes. */
static atomic_int_fast64_t *begun(const struct pass *p, int index) {
    return (atomic_int_fast64_t *)(p->memory + (size_t)(index + 1) * p->each - CACHE_LINE);
}

static void wait_for(const atomic_int_fast64_t *counter, int64_t count) {
    enum { SPINS = 2000 }; /* a share takes some microseconds; if its thread was put aside, let it on */
    for (int spins = 0; atomic_load_explicit(counter, memory_order_acquire) < count; spins++)
        if (spins >= SPINS)
            sched_yield();
}

/* Steps of a phase, all of which a team goes through together. */
static int team_steps(const struct pass *p, int phase) {
    const struct ffn *f = p->tile.ffn;
    return !has_phase(f, phase) ? 0 : phase == LOOKUP_HASH ? p->tile.steps : 1;
}

/* A task's outputs of all tokens, and in each step the outputs of tasks that have not come to it yet: threads that
 * were asleep, or that a library never sends, keep nobody waiting. */
static void run_team(void *context, int index, int count) {
    struct pass *p = context;
    int64_t before = 0; /* steps that are finished */
    for (int64_t token = 0; token < p->tokens; token += p->tile_tokens)
        for (int phase = 0; phase < PHASES; phase++)
            for (int step = 0, steps = team_steps(p, phase); step < steps; step++) {
                for (int i = 0; i < count; i++) {
                    const int share = (index + i) % count;
                    int_fast64_t free = before;
                    if (!atomic_compare_exchange_strong(begun(p, share), &free, before + 1))
                        continue;
                    struct tile t = task_tile(p, share, count, 1);
                    place_tile(p, &t, token, p->tokens);
                    t.step = step;
                    run_phase(p->level, phase, &t);
                    atomic_fetch_add_explicit(&p->finished, 1, memory_order_release);
                }
                wait_for(&p->finished, ++before * count);
            }
}

int ffn_forward_on(ffn_pool pool, const struct ffn *f, const float *x, float *y, int64_t tokens, int threads) {
    if (threads < 1 || tokens * work_per_token(f) < TEAM_WORK)
        threads = 1;
    const int in_order = slices_pay(f, smaller(tokens, TILE_TOKENS)) && f->table_bytes > OWN_TABLES;
    const int together = threads > 1 && (tokens < OWN_TOKENS * threads || in_order);
    const int64_t share = together ? tokens : (tokens + threads - 1) / threads;
    struct pass p = {.level = level_current(), .tile = {.ffn = f, .x = x, .y = y}, .tokens = tokens};
    p.tile.slices = slices_pay(f, smaller(share, TILE_TOKENS));
    p.tile_tokens = even_part(share, !p.tile.slices && rows_fit(f, ROWS_TILE) ? ROWS_TILE : TILE_TOKENS);
    p.tile.steps = together ? hash_steps(f, p.tile_tokens, threads) : 1;
    p.buffers = tile_buffers(&p.tile, NULL, p.tile_tokens);
    p.work = aligned((size_t)work_floats(f) * 4);
    p.state = aligned(QUANTISED_TOKENS * 8 + sizeof(struct fetch)); /* scales and sums, and what is fetched */
    p.each = aligned(p.buffers + p.work + p.state + QUANTISED_TOKENS * (size_t)quantised_width(f) * 2) + CACHE_LINE;
    p.memory = scratch((size_t)threads * p.each);
    if (!p.memory)
        return -1;
    if (threads == 1) {
        run_own(&p, 0, 1);
        return 0;
    }
    for (int i = 0; together && i < threads; i++)
        atomic_init(begun(&p, i), 0);
    pool(threads, together ? run_team : run_own, &p);
    return 0;
}

#ifdef _OPENMP
static void openmp_run(int threads, ffn_task task, void *context) {
#pragma omp parallel num_threads(threads)
    task(context, omp_get_thread_num(), omp_get_num_threads()); /* perhaps fewer than were asked for */
}

int ffn_forward(const struct ffn *f, const float *x, float *y, int64_t tokens, int threads) {
    return ffn_forward_on(openmp_run, f, x, y, tokens, threads);
}
#else
int ffn_forward(const struct ffn *f, const float *x, float *y, int64_t tokens, int threads) {
    (void)threads;
    return ffn_forward_on(NULL, f, x, y, tokens, 1);
}
#endif

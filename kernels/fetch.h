/* Table rows go to the cache while matrices are multiplied, a few lines at a time: a processor keeps some dozen lines on
 * their way at once, and asking for more stops it until they have come. */
#ifndef COMPRESS_FETCH_H
#define COMPRESS_FETCH_H

#include "tile.h"

enum { FETCH_EVERY = 16, FETCH_LINES = 8 }; /* lines for so many k of a block of outputs: some 10 GB/s */
enum { FETCH_EARLY = 1 << 20 };             /* bytes: more rows would drive each other out of a second-level cache */

/* The columns that this thread reads of all its tile's rows; nothing where rows have been fetched or are read in order. */
static inline void fetch_start(const struct tile *t) {
    const struct ffn *f = t->ffn;
    const int64_t units = f->out_width / ROW_UNIT;
    const int64_t from = row_at(f, share(t, units) * ROW_UNIT) / CACHE_LINE * CACHE_LINE;
    const int none = t->slices || (t->size == 1 && t->tokens <= PREFETCH_TOKENS);
    *t->fetch = (struct fetch){
        .rows = f->table_rows + from,
        .next = t->index, .end = t->index + (none ? 0 : t->tokens * f->cells * f->groups * PANEL),
        .row_bytes = f->row_bytes, .lines = (row_at(f, share_end(t, units) * ROW_UNIT) - from + CACHE_LINE - 1) / CACHE_LINE,
    };
}

/* So many tokens' rows are known. */
static inline void fetch_until(const struct tile *t, int64_t tokens) {
    t->fetch->end = t->index + tokens * t->ffn->cells * t->ffn->groups * PANEL;
}

/* What is fetched while matrices are multiplied; where that is too much, rows are fetched a token before they are read. */
static inline struct fetch *fetch_early(const struct tile *t) {
    const struct ffn *f = t->ffn;
    return t->tokens * f->tables * f->cells * f->row_bytes / t->size <= FETCH_EARLY ? t->fetch : NULL;
}

static inline int fetch_left(const struct fetch *f) { return f && f->next < f->end; }

static inline void fetch_some(struct fetch *f) {
    for (int n = 0; n < FETCH_LINES && f->next < f->end; n++) {
        __builtin_prefetch(f->rows + *f->next * f->row_bytes + f->line * CACHE_LINE, 0, 2);
        if (++f->line >= f->lines)
            f->line = 0, f->next++;
    }
}

/* Leave out what comes before `next`. */
static inline void fetch_behind(struct fetch *f, const int32_t *next) {
    if (f->next < next)
        f->next = lesser(next - f->next, f->end - f->next) + f->next, f->line = 0;
}

#endif

/* Huge pages and per-thread scratch. */
#include "memory.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

void advise_huge(void *address, size_t bytes) {
#ifdef MADV_HUGEPAGE
    uintptr_t first = ((uintptr_t)address + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)address + bytes) & ~(uintptr_t)(HUGE_PAGE - 1);
    if (first < end)
        (void)madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)address, (void)bytes;
#endif
}

uint64_t stream_read(const void *address, size_t bytes, int threads) {
    enum { WORDS = CACHE_LINE / sizeof(uint64_t), STREAMS = 8 }; /* several at once keep more lines under way */
    const uint64_t *words = address;
    const int64_t each = (int64_t)(bytes / CACHE_LINE) / (STREAMS * threads);
    uint64_t all = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(^ : all)
    for (int64_t part = 0; part < threads; part++) {
        uint64_t found[WORDS] = {0};
        for (int64_t line = 0; line < each; line++)
            for (int64_t stream = 0; stream < STREAMS; stream++)
                for (int i = 0; i < WORDS; i++)
                    found[i] ^= words[((part * STREAMS + stream) * each + line) * WORDS + i];
        for (int i = 0; i < WORDS; i++)
            all ^= found[i];
    }
    for (size_t word = (size_t)(each * STREAMS * threads * WORDS); word < bytes / sizeof(uint64_t); word++)
        all ^= words[word];
    return all;
}

struct block {
    size_t bytes;
    void *start;
};

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *value) {
    struct block *block = value;
    free(block->start);
    free(block);
}

static void create_key(void) { (void)pthread_key_create(&key, release); }

void *scratch(size_t bytes) {
    pthread_once(&once, create_key);
    struct block *block = pthread_getspecific(key);
    if (!block) {
        block = calloc(1, sizeof *block);
        if (!block || pthread_setspecific(key, block)) {
            free(block);
            return NULL;
        }
    }
    if (!block->start || block->bytes < bytes) {
        size_t unit = bytes < HUGE_PAGE ? CACHE_LINE : HUGE_PAGE;
        size_t rounded = (bytes + unit) / unit * unit; /* never 0 */
        free(block->start);
        block->start = aligned_alloc(unit, rounded);
        block->bytes = block->start ? rounded : 0;
        if (block->start)
            advise_huge(block->start, rounded);
    }
    return block->start;
}

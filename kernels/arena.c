/* Chunks of huge pages, each filled from its start and freed when nothing in it is in use any more. What is not taken
 * costs no memory: the system gives pages when they are first written. */
#include "arena.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#include "memory.h"

enum { CHUNK = 64 << 20 }; /* more than an allocator keeps for itself, so that its pages are new */

struct chunk {
    char *start;
    size_t size, used; /* bytes */
    int64_t live;      /* buffers in use */
    struct chunk *next;
};

static struct chunk *chunks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t whole(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

static struct chunk *new_chunk(size_t bytes) {
    struct chunk *chunk = calloc(1, sizeof *chunk);
    if (!chunk)
        return NULL;
    chunk->size = bytes < CHUNK ? CHUNK : whole(bytes, HUGE_PAGE);
    chunk->start = aligned_alloc(HUGE_PAGE, chunk->size);
    if (!chunk->start) {
        free(chunk);
        return NULL;
    }
    advise_huge(chunk->start, chunk->size);
    chunk->next = chunks;
    return chunks = chunk;
}

void *arena_take(size_t bytes) {
    void *buffer = NULL;
    if (bytes > SIZE_MAX / 2)
        return NULL;
    bytes = bytes ? whole(bytes, CACHE_LINE) : CACHE_LINE;
    pthread_mutex_lock(&lock);
    struct chunk *chunk = chunks;
    while (chunk && chunk->size - chunk->used < bytes)
        chunk = chunk->next;
    if (chunk || (chunk = new_chunk(bytes))) {
        buffer = chunk->start + chunk->used;
        chunk->used += bytes;
        chunk->live++;
    }
    pthread_mutex_unlock(&lock);
    return buffer;
}

void arena_release(void *buffer) {
    pthread_mutex_lock(&lock);
    struct chunk **at = &chunks;
    while ((char *)buffer < (*at)->start || (char *)buffer >= (*at)->start + (*at)->size)
        at = &(*at)->next;
    struct chunk *chunk = *at;
    if (!--chunk->live) {
        *at = chunk->next;
        free(chunk->start);
        free(chunk);
    }
    pthread_mutex_unlock(&lock);
}

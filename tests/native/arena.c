/* Buffers taken and released in any order, by several threads at once: none lies in another, and all can be written. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"

enum { THREADS = 4, BUFFERS = 100, TURNS = 2000, LARGE = 80 << 20 };

struct buffer {
    unsigned char *start;
    size_t size;
};

static int holds(const struct buffer *buffer, unsigned char value) {
    for (size_t i = 0; i < buffer->size; i += buffer->size > 1 << 20 ? 4096 : 1)
        if (buffer->start[i] != value)
            return 0;
    return 1;
}

/* One thread's turns; the number of buffers that did not hold what was written. */
static int turns(int thread) {
    struct buffer buffers[BUFFERS] = {0};
    uint32_t draw = (uint32_t)thread;
    int wrong = 0;
    for (int turn = 0; turn < TURNS + BUFFERS; turn++) {
        draw = draw * 1664525u + 1013904223u;
        const int at = turn < TURNS ? (int)(draw >> 16) % BUFFERS : turn - TURNS; /* at last, all that are left */
        struct buffer *buffer = &buffers[at];
        const unsigned char value = (unsigned char)(thread * BUFFERS + at);
        if (buffer->start) {
            wrong += !holds(buffer, value);
            arena_release(buffer->start);
            buffer->start = NULL;
        } else if (turn < TURNS) {
            buffer->size = turn % 500 ? (draw >> 8) % 50000 : LARGE;
            buffer->start = arena_take(buffer->size);
            if (!buffer->start || (uintptr_t)buffer->start % 64)
                abort();
            for (size_t i = 0; i < buffer->size; i += buffer->size > 1 << 20 ? 4096 : 1)
                buffer->start[i] = value;
        }
    }
    return wrong;
}

int main(void) {
    int wrong = 0;
#pragma omp parallel for num_threads(THREADS) reduction(+ : wrong)
    for (int thread = 0; thread < THREADS; thread++)
        wrong += turns(thread);
    return wrong || arena_take(SIZE_MAX) || arena_take(SIZE_MAX / 4);
}

/* Buffers of all layers side by side in huge pages. A small layer's are no whole huge page, and pages of 4 kB cost a walk
 * through page tables for every row, and a pause in what the processor fetches ahead at every page of weights. */
#ifndef COMPRESS_ARENA_H
#define COMPRESS_ARENA_H

#include <stddef.h>

/* So many uninitialised bytes, on a cache line; NULL where memory cannot be had. Any thread may take and release. */
void *arena_take(size_t bytes);

/* Give back what `arena_take` gave. */
void arena_release(void *buffer);

#endif

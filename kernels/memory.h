/* Memory in huge pages where the system grants them, and scratch that a thread keeps between calls. */
#ifndef COMPRESS_MEMORY_H
#define COMPRESS_MEMORY_H

#include <stddef.h>
#include <stdint.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

/* Read all of a block of memory, as fast as so many threads can; the exclusive or of its 64-bit words. */
uint64_t stream_read(const void *address, size_t bytes, int threads);

/* Ask for huge pages in whatever of [address, address + bytes) they fit; never an error. */
void advise_huge(void *address, size_t bytes);

/* The calling thread's scratch, at least `bytes` long and on a cache line; valid until its next call here or its end.
 * NULL where memory cannot be had. */
void *scratch(size_t bytes);

#endif

/* Memory in huge pages where the system grants them, and scratch that a thread keeps between calls. */
#ifndef COMPRESS_MEMORY_H
#define COMPRESS_MEMORY_H

#include <stddef.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

/* Ask for huge pages in whatever of [address, address + bytes) they fit; never an error. */
void advise_huge(void *address, size_t bytes);

/* The calling thread's scratch, at least `bytes` long and on a cache line; valid until its next call here or its end.
 * NULL where memory cannot be had. */
void *scratch(size_t bytes);

#endif

/* NEON level: vectors of four floats with fused multiply-add. */
#include "level.h"
#ifdef COMPRESS_NEON
#define LEVEL_NEON 1
#define LEVEL_NAME "neon"
#include "bodies.h"
#endif

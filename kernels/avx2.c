/* AVX2 level: vectors of eight floats with fused multiply-add. */
#include "level.h"
#ifdef COMPRESS_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define LEVEL_AVX2 1
#define LEVEL_NAME "avx2"
#include "bodies.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

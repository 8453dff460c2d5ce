/* AVX-512 level: vectors of sixteen floats. */
#include "level.h"
#ifdef COMPRESS_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define LEVEL_AVX512 1
#define LEVEL_NAME "avx512"
#include "bodies.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

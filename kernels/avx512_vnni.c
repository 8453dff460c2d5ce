/* AVX-512 level with VNNI: dot products of bytes and of 16-bit integers in one instruction. */
#include "level.h"
#ifdef COMPRESS_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif
#define LEVEL_AVX512 1
#define LEVEL_VNNI 1
#define LEVEL_NAME "avx512_vnni"
#include "bodies.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

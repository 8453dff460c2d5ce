/* Which instruction sets this processor has, and the one in use. */
#include "level.h"

static const struct level *found[5];
static int count;
static int current;

static void detect(void) {
    if (count)
        return;
    int n = 0;
#ifdef COMPRESS_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512vnni"))
        found[n++] = &level_avx512_vnni;
    if (avx512)
        found[n++] = &level_avx512;
    if (avx2)
        found[n++] = &level_avx2;
#endif
#ifdef COMPRESS_NEON
    found[n++] = &level_neon;
#endif
    found[n++] = &level_scalar;
    count = n;
}

int levels_available(void) {
    detect();
    return count;
}

const struct level *level_at(int index) {
    detect();
    return index >= 0 && index < count ? found[index] : 0;
}

const struct level *level_current(void) {
    detect();
    return found[current];
}

void level_select(int index) {
    detect();
    if (index >= 0 && index < count)
        current = index;
}

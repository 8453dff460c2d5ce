/* Everything a level compiles, and its table of functions. Included once by scalar.c, avx2.c, avx512.c and neon.c. */
#include "forward.h"
#include "gather.h"

const struct level LEVEL(level) = {
    .name = LEVEL_NAME,
#ifdef VNNI_READ
    .vnni = 1,
#endif
    .gather_columns = GATHER_VECTORS * LANES,
    .gather = LEVEL(gather),
    .gather_backward = LEVEL(gather_backward),
    .margin = LEVEL(margin),
    .margin_backward = LEVEL(margin_backward),
    .forward_inputs = LEVEL(forward_inputs),
    .forward_hash = LEVEL(forward_hash),
    .forward_outputs = LEVEL(forward_outputs),
};

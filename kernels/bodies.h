/* Everything a level compiles, and its table of functions. Included once by each level's C file. */
#include "forward.h"
#include "gather.h"
#include "product.h"

const struct level LEVEL(level) = {
    .name = LEVEL_NAME,
    .gather_columns = GATHER_VECTORS * LANES,
    .gather = LEVEL(gather),
    .gather_backward = LEVEL(gather_backward),
    .margin = LEVEL(margin),
    .margin_backward = LEVEL(margin_backward),
    .forward_code = LEVEL(forward_code),
    .forward_hash = LEVEL(forward_hash),
    .forward_neurons = LEVEL(forward_neurons),
    .forward_outputs = LEVEL(forward_outputs),
    .linear_part = LEVEL(linear_part),
};

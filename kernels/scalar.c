/* Portable level: vectors of four floats, as whatever the compiler's baseline makes of them. */
#define LEVEL_NAME "scalar"
#include "bodies.h"

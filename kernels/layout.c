/* Sizes of a packed LookupFFN, and where its parts lie. */
#include <string.h>

#include "ffn.h"
#include "memory.h"

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static int64_t dtype_bytes(int64_t dtype) { return dtype == FLOAT32 ? 4 : dtype == BFLOAT16 ? 2 : 1; }

/* Bytes of panels of `outputs` (whole panels) over k inputs. */
static int64_t panel_bytes(int64_t outputs, int64_t k, int64_t dtype) {
    return outputs * round_up(k * dtype_bytes(dtype), 4);
}

/* Bytes from row to row, whole lines. A slice of the columns of many rows would meet few sets of a cache where rows were a multiple of
 * four lines apart: one line more, and it meets all of them. */
static int64_t row_stride(int64_t bytes) {
    const int64_t lines = round_up(bytes, CACHE_LINE) / CACHE_LINE;
    return (lines % 4 == 0 ? lines + 1 : lines) * CACHE_LINE;
}

static int in_range(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

static int hashes_code(const struct ffn *f) { return f->projection == HADAMARD || f->projection == LOWRANK; }

static int valid(const struct ffn *f) {
    const int64_t most = 1 << 24; /* sizes: products of three stay far within 64 bits */
    return in_range(f->d_in, 1, most) && in_range(f->d_out, 1, most) && in_range(f->tables, 0, most) &&
           in_range(f->bits, 1, MAX_BITS) && in_range(f->projection, HADAMARD, ACDC) && in_range(f->rank, 0, most) &&
           in_range(f->neurons, 0, most) && in_range(f->gated, 0, 1) && in_range(f->activation, GELU, SIGMOID) &&
           in_range(f->cells, 1, 2) && in_range(f->table_dtype, FLOAT32, INT4) &&
           in_range(f->weight_dtype, FLOAT32, INT8) &&
           (f->input_bits == 16 || (f->input_bits == 8 && f->weight_dtype == INT8)) &&
           round_up(f->tables, PANEL) << f->bits < (int64_t)1 << 31 &&
           !(f->tables && hashes_code(f) && !f->rank);
}

/* The transforms of a structured hash; blocks smaller than a panel are laid side by side in one. */
static int transform_sizes(struct ffn *f) {
    f->transform = 1;
    while (f->transform < (f->projection == HADAMARD ? f->rank : f->d_in))
        f->transform *= 2;
    f->width = round_up(f->transform, PANEL);
    f->repeats = (f->tables * f->bits + f->transform - 1) / f->transform;
    if (f->projection == HADAMARD) { /* a transform gives whole tables */
        const int64_t each = f->transform / f->bits;
        if (!each)
            return -1;
        f->repeats = (f->tables + each - 1) / each;
    }
    if (f->projection != BH4)
        return 0;
    if (f->block < 1 || f->block > f->transform || (f->block & (f->block - 1)))
        return -1;
    f->block_width = f->block < PANEL ? PANEL : f->block;
    f->blocks = f->width / f->block_width;
    /* float32 blocks take up the Hadamard transform within a block: it costs no byte there. bfloat16 ones could not hold
     * the products, and float32 in their place would double the bytes that a small batch waits for. */
    f->hadamard_from = f->weight_dtype == FLOAT32 ? f->block : 1;
    return 0;
}

int ffn_layout(struct ffn *f, const int64_t s[SETTINGS]) {
    memset(f, 0, sizeof *f);
    f->d_in = s[D_IN], f->d_out = s[D_OUT], f->tables = s[TABLES], f->bits = s[BITS], f->projection = s[PROJECTION];
    f->block = s[BLOCK], f->rank = s[RANK], f->neurons = s[NEURONS], f->gated = s[GATED];
    f->activation = s[ACTIVATION], f->cells = s[CELLS], f->table_dtype = s[TABLE_DTYPE];
    f->weight_dtype = s[WEIGHT_DTYPE], f->input_bits = s[INPUT_BITS];
    if (!valid(f))
        return -1;
    f->rows = (int64_t)1 << f->bits;
    f->groups = (f->tables + PANEL - 1) / PANEL;
    f->rank_width = round_up(f->rank, PANEL);
    f->neuron_width = round_up(f->neurons, PANEL);
    f->input_width = f->rank_width + f->neuron_width + (f->gated ? f->neuron_width : 0);
    f->out_width = round_up(f->d_out, ROW_UNIT);
    f->row_bytes = row_stride(row_columns_bytes(f->out_width, f->table_dtype));
    f->table_bytes = f->tables * f->rows * f->row_bytes;

    int64_t hash_outputs = f->groups * PANEL * f->bits;
    f->bytes[INPUT] = panel_bytes(f->input_width, f->d_in, f->weight_dtype);
    f->bytes[INPUT_BIAS] = f->input_width * 4;
    f->bytes[LINEAR] = panel_bytes(f->out_width, f->rank_width, f->weight_dtype);
    f->bytes[DOWN] = panel_bytes(f->out_width, f->neuron_width, f->weight_dtype);
    f->bytes[OUTPUT_BIAS] = f->out_width * 4;
    if (f->tables && (f->projection == LOWRANK || f->projection == DENSE)) {
        f->bytes[HASH] = panel_bytes(hash_outputs, f->projection == LOWRANK ? f->rank : f->d_in, f->weight_dtype);
        f->bytes[HASH_SCALE] = f->weight_dtype == INT8 ? hash_outputs * 4 : 0;
        f->bytes[HASH_BIAS] = hash_outputs * 4;
    } else if (f->tables) {
        if (transform_sizes(f))
            return -1;
        if (f->projection == BH4) {
            f->bytes[HASH] = panel_bytes(f->repeats * BH4_FACTORS * f->width, f->block_width, f->weight_dtype);
            f->bytes[HASH_SCALE] = f->weight_dtype == INT8 ? f->repeats * BH4_FACTORS * f->width * 4 : 0;
        } else
            f->bytes[HASH] = f->repeats * 2 * (f->projection == HADAMARD ? f->width : 4 * f->transform) * 4;
        f->bytes[HASH_BIAS] = (f->projection == HADAMARD ? f->groups * PANEL * f->bits : f->repeats * f->width) * 4;
        f->bytes[ROTATIONS] = f->projection == ACDC ? 2 * f->transform * 4 : 0;
    }
    const int integers = f->table_dtype == INT8 || f->table_dtype == INT4;
    f->bytes[SCALES] = f->tables && integers ? f->groups * PANEL * 4 : 0;
    if (f->weight_dtype == INT8) {
        f->bytes[INPUT_SCALE] = f->input_width * 4;
        f->bytes[LINEAR_SCALE] = f->bytes[DOWN_SCALE] = f->out_width * 4;
    }
    f->bytes[SHARPNESS] = f->tables && f->cells == 2 ? 4 : 0;
    for (int part = 0; part < PARTS; part++) {
        f->offset[part] = f->weight_bytes;
        f->weight_bytes += round_up(f->bytes[part], CACHE_LINE);
    }
    return 0;
}

/* One FFN over a tile of tokens, in four phases; a team's threads meet between them (inference.c). Within a phase
 * a thread computes whole outputs, so that the size of the team changes no bit. */
#include "activation.h"
#include "hash.h"
#include "rows.h"

/* Panels of code, gate and up over x. */
static void input_panels(const struct tile *t, struct fetch *fetch, int64_t panel, int64_t panel_end) {
    struct gemm g = tile_gemm(t, INPUT, t->ffn->d_in);
    g.x = t->x, g.x_stride = t->ffn->d_in, g.out = t->inputs, g.out_stride = t->ffn->input_width;
    g.bias = part_floats(t->ffn, INPUT_BIAS), g.fetch = fetch;
    gemm(g, t->ffn->weight_dtype, t->tokens, panel, panel_end);
}

/* h: the code over x. */
static void LEVEL(forward_code)(const struct tile *t) {
    const int64_t panels = t->ffn->rank_width / PANEL;
    input_panels(t, NULL, share(t, panels), share_end(t, panels));
}

/* z, codes and scores: which rows are read, and how much each counts. */
static void LEVEL(forward_hash)(const struct tile *t) {
    fetch_start(t);
    switch (t->ffn->projection) {
    case HADAMARD:
        hash_hadamard(t);
        break;
    case BH4:
        (t->steps > 1 ? hash_bh4_step : hash_bh4)(t);
        break;
    case ACDC:
        hash_acdc(t);
        break;
    default:
        hash_panels(t);
    }
}

/* The neurons' outputs, in place of their gates; rows come to the cache meanwhile. */
static void LEVEL(forward_neurons)(const struct tile *t) {
    const struct ffn *f = t->ffn;
    const int64_t code = f->rank_width / PANEL, panels = f->neuron_width / PANEL;
    const int64_t first = share(t, panels), end = share_end(t, panels);
    input_panels(t, fetch_early(t), code + first, code + end);
    if (f->gated)
        input_panels(t, fetch_early(t), code + panels + first, code + panels + end);
    for (int64_t n = 0; n < t->tokens; n++) {
        float *gate = t->inputs + n * f->input_width + f->rank_width;
        const float *up = gate + f->neuron_width;
        for (int64_t i = first * PANEL; i < end * PANEL; i += LANES) {
            vf value = activate(v_load(gate + i), f->activation);
            v_store(gate + i, f->gated ? value * v_load(up + i) : value);
        }
    }
}

/* Bias, linear path and neurons, then the rows. */
static void LEVEL(forward_outputs)(const struct tile *t) {
    const struct ffn *f = t->ffn;
    const int64_t units = f->out_width / ROW_UNIT;
    const int64_t column = share(t, units) * ROW_UNIT, end = share_end(t, units) * ROW_UNIT;
    struct gemm g = tile_gemm(t, LINEAR, f->rank_width);
    g.x = t->inputs, g.x_stride = f->input_width, g.out = t->out, g.out_stride = f->out_width;
    g.bias = part_floats(f, OUTPUT_BIAS), g.fetch = fetch_early(t);
    gemm(g, f->weight_dtype, t->tokens, column / PANEL, end / PANEL);
    if (f->neurons) {
        struct gemm down = tile_gemm(t, DOWN, f->neuron_width);
        down.k = f->neurons; /* behind the last an activation may be other than 0 */
        down.x = t->inputs + f->rank_width, down.x_stride = f->input_width;
        down.out = t->out, down.out_stride = f->out_width, down.add = 1, down.fetch = fetch_early(t);
        gemm(down, f->weight_dtype, t->tokens, column / PANEL, end / PANEL);
    }
    if (f->tables)
        read_rows(t, column, end);
    if (column < f->d_out)
        for (int64_t n = 0; n < t->tokens; n++)
            memcpy(t->y + n * f->d_out + column, t->out + n * f->out_width + column,
                   (size_t)(lesser(end, f->d_out) - column) * 4);
}

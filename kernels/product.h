/* A thread's part of one linear layer (linear.h). Whole panels are written where they belong; of a last one that is cut
 * short what belongs there is copied. */
#include "gemm.h"
#include "linear.h"

static void LEVEL(linear_part)(const struct linear_part *p) {
    const struct linear *l = p->linear;
    const int64_t whole = l->outputs / PANEL, end = lesser(p->panel_end, whole);
    struct gemm g = {.panels = l->panels, .scale = l->scale, .bias = l->bias, .k = l->k, .x_stride = l->k, .bits = 8,
                     .panel_bytes = gemm_panel_bytes(l->k, INT8), .out_stride = l->outputs};
    g.q.scales = (float *)p->memory;
    g.q.sums = (int32_t *)(g.q.scales + QUANTISED_TOKENS);
    float *last = (float *)(g.q.sums + QUANTISED_TOKENS);
    g.q.values = (char *)(last + QUANTISED_TOKENS * PANEL);
    for (int64_t token = p->token, count; token < p->token_end; token += count) {
        count = lesser(QUANTISED_TOKENS, p->token_end - token);
        quantise(p->x + token * l->k, l->k, l->k, count, 8, gemm_takes_bytes(&g), &g.q);
        g.out = p->y + token * l->outputs;
        gemm_prepared(&g, INT8, count, p->panel, end);
        if (p->panel_end == end)
            continue;
        struct gemm cut = g;
        cut.panels += whole * g.panel_bytes, cut.scale += whole * PANEL;
        cut.bias = g.bias ? g.bias + whole * PANEL : NULL;
        cut.out = last, cut.out_stride = PANEL;
        gemm_prepared(&cut, INT8, count, 0, 1);
        for (int64_t n = 0; n < count; n++)
            memcpy(g.out + n * l->outputs + whole * PANEL, last + n * PANEL, (size_t)(l->outputs - whole * PANEL) * 4);
    }
}

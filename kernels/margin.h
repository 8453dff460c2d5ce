/* Codes and margin scores of `count` tables, z [count, bits]:
 *   code  = sum_j [z_j > 0] 2^(bits-1-j)
 *   score = sum_j |z_j| / prod_j (1 + exp(-2 |z_j|))
 * LANES tables at a time, one a lane. */
#include "exponential.h"
#include "ffn.h"

/* z[j] holds z_j of LANES tables. */
INLINE void margin_lanes(const vf *z, int64_t bits, vi *code, vf *score) {
    vf sum = {0}, product = v_set(1.0f);
    vi pattern = {0};
    for (int64_t j = 0; j < bits; j++) {
        vf magnitude = v_abs(z[j]);
        sum += magnitude;
        product *= 1.0f + v_exp(-2.0f * magnitude);
        pattern = pattern + pattern - (vi)(z[j] > 0.0f);
    }
    *code = pattern;
    *score = sum / product;
}

/* LANES tables' z as one vector a bit; past `count` the lanes are zero. */
INLINE void margin_load(const float *z, int64_t bits, int64_t count, vf *lanes) {
    if (count >= LANES) {
        for (int64_t j = 0; j < bits; j++)
            lanes[j] = v_load_strided(z + j, bits);
        return;
    }
    memset(lanes, 0, (size_t)bits * sizeof(vf));
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < bits; j++)
            ((float *)&lanes[j])[i] = z[i * bits + j];
}

static void LEVEL(margin)(const float *z, int64_t bits, int64_t count, int32_t *codes, float *scores) {
    vf lanes[MAX_BITS], score;
    vi code;
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t left = count - i;
        margin_load(z + i * bits, bits, left, lanes);
        margin_lanes(lanes, bits, &code, &score);
        if (left >= LANES) {
            v_store_int(codes + i, code);
            v_store(scores + i, score);
        } else {
            memcpy(codes + i, &code, (size_t)left * sizeof(int32_t));
            memcpy(scores + i, &score, (size_t)left * sizeof(float));
        }
    }
}

/* d score / d z_j = sign(z_j) (1 / prod + 2 score e_j / (1 + e_j)),  e_j = exp(-2 |z_j|) */
static void LEVEL(margin_backward)(const float *z, const float *scores, const float *grad_scores, int64_t bits,
                                   int64_t count, float *grad_z) {
    vf lanes[MAX_BITS], decay[MAX_BITS];
    for (int64_t i = 0; i < count; i += LANES) {
        int64_t left = count - i < LANES ? count - i : LANES;
        margin_load(z + i * bits, bits, left, lanes);
        vf product = v_set(1.0f);
        for (int64_t j = 0; j < bits; j++) {
            decay[j] = v_exp(-2.0f * v_abs(lanes[j]));
            product *= 1.0f + decay[j];
        }
        vf score = left < LANES ? v_load_part(scores + i, left) : v_load(scores + i);
        vf grad = left < LANES ? v_load_part(grad_scores + i, left) : v_load(grad_scores + i);
        vf inverse = 1.0f / product;
        for (int64_t j = 0; j < bits; j++) {
            vf slope = v_fma(2.0f * score, decay[j] / (1.0f + decay[j]), inverse) * grad;
            /* slope where z > 0, -slope where z < 0, 0 at 0; NaN keeps its slope, which is NaN */
            slope = v_select(lanes[j] < 0.0f, -slope, slope);
            lanes[j] = v_select(lanes[j] == 0.0f, (vf){0}, slope);
        }
        for (int64_t lane = 0; lane < left; lane++)
            for (int64_t j = 0; j < bits; j++)
                grad_z[(i + lane) * bits + j] = ((const float *)&lanes[j])[lane];
    }
}

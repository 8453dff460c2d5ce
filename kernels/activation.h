/* Activations of the kept neurons, to float32 accuracy. */
#ifndef COMPRESS_ACTIVATION_H
#define COMPRESS_ACTIVATION_H

#include "exponential.h"
#include "ffn.h"

INLINE vf v_sigmoid(vf x) { return 1.0f / (1.0f + v_exp(-x)); }

/* value, or the sign of x where |x| reached the limit: exactly 1, so that 1 + tanh is 0 far below */
INLINE vf v_saturate(vf x, float limit, vf value) {
    return v_select(v_abs(x) >= limit, v_copysign(v_set(1.0f), x), value);
}

/* Rational approximation of odd degree 13 over even degree 6, saturated where tanh is 1 in float32 (as in Eigen). */
INLINE vf v_tanh(vf x) {
    const float limit = 7.90531110763549805f;
    x = v_clamp(x, -limit, limit);
    vf square = x * x;
    vf p = v_set(-2.76076847742355e-16f);
    p = v_fma(p, square, v_set(2.00018790482477e-13f));
    p = v_fma(p, square, v_set(-8.60467152213735e-11f));
    p = v_fma(p, square, v_set(5.12229709037114e-08f));
    p = v_fma(p, square, v_set(1.48572235717979e-05f));
    p = v_fma(p, square, v_set(6.37261928875436e-04f));
    p = v_fma(p, square, v_set(4.89352455891786e-03f));
    vf q = v_set(1.19825839466702e-06f);
    q = v_fma(q, square, v_set(1.18534705686654e-04f));
    q = v_fma(q, square, v_set(2.26843463243900e-03f));
    q = v_fma(q, square, v_set(4.89352518554385e-03f));
    return v_saturate(x, limit, x * p / q);
}

/* Rational approximation of odd degree 13 over even degree 8, saturated at 4 (as in Eigen). */
INLINE vf v_erf(vf x) {
    const float limit = 4.0f;
    x = v_clamp(x, -limit, limit);
    vf square = x * x;
    vf p = v_set(-2.72614225801306e-10f);
    p = v_fma(p, square, v_set(2.77068142495902e-08f));
    p = v_fma(p, square, v_set(-2.10102402082508e-06f));
    p = v_fma(p, square, v_set(-5.69250639462346e-05f));
    p = v_fma(p, square, v_set(-7.34990630326855e-04f));
    p = v_fma(p, square, v_set(-2.95459980854025e-03f));
    p = v_fma(p, square, v_set(-1.60960333262415e-02f));
    vf q = v_set(-1.45660718464996e-05f);
    q = v_fma(q, square, v_set(-2.13374055278905e-04f));
    q = v_fma(q, square, v_set(-1.68282697438203e-03f));
    q = v_fma(q, square, v_set(-7.37332916720468e-03f));
    q = v_fma(q, square, v_set(-1.42647390514189e-02f));
    return v_saturate(x, limit, x * p / q);
}

INLINE vf activate(vf x, int64_t activation) {
    switch (activation) {
    case GELU:
        return 0.5f * x * (1.0f + v_erf(x * 0.70710678118654752f));
    case GELU_TANH:
        return 0.5f * x * (1.0f + v_tanh(0.79788456080286536f * v_fma(0.044715f * x * x, x, x)));
    case QUICK_GELU:
        return x * v_sigmoid(1.702f * x);
    case SILU:
        return x * v_sigmoid(x);
    case TANH:
        return v_tanh(x);
    case SIGMOID:
        return v_sigmoid(x);
    default: {
        vf positive = v_select(x < 0.0f, (vf){0}, x);
        return activation == RELU ? positive : positive * positive;
    }
    }
}

#endif

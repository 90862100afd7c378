// What crosses the C boundary: one call's shapes, types and arrays. Mirrored by ops/cpu.py, field by field.
#pragma once
#include <stdint.h>

enum Element : int32_t { NONE = 0, FLOAT32 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

struct Problem {
    int32_t batch, height, width;
    int32_t embed, channels;  // of q and k, of v
    int32_t radius;           // of the window: 2 * radius + 1 offsets each way
    int32_t threads;
    int32_t element;          // of q, k, v, out and their gradients: FLOAT32 or BFLOAT16
    int32_t state;            // of the correlation: NONE, FLOAT32 or FLOAT16
    int32_t state_gradient;   // of its gradient: FLOAT32 or BFLOAT16
    int64_t q_stride, k_stride, v_stride;  // elements from one pixel to the next; rows and images are dense
};

struct ForwardArrays {
    const void *q, *k, *v;
    const void *before;  // the correlation of the states before, or null
    void *after;         // where to put this state's correlation, or null; may be `before`
    float *norms;        // [2][pixel]: M of every query and the sum of exp(logit - M) over its keys, or null
    void *out;
    float *exact;        // out before it is rounded to 16 bits, or null
};

struct BackwardArrays {
    const void *q, *k, *v;
    const float *exact;  // out in float32: a rounded one would spoil the differences that make up dS
    const void *out_gradient;
    const float *norms;
    const void *after;           // this state's correlation, or null if none was carried
    const void *after_gradient;  // from the states behind, or null
    void *before_gradient;       // needed when `after` is there; may be `after_gradient`
    void *q_gradient, *k_gradient, *v_gradient;
};

// The gradient of a 3 x 3 convolution's kernel and bias; all float32, dense and channels-last.
struct WeightsProblem {
    int32_t batch, height, width;
    int32_t in, out;  // channels
    int32_t threads;
};

struct WeightsArrays {
    const float *input, *gradient;           // [batch][height][width][in], [batch][height][width][out]
    float *weight_gradient, *bias_gradient;  // [out][3][3][in], [out]
};

// What one instruction set offers.
struct Kernel {
    const char *name;
    int32_t lanes;
    int64_t (*workspace_bytes)(const Problem &, bool backward);
    void (*forward)(const Problem &, const ForwardArrays &, void *workspace);
    void (*backward)(const Problem &, const BackwardArrays &, void *workspace);
    int64_t (*weights_workspace_bytes)(const WeightsProblem &);
    void (*weights)(const WeightsProblem &, const WeightsArrays &, void *workspace);
};

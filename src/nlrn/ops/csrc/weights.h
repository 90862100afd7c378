// The gradient of a 3 x 3 convolution's kernel (padding 1), float32:
//   weight_gradient[o][ky][kx][i] = sum over images b and pixels (y, x) of gradient[b][y][x][o] input[b][y+ky-1][x+kx-1][i]
// and of its bias: the sum of the gradient.
//
// Nine products of long thin matrices, whose sums stay in registers while pixels go by: OUTS numbers of the gradient,
// each broadcast, times INS vectors of the input. Both are first packed by panels: [panel][pixel][its channels], the
// input with a frame of zeros, so that every shift is a constant offset. A thread owns sums, never pixels, so that each
// is taken by one thread in one order.
#pragma once
#include "tile.h"

namespace NLRN_SET {

constexpr int OUTS = 6, INS = 2;            // 12 sums, 2 vectors of the input and a number: 15 of 16 registers
constexpr int64_t PACKED_BYTES = 192 << 10;  // of the rows packed at once: half of a small second-level cache
constexpr int64_t NEAR_BYTES = 32 << 10;     // of the two panels of the rows that a thread goes over nine times

struct WeightsPlan {
    int batch, height, width, in, out, threads;
    int vectors, row;         // of the input's channels; pixels of a packed row
    int band, chunk;          // rows packed at once, and rows gone over at a time
    int in_panels, out_panels;

    explicit WeightsPlan(const WeightsProblem &p)
        : batch(p.batch), height(p.height), width(p.width), in(p.in), out(p.out), threads(p.threads) {
        vectors = ceil_div(in, LANES), row = width + 2;
        in_panels = ceil_div(vectors, INS), out_panels = ceil_div(out, OUTS);
        const int64_t packed = 4 * ((int64_t)row * vectors * LANES + (int64_t)width * out);
        const int64_t near_x = (int64_t)4 * row * INS * LANES, near = near_x + (int64_t)4 * width * OUTS;
        chunk = least(height, (int)(NEAR_BYTES > 2 * near_x ? (NEAR_BYTES - 2 * near_x) / near : 0));
        chunk = most(chunk, least(height, 2));
        band = least(height, most(chunk, (int)(PACKED_BYTES / packed)));
    }
    int in_first(int panel) const { return vectors * panel / in_panels; }
    int out_first(int panel) const { return (int)((int64_t)out * panel / out_panels); }
};

struct WeightsPlanes {
    float *sums, *bias;  // [out][9][vectors][LANES], [out]
    float *input, *gradient;

    WeightsPlanes(const WeightsPlan &g, Arena &memory) {
        sums = memory.take<float>((int64_t)g.out * 9 * g.vectors * LANES);
        bias = memory.take<float>(g.out);
        input = memory.take<float>((int64_t)(g.band + 2) * g.row * g.vectors * LANES);
        gradient = memory.take<float>((int64_t)g.band * g.width * g.out);
    }
};

// Row y of an image, which may lie outside of it, into every panel of the input as row `to` of the packed ones.
static void pack_input(const WeightsPlan &g, const float *image, int y, int to, float *input) {
    for (int panel = 0; panel < g.in_panels; panel++) {
        const int first = g.in_first(panel), count = g.in_first(panel + 1) - first;
        float *p = input + ((int64_t)first * (g.band + 2) + (int64_t)to * count) * g.row * LANES;
        if (y < 0 || y >= g.height) {
            memset(p, 0, (int64_t)g.row * count * LANES * 4);
            continue;
        }
        for (int v = 0; v < count; v++) store(p + v * LANES, floats{}), store(p + ((int64_t)(g.row - 1) * count + v) * LANES, floats{});
        p += count * LANES;
        const int there = least(g.in - first * LANES, count * LANES);
        const float *from = image + (int64_t)y * g.width * g.in + first * LANES;
        for (int x = 0; x < g.width; x++, p += count * LANES, from += g.in) {
            if (there == count * LANES)
                for (int v = 0; v < count; v++) store(p + v * LANES, load(from + v * LANES));
            else
                for (int c = 0; c < count * LANES; c++) p[c] = c < there ? from[c] : 0;
        }
    }
}

static void pack_gradient(const WeightsPlan &g, const float *image, int y, int to, float *gradient) {
    for (int panel = 0; panel < g.out_panels; panel++) {
        const int first = g.out_first(panel), count = g.out_first(panel + 1) - first;
        float *p = gradient + ((int64_t)first * g.band + (int64_t)to * count) * g.width;
        const float *from = image + (int64_t)y * g.width * g.out + first;
        for (int x = 0; x < g.width; x++, p += count, from += g.out)
            for (int c = 0; c < count; c++) p[c] = from[c];
    }
}

// `rows` packed rows of a panel of the gradient and one of the input, onto their sums.
template <int O, int V>
static NLRN_NOINLINE void add_products(const float *input, const float *gradient, int row, int width, int rows,
                                       float *sums, int64_t sums_out, int64_t sums_tap) {
    for (int tap = 0; tap < 9; tap++, sums += sums_tap) {
        floats sum[O][V];
        NLRN_UNROLL for (int o = 0; o < O; o++)
            NLRN_UNROLL for (int v = 0; v < V; v++) sum[o][v] = load(sums + o * sums_out + v * LANES);
        const float *p = gradient;
        for (int y = 0; y < rows; y++) {
            const float *q = input + ((int64_t)(y + tap / 3) * row + tap % 3) * V * LANES;
            for (int x = 0; x < width; x++, q += V * LANES, p += O) {
                floats i[V];
                NLRN_UNROLL for (int v = 0; v < V; v++) i[v] = load(q + v * LANES);
                NLRN_UNROLL for (int o = 0; o < O; o++) {
                    const floats by = every(p[o]);
                    NLRN_UNROLL for (int v = 0; v < V; v++) sum[o][v] = sum[o][v] + by * i[v];
                }
            }
        }
        NLRN_UNROLL for (int o = 0; o < O; o++)
            NLRN_UNROLL for (int v = 0; v < V; v++) store(sums + o * sums_out + v * LANES, sum[o][v]);
    }
}

// All of a band's rows onto the sums of two panels.
static void add_band(const WeightsPlan &g, const WeightsPlanes &m, int rows, int in_panel, int out_panel) {
    const int i0 = g.in_first(in_panel), ins = g.in_first(in_panel + 1) - i0;
    const int o0 = g.out_first(out_panel), outs = g.out_first(out_panel + 1) - o0;
    const int64_t sums_tap = (int64_t)g.vectors * LANES, sums_out = 9 * sums_tap;
    float *sums = m.sums + o0 * sums_out + (int64_t)i0 * LANES;
    const float *input = m.input + (int64_t)i0 * (g.band + 2) * g.row * LANES;
    const float *gradient = m.gradient + (int64_t)o0 * g.band * g.width;
    if (in_panel == 0)
        for (int o = 0; o < outs; o++) {
            float sum = 0;
            for (int64_t i = 0; i < (int64_t)rows * g.width; i++) sum += gradient[i * outs + o];
            m.bias[o0 + o] += sum;
        }
    for (int y = 0; y < rows; y += g.chunk) {
        const float *x = input + (int64_t)y * g.row * ins * LANES, *d = gradient + (int64_t)y * g.width * outs;
        switch (outs * 4 + ins) {
#define CASE(O, V)                                                                                                  \
    case O * 4 + V:                                                                                                 \
        add_products<O, V>(x, d, g.row, g.width, least(g.chunk, rows - y), sums, sums_out, sums_tap);               \
        break;
#define CASES(O) CASE(O, 1) CASE(O, 2)
            CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6)
#undef CASES
#undef CASE
        }
    }
}

static int64_t weights_workspace_bytes(const WeightsProblem &p) {
    Arena memory{nullptr};
    WeightsPlanes(WeightsPlan(p), memory);
    return memory.used;
}

static void weights(const WeightsProblem &p, const WeightsArrays &a, void *workspace) {
    const WeightsPlan g(p);
    Arena memory{(char *)workspace};
    const WeightsPlanes m(g, memory);
    const int64_t taps = (int64_t)9 * g.vectors * LANES;
    memset(m.sums, 0, g.out * taps * 4);
    memset(m.bias, 0, g.out * 4);
    const int bands = ceil_div(g.height, g.band);
#pragma omp parallel num_threads(g.threads)
    for (int number = 0; number < g.batch * bands; number++) {
        const int64_t image = (int64_t)(number / bands) * g.height * g.width;
        const int y0 = number % bands * g.band, rows = least(g.band, g.height - y0);
#pragma omp for schedule(static)
        for (int y = -1; y <= rows; y++) {
            pack_input(g, a.input + image * g.in, y0 + y, y + 1, m.input);
            if (y >= 0 && y < rows) pack_gradient(g, a.gradient + image * g.out, y0 + y, y, m.gradient);
        }
#pragma omp for schedule(static)
        for (int tile = 0; tile < g.in_panels * g.out_panels; tile++)
            add_band(g, m, rows, tile / g.out_panels, tile % g.out_panels);
    }
    for (int64_t row = 0; row < (int64_t)g.out * 9; row++)
        memcpy(a.weight_gradient + row * g.in, m.sums + row * g.vectors * LANES, g.in * 4);
    memcpy(a.bias_gradient, m.bias, g.out * 4);
}

}  // namespace NLRN_SET

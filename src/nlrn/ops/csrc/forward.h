// out_i = sum_j softmax_j(q_i . k_j + before_ij) v_j over the clipped window.
//
// A softmax in one pass: sums are kept relative to a maximum M of the logits so far, and are rescaled only where a new
// logit exceeds M by more than SLACK. exp(SLACK) does no harm and rescaling becomes rare. M is subtracted before the
// logits are brought to base 2, so that logits of any size stay below SLACK.
#pragma once
#include "tile.h"

namespace NLRN_SET {

constexpr float SLACK = 4;

struct ForwardPlanes {
    word *q, *k, *v;
    word *rows;    // for packing, per thread
    float *sums;   // per thread, as everything below: [TILE_ROWS][channels][LANES]
    float *logits;
    floats *largest, *total;  // [TILE_ROWS]: M, and the sum of the weights
    ints *inside;             // [window]

    ForwardPlanes(const Plan &g, const Buffer &buffer, Arena &memory) {
        q = memory.take<word>(g.by_channel(g.embed));
        k = memory.take<word>(g.by_channel(g.embed));
        v = memory.take<word>(g.by_row(g.channels));
        rows = memory.take<word>(row_room(g) * g.threads);
        const int64_t n = g.threads;
        sums = memory.take<float>(n * TILE_ROWS * g.channels * LANES);
        logits = memory.take<float>(n * buffer.size());
        largest = memory.take<floats>(n * TILE_ROWS);
        total = memory.take<floats>(n * TILE_ROWS);
        inside = memory.take<ints>(n * g.window);
    }
};

template <int PAIR, int STATE> struct Forward {
    const Plan &g;
    const Buffer &buffer;
    const ForwardArrays &a;
    const ForwardPlanes &m;
    const bool bf16;
    const Tile tile;
    float *sums, *logits;
    floats *largest, *total;
    const ints *inside;

    Forward(const Plan &g, const Buffer &buffer, const ForwardArrays &a, const ForwardPlanes &m, bool bf16,
            int number, int thread)
        : g(g), buffer(buffer), a(a), m(m), bf16(bf16), tile(g, number) {
        sums = m.sums + (int64_t)thread * TILE_ROWS * g.channels * LANES;
        logits = m.logits + thread * buffer.size();
        largest = m.largest + thread * TILE_ROWS;
        total = m.total + thread * TILE_ROWS;
        inside = tile.inside(g, m.inside + thread * g.window);
    }

    void run() {
        memset(sums, 0, (int64_t)TILE_ROWS * g.channels * LANES * 4);
        for (int i = 0; i < TILE_ROWS; i++) largest[i] = every(MASKED), total[i] = floats{};
        if (STATE && a.after && a.after != a.before) clear_outside(g, tile, a.after, bytes_of<STATE>());  // else they are 0 already
        for_groups(
            g, tile, buffer.at_once, [&](int first, int end, int part) { fetch_next(first, end, part); },
            [&](Span met, int first, int end) { attend(met, first, end); }
        );
        for (int y = tile.y0; y < tile.y1; y++) finish(y);
    }

    // Rows `met` against the groups [first, end).
    void attend(Span met, int first, int end) {
        floats top[ROWS];
        for (int r = 0; r < ROWS; r++) top[r] = every(MASKED);
        for (int group = first; group < end; group++)
            for (int half = 0; half < PAIR; half++) correlate_row(met, group * PAIR + half, at(0, group - first, half), top);
        for (int y = met.first; y < met.end; y++) {
            rescale(y - tile.y0, top[y - met.first]);
            for (int group = first; group < end; group++) weigh(y, group, at(y - met.first, group - first, 0));
        }
        const word *values = m.v + ((int64_t)tile.b * g.groups + first) * g.channels * g.pitch + tile.there(g);
        average<PAIR>(
            met.end - met.first, sums + (int64_t)(met.first - tile.y0) * g.channels * LANES, g.channels,
            (const word *)logits, buffer.row, buffer.group, values, (int64_t)g.channels * g.pitch, g.pitch, end - first,
            tile.offsets
        );
    }

    float *at(int row, int group, int half) const {
        return logits + row * buffer.row + group * buffer.group + half * buffer.offset_row;
    }

    // The logits of the rows `met` towards key row ky; `top` follows their maxima.
    void correlate_row(Span met, int ky, float *to, floats *top) const {
        const Span rows = meeting(g, met, ky);
        if (rows.empty()) return;
        const int skip = rows.first - met.first;
        Ends<STATE> ends;
        ends.inside = inside;
        ends.largest = top + skip;
        if (STATE)
            for (int y = rows.first; y < rows.end; y++) {
                const int64_t place = place_of(y, ky - y + g.radius, tile.first);
                if (a.before) {
                    ends.before[y - rows.first] = (const char *)a.before + place;
                    prefetch_bytes(ends.before[y - rows.first], (int64_t)tile.offsets * LANES * bytes_of<STATE>());
                }
                if (a.after) ends.after[y - rows.first] = (char *)a.after + place;
            }
        const int64_t row = (int64_t)g.words(g.embed) * g.pitch, image = (int64_t)tile.b * g.height;
        correlate<PAIR, STATE>(
            rows.end - rows.first, m.q + (image + rows.first) * row + tile.here(g), row,
            m.k + (image + ky) * row + tile.there(g), g.pitch, g.words(g.embed), tile.offsets,
            to + skip * buffer.row, buffer.row, ends
        );
    }

    // Byte of the correlation of a row of queries at an offset.
    int64_t place_of(int y, int dy, int dx) const {
        return (g.logits(tile.b, y, tile.block, dy) + (int64_t)dx * LANES) * bytes_of<STATE>();
    }

    // Raise M of a row where a logit stands out, and what was summed under the old one.
    void rescale(int i, floats top) {
        if (!any((ints)(top > largest[i] + SLACK))) return;
        const floats higher = larger(top, largest[i]), factor = exp2_of<false>((largest[i] - higher) * LOG2_E);
        largest[i] = higher;
        total[i] *= factor;
        float *sum = sums + (int64_t)i * g.channels * LANES;
        for (int c = 0; c < g.channels; c++) store(sum + c * LANES, factor * load(sum + c * LANES));
    }

    // The logits of row y towards a group become weights, in place; rows of the group that y does not meet weigh 0.
    void weigh(int y, int group, float *row) {
        const int i = y - tile.y0;
        const floats m = largest[i];
        floats sum[PAIR];
        bool met[PAIR];
        for (int half = 0; half < PAIR; half++) {
            const int ky = group * PAIR + half;
            met[half] = ky < g.height && ky - y <= g.radius && y - ky <= g.radius;
            sum[half] = floats{};
        }
        auto all = [&](bool first, bool second) NLRN_INLINE_BODY {
            for (int d = 0; d < tile.offsets; d++) {
                float *p = row + d * LANES;
                floats w[2] = {floats{}, floats{}};
                if (first) w[0] = exp2_of<PAIR == 2>((load(p) - m) * LOG2_E);
                if (PAIR == 2 && second) w[1] = exp2_of<PAIR == 2>((load(p + buffer.offset_row) - m) * LOG2_E);
                for (int half = 0; half < PAIR; half++) sum[half] += w[half];
                store_words((word *)p, paired<PAIR>(w[0], w[1]));
            }
        };
        if (PAIR == 1 || (met[0] && met[PAIR - 1])) all(true, true);
        else if (met[0]) all(true, false);
        else all(false, true);
        for (int half = 0; half < PAIR; half++) total[i] += sum[half];
    }

    void finish(int y) {
        const int i = y - tile.y0, x = tile.block * LANES, count = least(LANES, g.width - x);
        const floats share = 1.f / total[i];
        const float *sum = sums + (int64_t)i * g.channels * LANES;
        const int64_t pixel = ((int64_t)tile.b * g.height + y) * g.width + x;
        store_pixels(sum, share, g.channels, a.out, bf16, pixel, count);
        if (a.exact) store_pixels(sum, share, g.channels, a.exact, false, pixel, count);
        if (!a.norms) return;
        const int64_t pixels = (int64_t)g.batch * g.height * g.width;
        for (int l = 0; l < count; l++) {
            a.norms[pixel + l] = largest[i][l];
            a.norms[pixels + pixel + l] = total[i][l];
        }
    }

    // The rows that come next; every ROWS rows of the tile ask for their share.
    void fetch_next(int first, int end, int part) const {
        const int parts = ceil_div(tile.y1 - tile.y0, ROWS), words = tile.offsets + LANES, embed = g.words(g.embed);
        const int64_t image = (int64_t)tile.b * g.height;
        prefetch(m.v + (int64_t)tile.b * g.groups * g.channels * g.pitch + tile.there(g), g.pitch, first * g.channels,
                 end * g.channels, part, parts, words);
        prefetch(m.k + image * embed * g.pitch + tile.there(g), g.pitch, first * PAIR * embed,
                 least(end * PAIR, g.height) * embed, part, parts, words);
    }
};

template <int PAIR, int STATE>
static void forward(const Plan &g, const Problem &p, const ForwardArrays &a, void *workspace) {
    const Buffer buffer(g, 1);
    Arena memory{(char *)workspace};
    const ForwardPlanes m(g, buffer, memory);
    const bool bf16 = p.element == BFLOAT16;
    g.clear_ends(a.after, bytes_of<STATE>());
    pack_by_channel<PAIR>(g, {(const char *)a.q, p.q_stride, bf16}, g.embed, m.q);
    pack_by_channel<PAIR>(g, {(const char *)a.k, p.k_stride, bf16}, g.embed, m.k);
    pack_by_row<PAIR>(g, {(const char *)a.v, p.v_stride, bf16}, g.channels, m.v, m.rows);
#pragma omp parallel for schedule(dynamic, 1) num_threads(g.threads)
    for (int number = 0; number < Tile::count(g); number++)
        Forward<PAIR, STATE>(g, buffer, a, m, bf16, number, omp_get_thread_num()).run();
}

}  // namespace NLRN_SET

// The gradients, in two passes that only gather, so that every number is summed by one thread in one order.
//
// With p = exp(S - M) / sum (the two apart: their logarithm would lose the sum where M is large), D_i = out_i . out_gradient_i and
//     dS_ij = p_ij (out_gradient_i . v_j - D_i) + after_gradient_ij:
//   query pass, rows are queries:  q_gradient_i = sum_j dS_ij k_j, and dS is the gradient of `before`
//   key pass, rows are keys:       k_gradient_j = sum_i dS_ij q_i,  v_gradient_j = sum_i p_ij out_gradient_i
// S comes from the stored correlation, or, where none was carried, again from q . k. In the key pass with a
// correlation no product is computed again: the query pass leaves what it needs, in bf16 as pairs of p and dS, otherwise
// as S and dS. Both lie along queries instead of keys: queries that see the LANES keys of a block at offset dx lie
// beside each other too, in at most two blocks.
#pragma once
#include "tile.h"

namespace NLRN_SET {

struct BackwardPlanes {
    word *q, *k, *v, *o;           // by channel; o: the gradient of out
    word *q_rows, *k_rows, *o_rows;  // by row
    word *rows;
    float *most, *share, *d;  // plane rows: M, 1 / sum (0 outside the image, so that p is 0), and D
    float *sums;     // per thread, as below: [TILE_ROWS][embed + channels][LANES]
    float *first, *second;
    ints *inside;
    int at_once;  // images between the two passes, so that what waits for the second stays in a cache
    word *pairs;  // (p, dS) of these images, laid out as a correlation; null where there are none

    BackwardPlanes(const Plan &g, const Buffer &buffer, bool state, Arena &memory) {
        v = memory.take<word>(g.by_channel(g.channels));
        o = memory.take<word>(g.by_channel(g.channels));
        q = k = q_rows = k_rows = nullptr;
        if (!state || g.pair == 1) {
            q = memory.take<word>(g.by_channel(g.embed));
            k = memory.take<word>(g.by_channel(g.embed));
        }
        if (g.pair == 2) {
            q_rows = memory.take<word>(g.by_row(g.embed));
            k_rows = memory.take<word>(g.by_row(g.embed));
            o_rows = memory.take<word>(g.by_row(g.channels));
        } else {
            q_rows = q, k_rows = k, o_rows = o;
        }
        rows = memory.take<word>(row_room(g) * g.threads);
        most = memory.take<float>((int64_t)g.batch * g.height * g.pitch);
        share = memory.take<float>((int64_t)g.batch * g.height * g.pitch);
        d = memory.take<float>((int64_t)g.batch * g.height * g.pitch);
        const int64_t n = g.threads;
        sums = memory.take<float>(n * TILE_ROWS * (g.embed + g.channels) * LANES);
        first = memory.take<float>(n * buffer.size());
        second = memory.take<float>(n * buffer.size());
        inside = memory.take<ints>(n * g.window);
        at_once = g.batch;
        pairs = nullptr;
        if (!state) return;
        at_once = least(g.batch, g.threads);
        if (g.pair == 1) return;
        pairs = memory.take<word>(g.logits(at_once, 0, 0, 0) + LANES);
    }
};

// What both passes share: PASS is QUERIES or KEYS, which says what the rows of a tile are.
enum Pass { QUERIES, KEYS };

struct Lanes {  // -1 in each of LANES numbers, then 0
    alignas(64) int32_t number[2 * LANES];
    constexpr Lanes() : number() {
        for (int i = 0; i < LANES; i++) number[i] = -1;
    }
};
static constexpr Lanes FIRST{};
static constexpr const int32_t *FIRST_LANES = FIRST.number;
alignas(64) static constexpr float NOTHING[LANES] = {0};

template <int PASS, int PAIR, int STATE, int GRADIENT> struct Backward {
    const Plan &g;
    const Buffer &buffer;
    const BackwardArrays &a;
    const BackwardPlanes &m;
    const bool bf16;
    const Tile tile;
    // Keys read what their queries left, partly in the blocks beside theirs: these lines are in the cache still. The pairs
    // are half as many bytes, and it makes no difference to them.
    static constexpr bool ACROSS = PASS == KEYS && STATE && PAIR == 1;
    float *sums, *more_sums;    // of q_gradient; or of k_gradient and v_gradient
    float *scores, *products;   // S, later p; out_gradient . v, later dS
    const ints *inside;

    Backward(const Plan &g, const Buffer &buffer, const BackwardArrays &a, const BackwardPlanes &m, bool bf16,
             int number, int thread)
        : g(g), buffer(buffer), a(a), m(m), bf16(bf16), tile(g, number, ACROSS) {
        sums = m.sums + (int64_t)thread * TILE_ROWS * (g.embed + g.channels) * LANES;
        more_sums = sums + (int64_t)TILE_ROWS * g.embed * LANES;
        scores = m.first + thread * buffer.size();
        products = m.second + thread * buffer.size();
        inside = PASS == QUERIES ? tile.inside(g, m.inside + thread * g.window) : nullptr;
    }

    void run() {
        memset(sums, 0, (int64_t)TILE_ROWS * (g.embed + (PASS == KEYS ? g.channels : 0)) * LANES * 4);
        if (PASS == QUERIES && STATE) clear_outside(g, tile, a.before_gradient, bytes_of<GRADIENT>());
        for_groups(
            g, tile, buffer.at_once, [&](int first, int end, int part) { fetch_next(first, end, part); },
            [&](Span met, int first, int end) { work_on(met, first, end); }
        );
        for (int y = tile.y0; y < tile.y1; y++) {
            const int x = tile.block * LANES, count = least(LANES, g.width - x);
            const int64_t pixel = ((int64_t)tile.b * g.height + y) * g.width + x;
            const float *sum = sums + (int64_t)(y - tile.y0) * g.embed * LANES;
            store_pixels(sum, every(1.f), g.embed, PASS == QUERIES ? a.q_gradient : a.k_gradient, bf16, pixel, count);
            if (PASS == KEYS)
                store_pixels(more_sums + (int64_t)(y - tile.y0) * g.channels * LANES, every(1.f), g.channels, a.v_gradient, bf16,
                             pixel, count);
        }
    }

    void work_on(Span met, int first, int end) {
        for (int group = first; group < end; group++)
            for (int half = 0; half < PAIR; half++) correlate_row(met, group * PAIR + half, group - first, half);
        for (int y = met.first; y < met.end; y++)
            for (int group = first; group < end; group++) weigh(y, y - met.first, group, group - first);
        const int64_t group_row = (int64_t)tile.b * g.groups + first;
        const int rows = met.end - met.first, skip = met.first - tile.y0;
        auto gather = [&](float *to, int channels, const float *weights, const word *values) {
            average<PAIR>(rows, to + (int64_t)skip * channels * LANES, channels, (const word *)weights, buffer.row,
                          buffer.group, values + group_row * channels * g.pitch + tile.there(g),
                          (int64_t)channels * g.pitch, g.pitch, end - first, tile.offsets);
        };
        gather(sums, g.embed, products, PASS == QUERIES ? m.k_rows : m.q_rows);
        if (PASS == KEYS) gather(more_sums, g.channels, scores, m.o_rows);
    }

    int64_t place(int row, int group, int half) const {
        return row * buffer.row + group * buffer.group + half * buffer.offset_row;
    }

    // q . k where it is not stored, and out_gradient . v, of the rows `met` and the partner row py.
    void correlate_row(Span met, int py, int group, int half) const {
        if (STATE && PASS == KEYS) return;
        const Span rows = meeting(g, met, py);
        if (rows.empty()) return;
        if (STATE) fetch_states(rows, py);
        const int64_t to = place(rows.first - met.first, group, half), image = (int64_t)tile.b * g.height;
        auto product = [&](const word *left, const word *right, int channels, float *result) {
            const int64_t row = (int64_t)g.words(channels) * g.pitch;
            correlate<PAIR, NONE>(rows.end - rows.first, left + (image + rows.first) * row + tile.here(g), row,
                                  right + (image + py) * row + tile.there(g), g.pitch, g.words(channels),
                                  tile.offsets, result + to, buffer.row, Ends<NONE>());
        };
        if (!STATE) PASS == QUERIES ? product(m.q, m.k, g.embed, scores) : product(m.k, m.q, g.embed, scores);
        PASS == QUERIES ? product(m.o, m.v, g.channels, products) : product(m.v, m.o, g.channels, products);
    }

    // p and dS of row y and a group, in place.
    void weigh(int y, int row, int group, int slot) const {
        float *p = scores + place(row, slot, 0), *ds = products + place(row, slot, 0);
        bool met[PAIR];
        for (int half = 0; half < PAIR; half++) {
            const int py = group * PAIR + half;
            met[half] = py < g.height && py - y <= g.radius && y - py <= g.radius;
        }
        if (PASS == KEYS && STATE) return weigh_stored_keys(y, group, met, p, ds);
        for (int half = 0; half < PAIR; half++)
            if (met[half]) PASS == QUERIES ? weigh_query(y, group * PAIR + half, p, ds, half) : weigh_key(group * PAIR + half, p, ds, half);
        if (PAIR == 1) return;
        for (int d = 0; d < tile.offsets; d++) {  // two rows of floats to one of pairs
            pack(ds + d * LANES, met[0], met[PAIR - 1]);
            if (PASS == KEYS) pack(p + d * LANES, met[0], met[PAIR - 1]);
        }
    }
    void pack(float *p, bool even, bool odd) const {
        store_words((word *)p, paired<PAIR>(even ? load(p) : floats{}, odd ? load(p + buffer.offset_row) : floats{}));
    }

    int64_t plane_row(int y) const { return ((int64_t)tile.b * g.height + y) * g.pitch; }

    void weigh_query(int y, int ky, float *p, float *ds, int half) const {
        const int64_t here = plane_row(y) + tile.here(g);
        const floats most = load(m.most + here), share = load(m.share + here), dd = load(m.d + here);
        const int64_t stored = STATE ? g.logits(tile.b, y, tile.block, ky - y + g.radius) + (int64_t)tile.first * LANES : 0;
        const char *s = (const char *)a.after + stored * bytes_of<STATE>();
        const char *later = a.after_gradient ? (const char *)a.after_gradient + stored * bytes_of<GRADIENT>() : nullptr;
        char *before = (char *)a.before_gradient + stored * bytes_of<GRADIENT>();
        word *pairs = m.pairs + stored - skipped();
        p += half * buffer.offset_row, ds += half * buffer.offset_row;
        for (int d = 0; d < tile.offsets; d++) {
            const floats logit = STATE ? load_as<STATE>(s + d * LANES * bytes_of<STATE>()) : load(p + d * LANES);
            const floats weight = share * exp2_of<PAIR == 2>((logit - most) * LOG2_E);
            floats gradient = weight * (load(ds + d * LANES) - dd);
            if (STATE && later) gradient += load_as<GRADIENT>(later + d * LANES * bytes_of<GRADIENT>());
            if (inside) gradient = (floats)((ints)gradient & inside[d]);
            if (STATE) store_as<GRADIENT>(before + d * LANES * bytes_of<GRADIENT>(), gradient);
            if (STATE && PAIR == 2) store_words(pairs + d * LANES, paired<PAIR>(weight, gradient));
            store(ds + d * LANES, gradient);
        }
    }

    void weigh_key(int qy, float *p, float *ds, int half) const {
        const int64_t there = plane_row(qy) + tile.there(g);
        const float *most = m.most + there, *share = m.share + there, *dd = m.d + there;
        p += half * buffer.offset_row, ds += half * buffer.offset_row;
        for (int d = 0; d < tile.offsets; d++) {
            const floats weight = load(share + d) * exp2_of<PAIR == 2>((load(p + d * LANES) - load(most + d)) * LOG2_E);
            store(ds + d * LANES, weight * (load(ds + d * LANES) - load(dd + d)));
            store(p + d * LANES, weight);
        }
    }

    // Numbers of the images whose pairs are not there any more.
    int64_t skipped() const { return g.logits(tile.b / m.at_once * m.at_once, 0, 0, 0) - LANES; }

    // Numbers of LANES neighbouring queries from a tensor that is laid out as a correlation: of one block from number
    // `shift` on, the rest from the start of the next block, which may both lie outside the image.
    template <int TYPE> struct Across {
        static constexpr int SIZE = bytes_of<TYPE>();
        const char *low, *high;
        int64_t low_step, high_step;

        Across(const void *data, int64_t number, int64_t next, bool one, bool other, int shift) {
            const char *at = (const char *)data + number * SIZE;
            low = one ? at + shift * SIZE : (const char *)NOTHING;
            high = other ? at + (next + shift - LANES) * SIZE : (const char *)NOTHING;
            low_step = one ? (1 - LANES) * SIZE : 0, high_step = other ? (1 - LANES) * SIZE : 0;
        }
        // of the i-th shift; `first`: the lanes of the first block
        NLRN_INLINE_BODY floats read(int i, ints first) const {
            return where(first, load_as<TYPE>(low + i * low_step), load_as<TYPE>(high + i * high_step));
        }
    };

    // p and dS of the keys of row y towards the queries of a group, from what the query pass left.
    void weigh_stored_keys(int y, int group, const bool *met, float *p, float *ds) const {
        const int64_t next = (int64_t)g.window * g.window * LANES;  // numbers from block to block
        int64_t row[PAIR], there[PAIR];
        for (int half = 0; half < PAIR; half++) {
            const int qy = least(group * PAIR + half, g.height - 1);
            row[half] = g.logits(tile.b, qy, 0, met[half] ? y - qy + g.radius : 0);
            there[half] = plane_row(qy) + tile.there(g);
        }
        for (int d = 0; d < tile.offsets;) {  // the offsets whose first query lies in one block, together
            const int x = tile.block * LANES + tile.first + d - g.radius;
            const int block = x >= 0 ? x / LANES : -1, shift = x - block * LANES;
            const int end = least(tile.offsets, d + LANES - shift);
            const int64_t place = block * next + (int64_t)(g.window - 1 - (tile.first + d)) * LANES;
            const bool one = block >= 0, other = block + 1 < g.blocks;
            auto lanes = [&](int i) NLRN_INLINE_BODY { return load_words((const word *)FIRST_LANES + shift + i); };
            if (PAIR == 2) {
                const Across<FLOAT32> even(m.pairs, row[0] - skipped() + place, next, one && met[0], other && met[0], shift);
                const Across<FLOAT32> odd(m.pairs, row[PAIR - 1] - skipped() + place, next, one && met[PAIR - 1],
                                          other && met[PAIR - 1], shift);
                for (int i = 0; d + i < end; i++) {
                    const ints first = lanes(i), a = (ints)even.read(i, first), b = (ints)odd.read(i, first);
                    store_words((word *)(p + (d + i) * LANES), (a & 0xffff) | b << 16);
                    store_words((word *)(ds + (d + i) * LANES), ((a >> 16) & 0xffff) | (b & ~0xffff));
                }
            } else {
                const Across<STATE> s(a.after, row[0] + place, next, one, other, shift);
                const Across<GRADIENT> gradient(a.before_gradient, row[0] + place, next, one, other, shift);
                const float *most = m.most + there[0], *share = m.share + there[0];
                for (int i = 0; d + i < end; i++) {
                    const ints first = lanes(i);
                    const floats above = s.read(i, first) - load(most + d + i);
                    store(p + (d + i) * LANES, load(share + d + i) * exp2_of<false>(above * LOG2_E));
                    store(ds + (d + i) * LANES, gradient.read(i, first));
                }
            }
            d = end;
        }
    }
    // What weigh_query reads of the states of the queries `rows` towards key row ky.
    void fetch_states(Span rows, int ky) const {
        for (int y = rows.first; y < rows.end; y++) {
            const int64_t stored = g.logits(tile.b, y, tile.block, ky - y + g.radius) + (int64_t)tile.first * LANES;
            const int64_t count = (int64_t)tile.offsets * LANES;
            prefetch_bytes((const char *)a.after + stored * bytes_of<STATE>(), count * bytes_of<STATE>());
            if (a.after_gradient)
                prefetch_bytes((const char *)a.after_gradient + stored * bytes_of<GRADIENT>(), count * bytes_of<GRADIENT>());
        }
    }

    // What weigh_stored_keys will read of the queries of row qy for the keys of row y: of every block of queries the
    // offsets at which some of its lanes meets one of this tile.
    void fetch_stored_keys(int y, int qy) const {
        const int dy = y - qy + g.radius;
        if (dy < 0 || dy >= g.window) return;
        const int x = tile.block * LANES, reach = LANES - 1;
        for (int block = most(0, x - g.radius) / LANES; block < g.blocks && block * LANES <= x + reach + g.radius; block++) {
            const int middle = g.radius + x - block * LANES;
            const int from = most(0, middle - reach), to = least(g.window, middle + reach + 1);
            const int64_t stored = g.logits(tile.b, qy, block, dy) + (int64_t)from * LANES;
            const int64_t count = (int64_t)(to - from) * LANES;
            if (PAIR == 2) {
                prefetch_bytes(m.pairs + stored - skipped(), count * 4);
            } else {
                prefetch_bytes((const char *)a.after + stored * bytes_of<STATE>(), count * bytes_of<STATE>());
                prefetch_bytes((const char *)a.before_gradient + stored * bytes_of<GRADIENT>(), count * bytes_of<GRADIENT>());
            }
        }
    }

    void fetch_next(int first, int end, int part) const {
        if (STATE && PASS == KEYS) {
            const int from = tile.y0 + part * ROWS;
            for (int qy = first * PAIR; qy < least(end * PAIR, g.height); qy++)
                for (int row = from; row < least(from + ROWS, tile.y1); row++) fetch_stored_keys(row, qy);
        }
        const int parts = ceil_div(tile.y1 - tile.y0, ROWS), words = tile.offsets + LANES;
        const int64_t image = (int64_t)tile.b * g.height, group_row = (int64_t)tile.b * g.groups;
        auto fetch = [&](const word *rows, int64_t row, int from, int to, int planes) {
            prefetch(rows + row * planes * g.pitch + tile.there(g), g.pitch, from * planes, to * planes, part, parts, words);
        };
        const int y = first * PAIR, y_end = least(end * PAIR, g.height);
        if (!STATE) fetch(PASS == QUERIES ? m.k : m.q, image, y, y_end, g.words(g.embed));
        if (!STATE || PASS == QUERIES) fetch(PASS == QUERIES ? m.v : m.o, image, y, y_end, g.words(g.channels));
        if (PAIR == 2) fetch(PASS == QUERIES ? m.k_rows : m.q_rows, group_row, first, end, g.embed);
        if (PAIR == 2 && PASS == KEYS) fetch(m.o_rows, group_row, first, end, g.channels);
    }
};

// M, 1 / sum and D = out . out_gradient of every pixel, as plane rows.
static void pack_statistics(const Plan &g, const BackwardArrays &a, bool bf16, const BackwardPlanes &m) {
    const Pixels gradient{(const char *)a.out_gradient, g.channels, bf16};
    const int64_t pixels = (int64_t)g.batch * g.height * g.width;
#pragma omp parallel for schedule(static) num_threads(g.threads)
    for (int row = 0; row < g.batch * g.height; row++) {
        float *most = m.most + (int64_t)row * g.pitch, *share = m.share + (int64_t)row * g.pitch;
        float *d = m.d + (int64_t)row * g.pitch;
        for (int x = 0; x < g.pitch; x++) most[x] = 1e30f, share[x] = d[x] = 0;
        for (int x = 0; x < g.width; x++) {
            const int64_t pixel = (int64_t)row * g.width + x;
            most[g.left + x] = a.norms[pixel];
            share[g.left + x] = 1 / a.norms[pixels + pixel];
            const float *out = a.exact + pixel * g.channels;
            floats sum{};
            int c = 0;
            for (; c + LANES <= g.channels; c += LANES) {
                const char *of = gradient.at(pixel, c);
                sum += load(out + c) * (bf16 ? load_as<BFLOAT16>(of) : load_as<FLOAT32>(of));
            }
            float total = 0;
            for (int i = 0; i < LANES; i++) total += sum[i];
            for (; c < g.channels; c++) total += out[c] * gradient.number(pixel, c);
            d[g.left + x] = total;
        }
    }
}

template <int PAIR, int STATE, int GRADIENT>
static void backward(const Plan &g, const Problem &p, const BackwardArrays &a, void *workspace) {
    const Buffer buffer(g, 2);
    Arena memory{(char *)workspace};
    const BackwardPlanes m(g, buffer, STATE != NONE, memory);
    const bool bf16 = p.element == BFLOAT16;
    const Pixels q{(const char *)a.q, p.q_stride, bf16}, k{(const char *)a.k, p.k_stride, bf16};
    const Pixels v{(const char *)a.v, p.v_stride, bf16}, o{(const char *)a.out_gradient, g.channels, bf16};
    if (m.q) pack_by_channel<PAIR>(g, q, g.embed, m.q), pack_by_channel<PAIR>(g, k, g.embed, m.k);
    pack_by_channel<PAIR>(g, v, g.channels, m.v);
    pack_by_channel<PAIR>(g, o, g.channels, m.o);
    if (PAIR == 2) {
        pack_by_row<PAIR>(g, q, g.embed, m.q_rows, m.rows);
        pack_by_row<PAIR>(g, k, g.embed, m.k_rows, m.rows);
        pack_by_row<PAIR>(g, o, g.channels, m.o_rows, m.rows);
    }
    pack_statistics(g, a, bf16, m);
    g.clear_ends(a.before_gradient, bytes_of<GRADIENT>());
    const int tiles = Tile::count(g) / g.batch * m.at_once;  // fixed shares: who left the pairs mostly takes them up
    for (int first = 0; first < Tile::count(g); first += tiles) {
        const int end = least(Tile::count(g), first + tiles);
#pragma omp parallel for schedule(static) num_threads(g.threads)
        for (int number = first; number < end; number++)
            Backward<QUERIES, PAIR, STATE, GRADIENT>(g, buffer, a, m, bf16, number, omp_get_thread_num()).run();
#pragma omp parallel for schedule(static) num_threads(g.threads)
        for (int number = first; number < end; number++)
            Backward<KEYS, PAIR, STATE, GRADIENT>(g, buffer, a, m, bf16, number, omp_get_thread_num()).run();
    }
}

}  // namespace NLRN_SET

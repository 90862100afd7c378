// The two inner loops. Both hold ROWS x WIDTH sums in registers, so that a vector that was loaded is used ROWS or
// WIDTH times; they are the machine's limit, and everything else is arranged around them. Fewer rows, at the ends of a
// window, are met by more offsets or channels at a time.
#pragma once
#include "layout.h"

namespace NLRN_SET {

constexpr int WIDEST = 12;
constexpr int width_of(int rows) { return ROWS * WIDTH / rows < WIDEST ? ROWS * WIDTH / rows : WIDEST; }

// What happens to a row of logits while they are in registers: the pointers are those of the first offset.
template <int STATE> struct Ends {
    const ints *inside = nullptr;          // [offset]: lanes whose key lies in the image, or null: all do
    floats *largest = nullptr;             // [row]: running maximum, or null
    const char *before[ROWS] = {nullptr};  // [row]: the correlation to add, or null
    char *after[ROWS] = {nullptr};         // [row]: where the sum goes, or null
};

// logits[r][d] = sum over words w of queries[r][w] . keys[w] moved by d lanes, for R rows and D offsets
template <int PAIR, int STATE, int R, int D>
static NLRN_NOINLINE void correlate_block(
    const word *queries, int64_t query_row, const word *keys, int64_t pitch, int words, float *logits,
    int64_t logits_row, int first, const Ends<STATE> &ends
) {
    floats sum[R][D];
    NLRN_UNROLL for (int r = 0; r < R; r++) NLRN_UNROLL for (int d = 0; d < D; d++) sum[r][d] = floats{};
    for (int w = 0; w < words; w++, queries += pitch, keys += pitch) {
        ints q[R];
        NLRN_UNROLL for (int r = 0; r < R; r++) q[r] = load_words(queries + r * query_row);
        NLRN_UNROLL for (int d = 0; d < D; d++) {
            const ints k = load_words(keys + d);
            NLRN_UNROLL for (int r = 0; r < R; r++) sum[r][d] = dot<PAIR>(sum[r][d], q[r], k);
        }
    }
    constexpr int SIZE = STATE ? bytes_of<STATE>() * LANES : 0;
    NLRN_UNROLL for (int r = 0; r < R; r++) {
        floats largest = ends.largest ? ends.largest[r] : floats{};
        NLRN_UNROLL for (int d = 0; d < D; d++) {
            floats s = sum[r][d];
            if (STATE) {
                if (ends.before[r]) s += load_as<STATE>(ends.before[r] + (int64_t)(first + d) * SIZE);
                if (ends.inside) s = (floats)((ints)s & ends.inside[first + d]);
                if (ends.after[r]) {
                    char *place = ends.after[r] + (int64_t)(first + d) * SIZE;
                    store_as<STATE>(place, s);
                    if (STATE != FLOAT32) s = load_as<STATE>(place);  // what the backward pass will find
                }
            }
            if (ends.inside) s = where(ends.inside[first + d], s, every(MASKED));
            store(logits + r * logits_row + d * LANES, s);
            largest = larger(largest, s);
        }
        if (ends.largest) ends.largest[r] = largest;
    }
}

template <int PAIR, int STATE>
static void correlate(
    int rows, const word *queries, int64_t query_row, const word *keys, int64_t pitch, int words, int offsets,
    float *logits, int64_t logits_row, const Ends<STATE> &ends
) {
    const int parts = ceil_div(offsets, width_of(rows));
    for (int i = 0, d = 0; i < parts; i++) {
        const int end = offsets * (i + 1) / parts;  // parts of nearly one size: no small one at the end
        switch (rows * 16 + end - d) {
#define CASE(R, D)                                                                                               \
    case R * 16 + D:                                                                                              \
        if constexpr (R <= ROWS && D <= width_of(R))                                                                   \
            correlate_block<PAIR, STATE, R, D>(                                                                  \
                queries, query_row, keys + d, pitch, words, logits + d * LANES, logits_row, d, ends              \
            );                                                                                                   \
        break;
#define CASES(R)                                                                                                 \
    CASE(R, 1) CASE(R, 2) CASE(R, 3) CASE(R, 4) CASE(R, 5) CASE(R, 6) CASE(R, 7) CASE(R, 8) CASE(R, 9) CASE(R, 10) \
    CASE(R, 11) CASE(R, 12)
            CASES(1) CASES(2) CASES(3) CASES(4)
#undef CASE
        }
        d = end;
    }
}

// sums[r][c] += sum over groups g and offsets d of weights[r][g][d] . values[g][c] moved by d lanes
template <int PAIR, int R, int C>
static NLRN_NOINLINE void average_block(
    float *sums, int64_t sums_row, const word *weights, int64_t weights_row, int64_t weights_group,
    const word *values, int64_t values_group, int64_t pitch, int groups, int offsets
) {
    floats sum[R][C];
    NLRN_UNROLL for (int r = 0; r < R; r++)
        NLRN_UNROLL for (int c = 0; c < C; c++) sum[r][c] = load(sums + r * sums_row + c * LANES);
    for (int g = 0; g < groups; g++) {
        const word *w = weights + g * weights_group, *v = values + g * values_group;
        for (int d = 0; d < offsets; d++, w += LANES, v++) {
            ints p[R];
            NLRN_UNROLL for (int r = 0; r < R; r++) p[r] = load_words(w + r * weights_row);
            NLRN_UNROLL for (int c = 0; c < C; c++) {
                const ints x = load_words(v + c * pitch);
                NLRN_UNROLL for (int r = 0; r < R; r++) sum[r][c] = dot<PAIR>(sum[r][c], p[r], x);
            }
        }
    }
    NLRN_UNROLL for (int r = 0; r < R; r++)
        NLRN_UNROLL for (int c = 0; c < C; c++) store(sums + r * sums_row + c * LANES, sum[r][c]);
}

template <int PAIR>
static void average(
    int rows, float *sums, int channels, const word *weights, int64_t weights_row, int64_t weights_group,
    const word *values, int64_t values_group, int64_t pitch, int groups, int offsets
) {
    const int parts = ceil_div(channels, width_of(rows));
    const int64_t sums_row = (int64_t)channels * LANES;
    for (int i = 0, c = 0; i < parts; i++) {
        const int end = (int)((int64_t)channels * (i + 1) / parts);
        switch (rows * 16 + end - c) {
#define CASE(R, C)                                                                                               \
    case R * 16 + C:                                                                                              \
        if constexpr (R <= ROWS && C <= width_of(R))                                                                   \
            average_block<PAIR, R, C>(                                                                           \
                sums + c * LANES, sums_row, weights, weights_row, weights_group, values + c * pitch,             \
                values_group, pitch, groups, offsets                                                             \
            );                                                                                                   \
        break;
            CASES(1) CASES(2) CASES(3) CASES(4)
#undef CASE
#undef CASES
        }
        c = end;
    }
}

}  // namespace NLRN_SET

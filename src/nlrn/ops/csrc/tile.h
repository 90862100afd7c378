// A tile: up to TILE_ROWS rows of LANES pixels of one image, which one thread works on by itself. What it meets
// comes in groups of PAIR rows, a few groups at a time, so that their logits stay in the first-level cache.
#pragma once
#include "micro.h"

namespace NLRN_SET {

constexpr int TILE_ROWS = ROWS * 4;
constexpr int LOGIT_BYTES = 36 << 10;  // of ROWS rows of logits for the groups worked on at once
constexpr int MOST_GROUPS = 16;

struct Span {
    int first, end;
    bool empty() const { return first >= end; }
    bool operator==(const Span &o) const { return first == o.first && end == o.end; }
    bool holds(int i) const { return first <= i && i < end; }
};

struct Tile {
    int b, block, y0, y1;
    int first, offsets;  // horizontal offsets at which some lane meets the image
    bool border;         // some lane of some of these does not

    // across: a strip's blocks one after the other, instead of its tiles from top to bottom
    Tile(const Plan &g, int number, bool across = false) {
        const int down = ceil_div(g.height, TILE_ROWS), place = number % (down * g.blocks);
        b = number / (down * g.blocks);
        block = across ? place % g.blocks : place / down;
        y0 = (across ? place / g.blocks : place % down) * TILE_ROWS;
        y1 = least(g.height, y0 + TILE_ROWS);
        const int x = block * LANES;
        first = most(0, g.radius - (x + LANES - 1));
        offsets = least(g.window, g.width - x + g.radius) - first;
        border = x < g.radius || x + LANES + g.radius > g.width;
    }
    static int count(const Plan &g) { return g.batch * g.blocks * ceil_div(g.height, TILE_ROWS); }
    // word of a plane row at the first lane, and at the first lane's first offset
    int64_t here(const Plan &g) const { return g.left + block * LANES; }
    int64_t there(const Plan &g) const { return here(g) - g.radius + first; }
    // groups that some row of the tile meets
    Span groups(const Plan &g) const {
        return {most(0, y0 - g.radius) / g.pair, least(g.height - 1, y1 - 1 + g.radius) / g.pair + 1};
    }
    // lanes whose partner at an offset lies in the image, [offsets]; null when all do
    const ints *inside(const Plan &g, ints *room) const {
        if (!border) return nullptr;
        for (int d = 0; d < offsets; d++)
            for (int i = 0; i < LANES; i++) {
                const int x = block * LANES + i + first + d - g.radius;
                room[d][i] = x >= 0 && x < g.width ? -1 : 0;
            }
        return room;
    }
};

// Of `rows`, those that meet row y, if there is such a row; and those that meet some row of a group.
NLRN_INLINE Span meeting(const Plan &g, Span rows, int y) {
    if (y >= g.height) return {0, 0};
    return {most(rows.first, y - g.radius), least(rows.end, y + g.radius + 1)};
}
NLRN_INLINE Span meeting_group(const Plan &g, Span rows, int group) {
    const int y = group * g.pair, last = least(y + g.pair, g.height) - 1;
    return {most(rows.first, y - g.radius), least(rows.end, last + g.radius + 1)};
}

// `work(rows, first, end)` for all groups of a tile, a few at a time, and for ROWS rows at a time those groups
// together that the same rows meet; before it, `fetch(first, end, part)` for every ROWS rows: the groups that come
// next, of which each asks for its share.
template <typename Fetch, typename Work>
NLRN_INLINE void for_groups(const Plan &g, const Tile &tile, int at_once, const Fetch &fetch, const Work &work) {
    const Span groups = tile.groups(g);
    for (int g0 = groups.first; g0 < groups.end; g0 += at_once) {
        const int g1 = least(groups.end, g0 + at_once);
        for (int y = tile.y0; y < tile.y1; y += ROWS) {
            fetch(g1, least(groups.end, g1 + at_once), (y - tile.y0) / ROWS);
            const Span rows{y, least(tile.y1, y + ROWS)};
            for (int group = g0; group < g1;) {
                const Span met = meeting_group(g, rows, group);
                int end = group + 1;
                while (end < g1 && meeting_group(g, rows, end) == met) end++;
                if (!met.empty()) work(met, group, end);
                group = end;
            }
        }
    }
}

// Offsets that a tile never computes are 0 in the correlation, or its gradient, that it leaves behind.
static void clear_outside(const Plan &g, const Tile &tile, void *state, int size) {
    auto clear = [&](int y, int dy, int from, int to) {
        char *row = (char *)state + g.logits(tile.b, y, tile.block, dy) * size;
        if (from < to) memset(row + (int64_t)from * LANES * size, 0, (int64_t)(to - from) * LANES * size);
    };
    for (int y = tile.y0; y < tile.y1; y++)
        for (int dy = 0; dy < g.window; dy++) {
            const int ky = y + dy - g.radius;
            const bool outside = ky < 0 || ky >= g.height;
            clear(y, dy, 0, outside ? g.window : tile.first);
            if (!outside) clear(y, dy, tile.first + tile.offsets, g.window);
        }
}

// Buffers of logits or weights: [row][group][row of the group][offset][LANES]
struct Buffer {
    int64_t offset_row, group, row;  // floats from one to the next
    int at_once;                     // groups

    Buffer(const Plan &g, int buffers) {
        offset_row = (int64_t)g.window * LANES;
        group = offset_row * g.pair;
        at_once = least(MOST_GROUPS, most(1, (int)(LOGIT_BYTES / (ROWS * group * 4 * buffers))));
        row = group * at_once;
    }
    int64_t size() const { return row * ROWS; }
};

// Asks for a `part` of `parts` of the plane rows [first, end) to come into the second-level cache.
static void prefetch(const word *plane_rows, int64_t pitch, int first, int end, int part, int parts, int words) {
    const int count = most(0, end - first);
    const int from = first + (int)((int64_t)count * part / parts), to = first + (int)((int64_t)count * (part + 1) / parts);
    for (int i = from; i < to; i++)
        for (int w = 0; w < words + 16; w += 16) NLRN_PREFETCH(plane_rows + i * pitch + w);
}

// The same of `bytes` bytes: what is read of a correlation is met once, at a place that no processor foresees.
NLRN_INLINE void prefetch_bytes(const void *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes + 63; i += 64) NLRN_PREFETCH((const char *)from + i);
}

}  // namespace NLRN_SET

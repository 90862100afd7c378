// How tensors lie in memory while the kernel works on them, and the way there and back.
//
// Outside, pixels are channels-last. Inside, a row of the image is a *plane row* for every channel: the lanes
// of a vector are LANES neighbouring pixels, and the keys that these queries meet at offset dx are the unaligned
// vector dx further on. A plane row is `pitch` words: `left` zeros, the pixels, zeros.
//   by channel: [image][row][channel pair][x], a word holds PAIR channels of one pixel: what correlations read
//   by row:     [image][row pair][channel][x], a word holds one channel of PAIR rows: what averages read
// With PAIR = 1, float32, the two are the same.
#pragma once
#include "lanes.h"

namespace NLRN_SET {

struct Plan {
    int batch, height, width, embed, channels, radius, window, threads;
    int blocks;       // of LANES pixels in a row
    int left, pitch;  // words
    int pair, groups;  // channels or rows in a word; groups of `pair` rows in an image

    int words(int c) const { return ceil_div(c, pair); }
    int64_t by_channel(int c) const { return (int64_t)batch * height * words(c) * pitch; }
    int64_t by_row(int c) const { return (int64_t)batch * groups * c * pitch; }
    // First number of the logits of LANES queries for one row of keys: [image][row][block][dy][dx][lane]. LANES
    // spare numbers lie before and after all; ops/cpu.py allocates them.
    int64_t logits(int b, int y, int block, int dy) const {
        return ((((int64_t)b * height + y) * blocks + block) * window + dy) * window * LANES + LANES;
    }
    // the spare numbers are 0, too
    void clear_ends(void *state, int size) const {
        if (!state) return;
        memset(state, 0, LANES * size);
        memset((char *)state + logits(batch, 0, 0, 0) * size, 0, LANES * size);
    }
};

NLRN_INLINE Plan plan_of(const Problem &p) {
    Plan g;
    g.batch = p.batch, g.height = p.height, g.width = p.width, g.embed = p.embed, g.channels = p.channels;
    g.radius = p.radius, g.window = 2 * p.radius + 1, g.threads = p.threads;
    g.blocks = ceil_div(p.width, LANES);
    g.left = p.radius ? LANES : 0;  // offsets at which no lane meets the image are never read (Tile): on either
    g.pitch = g.left + g.blocks * LANES + LANES;  // side at most LANES - 1 words outside of it are
    if (g.pitch * 4 % 1024 == 0) g.pitch += 16;  // planes a power of two apart share their cache sets
    g.pair = HAS_BF16 && p.element == BFLOAT16 ? 2 : 1;
    g.groups = ceil_div(p.height, g.pair);
    return g;
}

// Arrays cut from one block of memory; without the block (null), the sum of their sizes.
struct Arena {
    char *base;
    int64_t used = 0;
    template <typename T> T *take(int64_t count) {
        used = (used + 4095) / 4096 * 4096 + 320;  // neither on one cache set with the array before
        T *found = (T *)(base + used);
        used += count * sizeof(T);
        return base ? found : nullptr;
    }
};

// A channels-last tensor: float32 or bf16, `stride` elements from pixel to pixel.
struct Pixels {
    const char *data;
    int64_t stride;
    bool bf16;
    const char *at(int64_t pixel, int c) const { return data + (pixel * stride + c) * (bf16 ? 2 : 4); }
    float number(int64_t pixel, int c) const {
        const char *p = at(pixel, c);
        if (!bf16) return *(const float *)p;
        return from_bf16(*(const uint16_t *)p);
    }
};

// The word of one pixel that begins with channel c.
template <int PAIR> NLRN_INLINE word word_at(const Pixels &s, int64_t pixel, int c, int channels) {
    if (PAIR == 2) {
        const word low = *(const uint16_t *)s.at(pixel, c);
        return c + 1 < channels ? low | (word) * (const uint16_t *)s.at(pixel, c + 1) << 16 : low;
    }
    const float f = s.number(pixel, c);
    word bits;
    memcpy(&bits, &f, 4);
    return bits;
}

// LANES words of one pixel that begin with channel c.
template <int PAIR> NLRN_INLINE ints words_at(const Pixels &s, int64_t pixel, int c) {
    const char *from = s.at(pixel, c);
    if (PAIR == 2) return load_words((const word *)from);
    return (ints)(s.bf16 ? load_as<BFLOAT16>(from) : load_as<FLOAT32>(from));
}

// One row of pixels, from `pixel` on, into its plane rows.
template <int PAIR> static void pack_row(const Plan &g, const Pixels &s, int64_t pixel, int channels, word *to) {
    const int count = ceil_div(channels, PAIR), right = g.left + g.width;
    for (int w = 0; w < count; w++) {
        memset(to + (int64_t)w * g.pitch, 0, g.left * 4);
        memset(to + (int64_t)w * g.pitch + right, 0, (g.pitch - right) * 4);
    }
    int w0 = 0;
    for (; (w0 + LANES) * PAIR <= channels; w0 += LANES)
        for (int x = 0; x < g.width; x += LANES) {
            ints v[LANES];
            const int there = least(LANES, g.width - x);
            if (there == LANES)
                NLRN_UNROLL for (int i = 0; i < LANES; i++) v[i] = words_at<PAIR>(s, pixel + x + i, w0 * PAIR);
            else
                for (int i = 0; i < LANES; i++) v[i] = i < there ? words_at<PAIR>(s, pixel + x + i, w0 * PAIR) : ints{};
            transpose(v);
            word *into = to + (int64_t)w0 * g.pitch + g.left + x;
            NLRN_UNROLL for (int i = 0; i < LANES; i++) store_words(into + (int64_t)i * g.pitch, v[i]);
        }
    for (int x = 0; x < g.width; x += 16)
        for (int w = w0; w < count; w++)
            for (int i = x; i < least(x + 16, g.width); i++)
                to[(int64_t)w * g.pitch + g.left + i] = word_at<PAIR>(s, pixel + i, w * PAIR, channels);
}

template <int PAIR> static void pack_by_channel(const Plan &g, const Pixels &s, int channels, word *to) {
#pragma omp parallel for schedule(static) num_threads(g.threads)
    for (int row = 0; row < g.batch * g.height; row++)
        pack_row<PAIR>(g, s, (int64_t)row * g.width, channels, to + (int64_t)row * g.words(channels) * g.pitch);
}

// `rows`: for each thread, room for two rows by channel.
NLRN_INLINE int64_t row_room(const Plan &g) { return (int64_t)2 * g.words(most(g.embed, g.channels)) * g.pitch; }

template <int PAIR> static void pack_by_row(const Plan &g, const Pixels &s, int channels, word *to, word *rows) {
    if (PAIR == 1) return pack_by_channel<1>(g, s, channels, to);
    const int count = g.words(channels);
#pragma omp parallel for schedule(static) num_threads(g.threads)
    for (int group = 0; group < g.batch * g.groups; group++) {
        word *even = rows + omp_get_thread_num() * row_room(g), *odd = even + (int64_t)count * g.pitch;
        const int b = group / g.groups, y = group % g.groups * 2;
        const int64_t pixel = ((int64_t)b * g.height + y) * g.width;
        pack_row<PAIR>(g, s, pixel, channels, even);
        if (y + 1 < g.height) pack_row<PAIR>(g, s, pixel + g.width, channels, odd);
        else memset(odd, 0, (int64_t)count * g.pitch * 4);
        word *plane = to + (int64_t)group * channels * g.pitch;
        for (int c = 0; c < channels; c++) {  // of two words of two channels, the words of two rows
            const word *e = even + (int64_t)(c / 2) * g.pitch, *o = odd + (int64_t)(c / 2) * g.pitch;
            word *p = plane + (int64_t)c * g.pitch;
            if (c % 2 == 0)
                for (int x = 0; x < g.pitch; x++) p[x] = (e[x] & 0xffff) | o[x] << 16;
            else
                for (int x = 0; x < g.pitch; x++) p[x] = e[x] >> 16 | (o[x] & 0xffff0000);
        }
    }
}

// sums [channels][LANES], times `by`, to `count` pixels of a dense channels-last tensor, from `pixel` on
static void store_pixels(const float *sums, floats by, int channels, void *to, bool bf16, int64_t pixel, int count) {
    int c = 0;
    for (; c + LANES <= channels; c += LANES) {
        ints v[LANES];
        NLRN_UNROLL for (int i = 0; i < LANES; i++) v[i] = (ints)(by * load(sums + (int64_t)(c + i) * LANES));
        transpose(v);
        const int64_t place = pixel * channels + c;
        if (bf16)
            for (int i = 0; i < count; i++) store_as<BFLOAT16>((char *)to + (place + i * channels) * 2, (floats)v[i]);
        else
            for (int i = 0; i < count; i++) store((float *)to + place + i * channels, (floats)v[i]);
    }
    for (; c < channels; c++) {
        const floats f = by * load(sums + (int64_t)c * LANES);
        for (int i = 0; i < count; i++) {
            const int64_t place = (pixel + i) * channels + c;
            if (bf16) ((uint16_t *)to)[place] = to_bf16(f[i]);
            else ((float *)to)[place] = f[i];
        }
    }
}

}  // namespace NLRN_SET

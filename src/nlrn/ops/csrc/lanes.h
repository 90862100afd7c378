// Vectors of one instruction set: LANES neighbouring pixels of a row, one number each.
//
// Every header here is compiled once per instruction set, inside a namespace of its own, so that no function
// built for a newer processor is ever picked by the linker for an older one. For the same reason nothing of the
// standard library is used but its C part.
#pragma once
#include "compiler.h"

namespace NLRN_SET {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 4, WIDTH = 6;  // 4 x 6 sums, 4 left operands and a right one: 29 of 32 registers
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 3, WIDTH = 4;  // 12 + 3 + 1 of 16
#else
constexpr int LANES = 4, ROWS = 3, WIDTH = 4;
#endif
#if defined(__AVX512BF16__)
constexpr bool HAS_BF16 = true;
#else
constexpr bool HAS_BF16 = false;
#endif

typedef uint32_t word;  // a float, or a pair of bf16

}  // namespace NLRN_SET

#if defined(NLRN_SSE2_LANES)
#include "lanes_sse2.h"
#else
#include "lanes_gnu.h"
#endif

namespace NLRN_SET {

constexpr float MASKED = -1e30f, LOG2_E = 1.44269504f;

NLRN_INLINE int least(int a, int b) { return a < b ? a : b; }
NLRN_INLINE int most(int a, int b) { return a > b ? a : b; }
NLRN_INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }

NLRN_INLINE floats every(float x) { return x - floats{}; }

NLRN_INLINE float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
NLRN_INLINE uint16_t to_bf16(float f) {  // to nearest even
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 2^x for x <= about 10, by a polynomial on [-1/2, 1/2]: of degree 6 (relative error 2e-7), or, where the result
// is rounded to bf16 at once, 4 (3e-6).
template <bool COARSE> NLRN_INLINE floats exp2_of(floats x) {
    // 2^-100 for what is less: nothing beside a sum of weights, and no product of it becomes a slow denormal number. In
    // this order NaN stays NaN: the second operand is what an unordered one gives.
    x = larger(every(-100.f), x);
    const floats whole = (x + 12582912.f) - 12582912.f, r = x - whole;
    floats p;
    if (COARSE) {
        p = every(0.01353415f);
        p = p * r + 0.05201156f;
        p = p * r + 0.24144265f;
        p = p * r + 0.69300387f;
        p = p * r + 1.00000259f;
    } else {
        p = every(1.535336188e-4f);
        p = p * r + 1.339887440e-3f;
        p = p * r + 9.618437357e-3f;
        p = p * r + 5.550332548e-2f;
        p = p * r + 2.402264791e-1f;
        p = p * r + 6.931472028e-1f;
        p = p * r + 1.f;
    }
#if defined(__AVX512F__)
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return p * (floats)((whole_numbers(whole) + 127) << 23);
#endif
}

// float16, in memory alone
NLRN_INLINE floats load_half(const uint16_t *p) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    floats v;
    for (int i = 0; i < LANES; i++) {  // exponent and fraction moved into place; denormals by the multiplication
        uint32_t bits = (uint32_t)(p[i] & 0x7fff) << 13;
        float f;
        memcpy(&f, &bits, 4);
        f *= 0x1p112f;
        v[i] = p[i] & 0x8000 ? -f : f;
    }
    return v;
#endif
}
NLRN_INLINE void store_half(uint16_t *p, floats v) {
    v = smaller(every(65504.f), larger(every(-65504.f), v));  // NaN stays NaN
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, 0));
#elif defined(__AVX2__)
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, 0));
#else
    for (int i = 0; i < LANES; i++) {
        const float size = v[i] < 0 ? -v[i] : v[i], scaled = size * 0x1p-112f;
        uint32_t bits;
        memcpy(&bits, &scaled, 4);
        const uint32_t rounded = size < 0x1p-14f ? (uint32_t)nearest(size * 0x1p24f)
                                                 : (bits + 0xfff + ((bits >> 13) & 1)) >> 13;
        p[i] = (uint16_t)(rounded | (v[i] < 0 ? 0x8000 : 0));
    }
#endif
}

// LANES numbers of a type from memory and into it
template <int TYPE> constexpr int bytes_of() { return TYPE == FLOAT32 ? 4 : 2; }
template <int TYPE> NLRN_INLINE floats load_as(const char *p) {
    if (TYPE == FLOAT32) return load((const float *)p);
    if (TYPE == FLOAT16) return load_half((const uint16_t *)p);
    return (floats)(load_shorts((const uint16_t *)p) << 16);
}
template <int TYPE> NLRN_INLINE void store_as(char *p, floats v) {
    if (TYPE == FLOAT32) return store((float *)p, v);
    if (TYPE == FLOAT16) return store_half((uint16_t *)p, v);
    const ints bits = (ints)v;
    store_shorts((uint16_t *)p, (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// sum + a . b, a word of every lane: a product (PAIR = 1), or one of two bf16 pairs (PAIR = 2)
template <int PAIR> NLRN_INLINE floats dot(floats sum, ints a, ints b) {
#if defined(__AVX512BF16__)
    if (PAIR == 2) return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + (floats)a * (floats)b;
}

// Words of LANES lanes: `even` alone (PAIR = 1), or the bf16 pairs (even, odd)
template <int PAIR> NLRN_INLINE ints paired(floats even, [[maybe_unused]] floats odd) {
#if defined(__AVX512BF16__)
    if (PAIR == 2) {
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);  // 16 even, then 16 odd
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return (ints)_mm512_permutexvar_epi16(order, both);
    }
#endif
    return (ints)even;
}

}  // namespace NLRN_SET

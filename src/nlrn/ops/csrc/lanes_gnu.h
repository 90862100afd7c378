// Vectors of LANES lanes by the vector types of GCC and Clang, which work on any processor.
#pragma once
#include "compiler.h"

namespace NLRN_SET {

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float loose_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t loose_ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t loose_shorts __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

NLRN_INLINE floats load(const float *p) { return *(const loose_floats *)p; }
NLRN_INLINE void store(float *p, floats v) { *(loose_floats *)p = v; }
NLRN_INLINE ints load_words(const uint32_t *p) { return *(const loose_ints *)p; }
NLRN_INLINE void store_words(uint32_t *p, ints v) { *(loose_ints *)p = v; }
#if defined(__AVX512F__)
NLRN_INLINE floats larger(floats a, floats b) { return (floats)_mm512_max_ps((__m512)a, (__m512)b); }
NLRN_INLINE floats smaller(floats a, floats b) { return (floats)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
NLRN_INLINE floats larger(floats a, floats b) { return (floats)_mm256_max_ps((__m256)a, (__m256)b); }
NLRN_INLINE floats smaller(floats a, floats b) { return (floats)_mm256_min_ps((__m256)a, (__m256)b); }
#else
NLRN_INLINE floats larger(floats a, floats b) { return a > b ? a : b; }
NLRN_INLINE floats smaller(floats a, floats b) { return a < b ? a : b; }
#endif
NLRN_INLINE bool any(ints mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    typedef int64_t halves __attribute__((vector_size(16)));
    const halves both = (halves)mask;
    return (both[0] | both[1]) != 0;
#endif
}
NLRN_INLINE ints whole_numbers(floats x) { return __builtin_convertvector(x, ints); }
NLRN_INLINE ints load_shorts(const uint16_t *p) { return __builtin_convertvector(*(const loose_shorts *)p, ints); }
NLRN_INLINE void store_shorts(uint16_t *p, ints v) { *(loose_shorts *)p = __builtin_convertvector(v, loose_shorts); }
NLRN_INLINE float nearest(float x) { return __builtin_rintf(x); }

NLRN_INLINE ints every_int(int x) { return x - ints{}; }
#if defined(__AVX512F__)
NLRN_INLINE floats where(ints mask, floats a, floats b) { return (floats)(((ints)a & mask) | ((ints)b & ~mask)); }
#elif defined(__AVX2__)
NLRN_INLINE floats where(ints mask, floats a, floats b) {
    return (floats)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
}
#else
NLRN_INLINE floats where(ints mask, floats a, floats b) { return (floats)(((ints)a & mask) | ((ints)b & ~mask)); }
#endif

// LANES vectors as a square of words, its rows made its columns.
#if defined(__AVX512F__)
NLRN_INLINE void transpose(ints *rows) {  // in four rounds: pairs, quadruples, then 128-bit lanes twice
    __m512i v[16], t[16];
    NLRN_UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
    NLRN_UNROLL for (int i = 0; i < 16; i += 4)
        NLRN_UNROLL for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    NLRN_UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
    NLRN_UNROLL for (int i = 0; i < 8; i++) {
        rows[i] = (ints)_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = (ints)_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#elif defined(__AVX2__)
NLRN_INLINE void transpose(ints *rows) {  // in three rounds: halves of 128 bits, pairs, quadruples
    __m256 t[8], v[8];
    NLRN_UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps((__m256)rows[i], (__m256)rows[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps((__m256)rows[i], (__m256)rows[i + 4], 0x31);
    }
    NLRN_UNROLL for (int i = 0; i < 8; i += 2) {
        v[i] = _mm256_unpacklo_ps(t[i], t[i + 1]);
        v[i + 1] = _mm256_unpackhi_ps(t[i], t[i + 1]);
    }
    NLRN_UNROLL for (int i = 0; i < 8; i += 4)
        NLRN_UNROLL for (int j = 0; j < 2; j++) {
            rows[i + 2 * j] = (ints)_mm256_shuffle_ps(v[i + j], v[i + 2 + j], 0x44);
            rows[i + 2 * j + 1] = (ints)_mm256_shuffle_ps(v[i + j], v[i + 2 + j], 0xee);
        }
}
#else
NLRN_INLINE void transpose(ints *rows) {  // in two rounds: pairs, quadruples
    ints t[4];
    NLRN_UNROLL for (int i = 0; i < 4; i += 2) {
        t[i] = NLRN_SHUFFLE(rows[i], rows[i + 1], 0, 4, 1, 5);
        t[i + 1] = NLRN_SHUFFLE(rows[i], rows[i + 1], 2, 6, 3, 7);
    }
    NLRN_UNROLL for (int i = 0; i < 2; i++) {
        rows[2 * i] = NLRN_SHUFFLE(t[i], t[i + 2], 0, 1, 4, 5);
        rows[2 * i + 1] = NLRN_SHUFFLE(t[i], t[i + 2], 2, 3, 6, 7);
    }
}
#endif

}  // namespace NLRN_SET

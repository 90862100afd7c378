// Vectors of 4 lanes as structs around SSE2, with the operators of GCC's vector types: for MSVC, which has none.
// -DNLRN_SSE2_LANES builds it with GCC and Clang too, which is how it is tested.
#pragma once
#include <emmintrin.h>

#include "compiler.h"

namespace NLRN_SET {

struct floats;

struct ints {
    union {
        __m128i v;
        int32_t lane[4];
    };
    ints() : v(_mm_setzero_si128()) {}
    ints(__m128i v) : v(v) {}
    ints(int x) : v(_mm_set1_epi32(x)) {}  // a number stands for as many of it as there are lanes
    explicit ints(floats x);
    int32_t &operator[](int i) { return lane[i]; }
    int32_t operator[](int i) const { return lane[i]; }
};

struct floats {
    union {
        __m128 v;
        float lane[4];
    };
    floats() : v(_mm_setzero_ps()) {}
    floats(__m128 v) : v(v) {}
    floats(float x) : v(_mm_set1_ps(x)) {}
    explicit floats(ints x) : v(_mm_castsi128_ps(x.v)) {}  // the same bits
    float &operator[](int i) { return lane[i]; }
    float operator[](int i) const { return lane[i]; }
};

inline ints::ints(floats x) : v(_mm_castps_si128(x.v)) {}

NLRN_INLINE floats operator+(floats a, floats b) { return _mm_add_ps(a.v, b.v); }
NLRN_INLINE floats operator-(floats a, floats b) { return _mm_sub_ps(a.v, b.v); }
NLRN_INLINE floats operator*(floats a, floats b) { return _mm_mul_ps(a.v, b.v); }
NLRN_INLINE floats operator/(floats a, floats b) { return _mm_div_ps(a.v, b.v); }
NLRN_INLINE floats &operator+=(floats &a, floats b) { return a = a + b; }
NLRN_INLINE floats &operator*=(floats &a, floats b) { return a = a * b; }
NLRN_INLINE ints operator>(floats a, floats b) { return _mm_castps_si128(_mm_cmpgt_ps(a.v, b.v)); }

NLRN_INLINE ints operator+(ints a, ints b) { return _mm_add_epi32(a.v, b.v); }
NLRN_INLINE ints operator-(ints a, ints b) { return _mm_sub_epi32(a.v, b.v); }
NLRN_INLINE ints operator&(ints a, ints b) { return _mm_and_si128(a.v, b.v); }
NLRN_INLINE ints operator|(ints a, ints b) { return _mm_or_si128(a.v, b.v); }
NLRN_INLINE ints operator~(ints a) { return _mm_xor_si128(a.v, _mm_set1_epi32(-1)); }
NLRN_INLINE ints operator<(ints a, ints b) { return _mm_cmplt_epi32(a.v, b.v); }
NLRN_INLINE ints operator<<(ints a, int bits) { return _mm_slli_epi32(a.v, bits); }
NLRN_INLINE ints operator>>(ints a, int bits) { return _mm_srai_epi32(a.v, bits); }

NLRN_INLINE floats load(const float *p) { return _mm_loadu_ps(p); }
NLRN_INLINE void store(float *p, floats v) { _mm_storeu_ps(p, v.v); }
NLRN_INLINE ints load_words(const uint32_t *p) { return _mm_loadu_si128((const __m128i *)p); }
NLRN_INLINE void store_words(uint32_t *p, ints v) { _mm_storeu_si128((__m128i *)p, v.v); }
NLRN_INLINE floats larger(floats a, floats b) { return _mm_max_ps(a.v, b.v); }  // b where one is NaN
NLRN_INLINE floats smaller(floats a, floats b) { return _mm_min_ps(a.v, b.v); }
NLRN_INLINE bool any(ints mask) { return _mm_movemask_ps(_mm_castsi128_ps(mask.v)) != 0; }
NLRN_INLINE ints whole_numbers(floats x) { return _mm_cvttps_epi32(x.v); }
NLRN_INLINE ints load_shorts(const uint16_t *p) {
    return _mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i *)p), _mm_setzero_si128());
}
NLRN_INLINE void store_shorts(uint16_t *p, ints v) {
    for (int i = 0; i < 4; i++) p[i] = (uint16_t)v[i];
}
NLRN_INLINE ints every_int(int x) { return x; }
NLRN_INLINE floats where(ints mask, floats a, floats b) {
    return _mm_castsi128_ps(_mm_or_si128(_mm_and_si128(mask.v, _mm_castps_si128(a.v)),
                                         _mm_andnot_si128(mask.v, _mm_castps_si128(b.v))));
}
// LANES vectors as a square of words, its rows made its columns.
NLRN_INLINE void transpose(ints *rows) {
    const __m128i t[4] = {_mm_unpacklo_epi32(rows[0].v, rows[1].v), _mm_unpackhi_epi32(rows[0].v, rows[1].v),
                          _mm_unpacklo_epi32(rows[2].v, rows[3].v), _mm_unpackhi_epi32(rows[2].v, rows[3].v)};
    for (int i = 0; i < 2; i++) {
        rows[2 * i] = _mm_unpacklo_epi64(t[i], t[i + 2]);
        rows[2 * i + 1] = _mm_unpackhi_epi64(t[i], t[i + 2]);
    }
}
NLRN_INLINE float nearest(float x) { return (float)_mm_cvtss_si32(_mm_set_ss(x)); }

}  // namespace NLRN_SET

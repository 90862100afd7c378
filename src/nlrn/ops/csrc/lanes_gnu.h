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
    int32_t found = 0;
    for (int i = 0; i < LANES; i++) found |= mask[i];
    return found != 0;
#endif
}
NLRN_INLINE ints whole_numbers(floats x) { return __builtin_convertvector(x, ints); }
NLRN_INLINE ints load_shorts(const uint16_t *p) { return __builtin_convertvector(*(const loose_shorts *)p, ints); }
NLRN_INLINE void store_shorts(uint16_t *p, ints v) { *(loose_shorts *)p = __builtin_convertvector(v, loose_shorts); }
NLRN_INLINE float nearest(float x) { return __builtin_rintf(x); }

}  // namespace NLRN_SET

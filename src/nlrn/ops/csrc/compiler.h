// What GCC, Clang and MSVC each have their own words for.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#else  // no OpenMP: the pragmas are comments, and everything runs in one thread
inline int omp_get_thread_num() { return 0; }
#endif
#if defined(__AVX2__) || defined(_M_X64)
#include <immintrin.h>
#endif

#if defined(__GNUC__)  // Clang too
#define NLRN_INLINE static inline __attribute__((always_inline))
#define NLRN_INLINE_BODY __attribute__((always_inline))  // of a lambda
#define NLRN_NOINLINE __attribute__((noinline))
#define NLRN_EXPORT __attribute__((visibility("default")))
#define NLRN_PREFETCH(place) __builtin_prefetch(place, 0, 2)
#if defined(__clang__)
#define NLRN_UNROLL _Pragma("unroll")
#else
#define NLRN_UNROLL _Pragma("GCC unroll 16")
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define NLRN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define NLRN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ints{__VA_ARGS__})
#endif
#elif defined(_M_X64)
#define NLRN_SSE2_LANES  // structs around SSE2, in place of GCC's vector types
#define NLRN_INLINE static __forceinline
#define NLRN_INLINE_BODY
#define NLRN_NOINLINE __declspec(noinline)
#define NLRN_EXPORT __declspec(dllexport)
#define NLRN_PREFETCH(place) _mm_prefetch((const char *)(place), _MM_HINT_T1)
#define NLRN_UNROLL
#else
#error "the kernel needs GCC's vector types, or MSVC for x64"
#endif

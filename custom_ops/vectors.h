// Vectors of float32, read from and written to memory as float32 or bfloat16, for the CPU kernels; and
// the places of maxima.

#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_BF16 1
#else
#define HAS_BF16 0
#endif

namespace {

using c10::BFloat16;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float V __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// The value in every lane. 0 + value would be an addition: it isn't -0 for a value of -0.
INLINE V all(float value) { return value - V{}; }

INLINE V load(const float* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

INLINE void store(float* to, V v) { std::memcpy(to, &v, sizeof v); }

// 16 bits to 32, for which GCC takes five instructions instead of one.
INLINE Bits widen(Halves bits) {
#if defined(__AVX512F__)
  return (Bits)_mm512_cvtepu16_epi32((__m256i)bits);
#elif defined(__AVX2__)
  return (Bits)_mm256_cvtepu16_epi32((__m128i)bits);
#else
  return __builtin_convertvector(bits, Bits);
#endif
}

INLINE V load(const BFloat16* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return (V)(widen(bits) << 16);
}

INLINE Halves narrow(V v) {
#if HAS_BF16
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
  const Bits bits = (Bits)v;
  const Bits nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits rounded = v == v ? nearest_even : Bits{} + 0x7fc0;  // NaN would round to infinity
  return __builtin_convertvector(rounded, Halves);
#endif
}

INLINE void store(BFloat16* to, V v) {
  const Halves bits = narrow(v);
  std::memcpy(to, &bits, sizeof bits);
}

// The first `count` lanes; the others are 0.
template <typename T>
INLINE V load(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
#if HAS_BF16
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(T) == 2) return (V)(widen((Halves)_mm256_maskz_loadu_epi16(mask, from)) << 16);
#endif
  T lanes[kLanes] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}

template <typename T>
INLINE void store(T* to, V v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  T lanes[kLanes];
  store(lanes, v);
  std::memcpy(to, lanes, count * sizeof(T));
}

// a b + c, with one rounding where the processor can. It must be asked for: cpu.py compiles without
// contraction, for LayerNorm.
INLINE V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
  return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// ---------------------------------------------------------------- maxima of 2x2 squares

// The largest of four, as PyTorch finds it: the first of equal ones, and NaN if there is one.
INLINE V largest(const V* four, Ints* place) {
  V most = four[0];
  *place = Ints{};
#pragma GCC unroll 3
  for (int i = 1; i < 4; ++i) {
    const Ints more = (four[i] > most) | (four[i] != four[i]);
    most = more ? four[i] : most;
    *place = more ? Ints{} + i : *place;
  }
  return most;
}

INLINE void store(uint8_t* to, Ints places, int64_t count) {
#if defined(__AVX512F__)
  const auto bytes = (Bytes)_mm512_cvtepi32_epi8((__m512i)places);
#elif defined(__AVX2__)
  const auto words = _mm256_packs_epi32((__m256i)places, (__m256i)places);  // in either half
  const auto packed = _mm256_packus_epi16(words, words);
  const uint64_t both = (uint32_t)_mm256_extract_epi32(packed, 0) |
                        (uint64_t)(uint32_t)_mm256_extract_epi32(packed, 4) << 32;
  const auto bytes = (Bytes)both;
#else
  const Bytes bytes = __builtin_convertvector(places, Bytes);
#endif
  std::memcpy(to, &bytes, count);
}

INLINE Ints load_places(const uint8_t* from, int64_t count) {
  Bytes bytes{};
  std::memcpy(&bytes, from, count);
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepu8_epi32((__m128i)bytes);
#elif defined(__AVX2__)
  return (Ints)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)bytes));
#else
  return __builtin_convertvector(bytes, Ints);
#endif
}

}  // namespace

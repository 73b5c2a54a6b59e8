// Some channels at a time, as many as fill a register of the processor: numbers of a type T in memory,
// computed in float (double for double). How many decides no bit, since each channel is for itself.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace resvar {

using at::Tensor;

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;  // g++ splits a longer vector badly: half as fast on AVX2
#endif

// The type that numbers of type T are computed in.
template <typename T> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };

template <typename A> struct Vector;
template <> struct Vector<float> { typedef float type __attribute__((vector_size(4 * LANES))); };
template <> struct Vector<double> { typedef double type __attribute__((vector_size(8 * LANES))); };
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

template <typename T> using Acc = typename Wide<T>::type;
template <typename T> using Vec = typename Vector<Acc<T>>::type;

template <typename T> inline Vec<T> get(const T* from) {
  Vec<T> out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline Vec<float> from_halves(Halves halves) {
#if defined(__AVX512F__)
  const Words words = (Words)_mm512_cvtepu16_epi32((__m256i)halves);  // g++ 12 takes four steps
#elif defined(__AVX2__)
  const Words words = (Words)_mm256_cvtepu16_epi32((__m128i)halves);
#else
  const Words words = __builtin_convertvector(halves, Words);
#endif
  return (Vec<float>)(words << 16);
}

template <> inline Vec<at::BFloat16> get(const at::BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return from_halves(halves);
}

template <typename T> inline void put(T* to, Vec<T> value) { std::memcpy(to, &value, sizeof value); }

// To bf16: to nearest, ties to even.
inline Halves to_halves(Vec<float> value) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
  Words bits = (Words)value;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words nan = (Words)(value != value);
  return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Halves);
#endif
}

template <> inline void put(at::BFloat16* to, Vec<float> value) {
  const Halves halves = to_halves(value);
  std::memcpy(to, &halves, sizeof halves);
}

// The last channels where LANES do not divide their number: `count` of them, the other lanes zero.
template <typename T> inline Vec<T> get(const T* from, int64_t count) {
  if (count == LANES) return get(from);
  T lanes[LANES] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = from[i];
  return get(lanes);
}

template <typename T> inline void put(T* to, Vec<T> value, int64_t count) {
  if (count == LANES) return put(to, value);
  T lanes[LANES];
  put(lanes, value);
  for (int64_t i = 0; i < count; ++i) to[i] = lanes[i];
}

// A NaN passes, as it does in torch: a run that has diverged must show it.
template <typename V> inline V clip(V value) { return value < V{} ? V{} : value; }

template <typename V> inline V where_passed(V value, V gradient) {
  return value <= V{} ? V{} : gradient;
}

}  // namespace resvar

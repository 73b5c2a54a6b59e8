// Some rows of an image in bf16, as the instruction AVX512_BF16 takes them: it multiplies pairs of bf16
// and adds up both products. A pair here is a pixel and the one to its right.

#pragma once

#include <limits>

#include "convolution.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define RESVAR_PAIRS 1

namespace resvar {

using Bf16 = at::BFloat16;
using Pair = uint32_t;  // two bf16

// --- pairs of pixels ------------------------------------------------------------------------------

inline __m512i order_of_pairs() {
  alignas(64) uint16_t order[2 * LANES];
  for (int i = 0; i < LANES; ++i) order[2 * i] = i, order[2 * i + 1] = LANES + i;
  return _mm512_load_si512(order);
}

// sum[i][o] += the products of `rows` rows of `pairs` pairs; the rows lie x_row and dy_row apart.
inline void add_tile(float* sum, const Pair* x, int64_t x_row, const Pair* dy, int64_t dy_row,
                     int64_t rows, int64_t pairs, Ahead& ahead) {
  __m512 sums[LANES];
  Ahead next = ahead;
  for (int i = 0; i < LANES; ++i) sums[i] = _mm512_loadu_ps(sum + LANES * i);
  for (int64_t row = 0; row < rows; ++row) {
    const Pair *a = x + row * x_row, *b = dy + row * dy_row;
    for (int64_t p = 0; p < pairs; ++p, a += LANES, b += LANES) {
      const __m512bh outputs = (__m512bh)_mm512_loadu_si512(b);
      next.step();
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_set1_epi32(a[i]), outputs);
    }
  }
  for (int i = 0; i < LANES; ++i) _mm512_storeu_ps(sum + LANES * i, sums[i]);
  ahead = next;
}

inline int64_t offset(int64_t row, int64_t pairs, int64_t pair) {
  return (row * pairs + pair) * LANES;
}

// Both signals of a few rows in pairs, for the input channels and output channels of one part.
struct PairStrip {
  using Number = Bf16;

  static int64_t most_inputs(const Convolution& c) { return c.kernel == 1 ? 4 : 1; }
  static int64_t most_outputs(const Convolution&) { return 4; }
  static bool turns_outputs(const Convolution&) { return false; }

  // 16 channels, c and those after it, of two pixels that lie next to each other: of the signal as
  // it is,
  struct Plain {
    const Bf16* signal;
    int64_t channels;

    struct Column {
      const Bf16* at;
      int64_t channels;
      __m512i order = order_of_pairs();

      __m512i pair(int64_t pixel) const {
        const Bf16* left = at + pixel * channels;
        const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(left));
        const __m256i r = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(left + channels));
        return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(l), r, 1));
      }
    };

    Column column(int64_t c) const { return {signal + c, channels}; }
  };

  // and of what BN, and ReLU where it follows, make of it.
  struct Normalised {
    Plain plain;
    const Affine<float>& affine;
    bool relu;

    struct Column {
      Plain::Column plain;
      __m512 scale, shift, least;

      __m512i pair(int64_t pixel) const {
        const __m512i both = plain.pair(pixel);
        const __m512i left = _mm512_slli_epi32(both, 16);
        const __m512i right = _mm512_and_si512(both, _mm512_set1_epi32(0xffff0000));
        const __m512bh halves = _mm512_cvtne2ps_pbh(one((__m512)right), one((__m512)left));
        return _mm512_permutexvar_epi16(plain.order, (__m512i)halves);
      }

      // The larger one, and where there is none, the second: a NaN passes, and so does -0.
      __m512 one(__m512 x) const { return _mm512_max_ps(least, _mm512_fmadd_ps(x, scale, shift)); }
    };

    Column column(int64_t c) const {
      const float least = relu ? 0.0f : -std::numeric_limits<float>::infinity();
      return {plain.column(c), _mm512_loadu_ps(affine.scale.data() + c),
              _mm512_loadu_ps(affine.shift.data() + c), _mm512_set1_ps(least)};
    }
  };

  static constexpr int64_t images = 1;  // of a piece
  const Convolution& c;
  int64_t inputs, outputs, rows, pairs, halo;  // in tiles of channels; rows above and below
  std::vector<Pair> dy, even, odd;  // pairs that begin in even columns, and in odd ones from -1 on

  PairStrip(const Convolution& convolution, int64_t in, int64_t out)
      : c(convolution), inputs(in), outputs(out), pairs(c.width / 2), halo(c.kernel / 2) {
    constexpr int64_t scratch = 65536;  // bytes of both signals in pairs
    const int64_t row = 64 * pairs * (outputs + inputs * (1 + halo));
    rows = std::clamp<int64_t>(scratch / row, 1, c.height);
    dy.resize(outputs * rows * pairs * LANES);
    even.resize(inputs * (rows + 2 * halo) * pairs * LANES);
    if (halo) odd.resize(inputs * (rows + 2 * halo) * (pairs + 1) * LANES);
  }

  // A piece of both signals, and of x the rows beside it.
  template <typename Source>
  void fill(const Source& x, const Plain& gradient, const Piece& piece, int64_t input,
            int64_t output) {
    const int64_t top = piece.image * c.height, first = piece.first, last = piece.last;
    for (int64_t o = 0; o < outputs; ++o)
      copy(gradient.column(output + LANES * o), (top + first) * c.width, (last - first) * pairs,
           &dy[offset(o * rows, pairs, 0)]);
    const int64_t end = std::min(c.height, last + halo);
    for (int64_t i = 0; i < inputs; ++i) {
      const auto column = x.column(input + LANES * i);
      for (int64_t row = std::max<int64_t>(0, first - halo); row < end; ++row) {
        const int64_t to = i * (rows + 2 * halo) + row - first + halo;
        copy(column, (top + row) * c.width, pairs, &even[offset(to, pairs, 0)]);
        if (halo) shift(to);
      }
    }
  }

  // The products of all taps, added to sums[tap][input][output][16][16].
  void add(float* sums, const Piece& piece, Ahead& ahead) const {
    const int64_t first = piece.first, last = piece.last;
    if (!halo) {
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t o = 0; o < outputs; ++o)
          add_tile(sums + (i * outputs + o) * TILE, &even[offset(i * rows, pairs, 0)], 0,
                   &dy[offset(o * rows, pairs, 0)], 0, 1, (last - first) * pairs, ahead);
      return;
    }
    for (int64_t number = 0; number < 9; ++number) {
      const Tap tap(c, number, first, last);
      const bool same = tap.right == 0;
      const int64_t width = same ? pairs : pairs + 1;
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t row = i * (rows + 2) + tap.from + tap.down - first + 1;
        for (int64_t o = 0; o < outputs; ++o)
          add_tile(sums + ((number * inputs + i) * outputs + o) * TILE,
                   &(same ? even : odd)[offset(row, width, tap.right > 0)], width * LANES,
                   &dy[offset(o * rows + tap.from - first, pairs, 0)], pairs * LANES,
                   tap.to - tap.from, pairs, ahead);
      }
    }
  }

 private:
  template <typename Column>
  static void copy(const Column column, int64_t pixel, int64_t count, Pair* to) {
    for (int64_t p = 0; p < count; ++p)
      _mm512_storeu_si512(to + LANES * p, column.pair(pixel + 2 * p));
  }

  // Pairs that begin one column to the left, with zeros beyond both ends.
  void shift(int64_t row) {
    __m512i before = _mm512_setzero_si512();
    for (int64_t p = 0; p <= pairs; ++p) {
      const __m512i here =
          p < pairs ? _mm512_loadu_si512(&even[offset(row, pairs, p)]) : _mm512_setzero_si512();
      _mm512_storeu_si512(
          &odd[offset(row, pairs + 1, p)],
          _mm512_or_si512(_mm512_srli_epi32(before, 16), _mm512_slli_epi32(here, 16)));
      before = here;
    }
  }
};

}  // namespace resvar

#endif

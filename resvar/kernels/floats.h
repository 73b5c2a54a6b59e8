// Some rows of an image in fp32, for a processor that multiplies and adds vectors in one instruction.

#pragma once

#include "convolution.h"

#if defined(__FMA__)
#define RESVAR_FLOATS 1

namespace resvar {

constexpr int64_t WIDE = SIDE / LANES;  // vectors that hold a tile's output channels
constexpr int64_t TALL = 8 / WIDE;      // input channels at a time, for 8 sums that need not wait

// sums[i][o] += x[i] dy[o] of one pixel, for a few input channels.
inline void add_pixel(Vec<float> (&sums)[TALL][WIDE], const float* x, const float* dy) {
  Vec<float> outputs[WIDE];
  for (int v = 0; v < WIDE; ++v) {
    outputs[v] = get(dy + v * LANES);
    asm("" : "+v"(outputs[v]));  // else g++ loads it anew for each product
  }
#pragma GCC unroll 8
  for (int k = 0; k < TALL; ++k)
    for (int v = 0; v < WIDE; ++v) sums[k][v] += x[k] * outputs[v];
}

// sum[i][o] += the products of `rows` rows of `pixels` pixels; the rows lie x_row and dy_row apart.
inline void add_tile(float* sum, const float* x, int64_t x_row, const float* dy, int64_t dy_row,
                     int64_t rows, int64_t pixels, Ahead& ahead) {
  for (int64_t i = 0; i < SIDE; i += TALL) {
    Vec<float> sums[TALL][WIDE];
    Ahead next = ahead;
    for (int k = 0; k < TALL; ++k)
      for (int v = 0; v < WIDE; ++v) sums[k][v] = get(sum + (i + k) * SIDE + v * LANES);
    for (int64_t row = 0; row < rows; ++row) {
      const float *a = x + row * x_row + i, *b = dy + row * dy_row;
      int64_t p = 0;
      for (; p + 2 <= pixels; p += 2, a += 2 * SIDE, b += 2 * SIDE) {
        add_pixel(sums, a, b);
        add_pixel(sums, a + SIDE, b + SIDE);
        next.step();
      }
      if (p < pixels) add_pixel(sums, a, b);
    }
    for (int k = 0; k < TALL; ++k)
      for (int v = 0; v < WIDE; ++v) put(sum + (i + k) * SIDE + v * LANES, sums[k][v]);
    ahead = next;
  }
}

// Both signals of a few rows in tiles of 16 channels, [tile, row, pixel, 16], for the input channels
// and output channels of one part.
struct FloatStrip {
  using Number = float;

  static int64_t most_inputs(const Convolution& c) { return c.kernel == 1 ? 4 : 1; }
  static int64_t most_outputs(const Convolution&) { return 4; }
  static bool turns_outputs(const Convolution&) { return false; }

  // What enters the convolution: the signal as it is,
  struct Plain {
    const float* signal;
    int64_t channels;

    Vec<float> at(int64_t pixel, int64_t c) const { return get(signal + pixel * channels + c); }
  };

  // or what BN, and ReLU where it follows, make of it.
  struct Normalised {
    Plain plain;
    const Affine<float>& affine;
    bool relu;

    Vec<float> at(int64_t pixel, int64_t c) const {
      return normalised(plain.signal + pixel * plain.channels + c, affine, c, relu);
    }
  };

  static constexpr int64_t images = 1;  // of a piece
  const Convolution& c;
  int64_t inputs, outputs, rows, halo;  // in tiles of channels; rows above and below
  std::vector<float> x, dy;

  FloatStrip(const Convolution& convolution, int64_t in, int64_t out)
      : c(convolution), inputs(in), outputs(out), halo(c.kernel / 2) {
    constexpr int64_t scratch = 8192;  // numbers of both signals, for the first cache
    rows = std::clamp<int64_t>(scratch / (c.width * SIDE * (inputs + outputs)), 1, c.height);
    x.resize(inputs * (rows + 2 * halo) * c.width * SIDE);
    dy.resize(outputs * rows * c.width * SIDE);
  }

  // A piece of both signals, and of x the rows beside it.
  template <typename Source>
  void fill(const Source& signal, const Plain& gradient, const Piece& piece, int64_t input,
            int64_t output) {
    const int64_t top = piece.image * c.height, first = piece.first, last = piece.last;
    copy(gradient, dy.data(), outputs, rows, top + first, last - first, output);
    const int64_t begin = std::max<int64_t>(0, first - halo), end = std::min(c.height, last + halo);
    copy(signal, x.data() + (begin - first + halo) * c.width * SIDE, inputs, rows + 2 * halo,
         top + begin, end - begin, input);
  }

  // The products of all taps, added to sums[tap][input][output][16][16].
  void add(float* sums, const Piece& piece, Ahead& ahead) const {
    const int64_t first = piece.first, last = piece.last;
    const int64_t row = c.width * SIDE;
    for (int64_t number = 0; number < c.kernel * c.kernel; ++number) {
      const Tap tap(c, number, first, last);
      const int64_t left = std::max<int64_t>(0, -tap.right), pixels = c.width - std::abs(tap.right);
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t o = 0; o < outputs; ++o)
          add_tile(sums + ((number * inputs + i) * outputs + o) * TILE,
                   x.data() + (i * (rows + 2 * halo) + tap.from + tap.down - first + halo) * row +
                       (left + tap.right) * SIDE,
                   row, dy.data() + (o * rows + tap.from - first) * row + left * SIDE, row,
                   tap.to - tap.from, pixels, ahead);
    }
  }

 private:
  // `count` rows from row `from` of all on, into tiles that have room for `room` rows.
  template <typename Source>
  void copy(const Source& source, float* to, int64_t tiles, int64_t room, int64_t from,
            int64_t count, int64_t channel) const {
    const int64_t pixels = count * c.width;
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t t = 0; t < tiles; ++t)
        for (int64_t v = 0; v < SIDE; v += LANES)
          put(to + (t * room * c.width + p) * SIDE + v,
              source.at(from * c.width + p, channel + t * SIDE + v));
  }
};

}  // namespace resvar

#endif

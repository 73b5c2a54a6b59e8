// Some rows of an image in bf16, as AMX takes them: it multiplies a tile of 16 output channels by 32
// pixels with one of 32 pixels by 16 input channels, all in one instruction.
//
// A line of a tile is 64 bytes: 16 pairs of pixels of one output channel on the one side, one pair of
// pixels of 16 input channels on the other, which is what pairs.h makes of them.

#pragma once

#include "pairs.h"

#if defined(RESVAR_PAIRS) && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512VBMI2__)
#define RESVAR_TILES 1

#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

namespace resvar {

// Linux lets a process have the tiles' registers only where it asks.
inline bool tiles_granted() {
  constexpr long ask = 0x1023, tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, ask, tiles) == 0;
  return granted;
}

constexpr int64_t DEEP = 16;  // pairs of pixels that a tile is deep

struct alignas(64) Line {
  Pair lanes[LANES];
};

// --- the instructions -----------------------------------------------------------------------------

// g++'s own take no number of a register that a template gives, and do not say that they read memory.
template <int R> inline void load(const void* from, int64_t row) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row), "i"(R) : "memory");
}

template <int R> inline void store(void* to, int64_t row) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row), "i"(R) : "memory");
}

template <int R> inline void clear() { asm volatile("tilezero %%tmm%c0" ::"i"(R)); }

// sum += left · right
template <int Sum, int Left, int Right> inline void add_product() {
  asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(Right), "i"(Left), "i"(Sum));
}

// `work` for 0 to N - 1, as constants.
template <int N, typename F> inline void each(const F& work) {
  [&]<int... n>(std::integer_sequence<int, n...>) {
    (work.template operator()<n>(), ...);
  }(std::make_integer_sequence<int, N>());
}

// The registers of this thread, as long as this is alive: four sums of 16 × 16, and what is multiplied, 16
// pairs deep. With `halves` the 5th, from left to right, and the 7th, from above, are 8 pairs deep.
struct Registers {
  explicit Registers(bool halves = false) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t lines[16] = {};
    } shape;
    for (int tile = 0; tile < 8; ++tile) shape.bytes[tile] = 64, shape.lines[tile] = 16;
    if (halves) shape.bytes[5] = 32, shape.lines[7] = 8;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~Registers() { asm volatile("tilerelease"); }
  Registers(const Registers&) = delete;
};

// Lanes become lines: 16 × 16 words, turned about their diagonal.
inline void transpose(const __m512i (&from)[16], Line* to) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; ++k) {
      b[i + 2 * k] = _mm512_unpacklo_epi64(a[i + k], a[i + k + 2]);
      b[i + 2 * k + 1] = _mm512_unpackhi_epi64(a[i + k], a[i + k + 2]);
    }
  for (int k = 0; k < 4; ++k) {  // quarters of registers from here on
    const __m512i low = _mm512_shuffle_i32x4(b[k], b[k + 4], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(b[k + 8], b[k + 12], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(b[k], b[k + 4], 0xdd);
    const __m512i high_odd = _mm512_shuffle_i32x4(b[k + 8], b[k + 12], 0xdd);
    _mm512_store_si512(to + k, _mm512_shuffle_i32x4(low, high, 0x88));
    _mm512_store_si512(to + k + 4, _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    _mm512_store_si512(to + k + 8, _mm512_shuffle_i32x4(low, high, 0xdd));
    _mm512_store_si512(to + k + 12, _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
  }
}

// The tiles of one strip: so many of each image, and from one image to the next so many lines.
struct Depth {
  int64_t images, tiles, turned_room, straight_room;
};

// Adds to T times S sums of 16 × 16 weights the products of the tiles that begin there. Several at a time,
// since each sum waits for its last addition, and each tile serves all that take it.
template <int T, int S>
inline void add_products(float* const* sums, const Line* const* turned, const Line* const* straight,
                         const Depth& depth, int64_t fetched, Ahead& ahead) {
  constexpr int64_t row = sizeof(Line);
  each<T * S>([&]<int n>() { load<n>(sums[n], row); });
  for (int64_t image = 0; image < depth.images; ++image) {
    int64_t down = image * depth.turned_room, along = image * depth.straight_room;
    for (int64_t k = 0; k < depth.tiles; ++k, down += DEEP, along += DEEP) {
      for (int64_t i = 0; i < fetched; ++i) ahead.step();
      each<T>([&]<int t>() { load<4 + t>(turned[t] + down, row); });
      each<S>([&]<int s>() {
        load<6 + s % 2>(straight[s] + along, row);
        each<T>([&]<int t>() { add_product<t * S + s, 4 + t, 6 + s % 2>(); });
      });
    }
  }
  each<T * S>([&]<int n>() { store<n>(sums[n], row); });
}

// Both signals of a few rows in tiles, for the input channels and output channels of one part. One of
// them is turned, which costs time: dy for the kernel of 3, since x is wanted three times; for the
// kernel of 1 the one with fewer channels.
struct TileStrip {
  using Number = Bf16;
  using Plain = PairStrip::Plain;
  using Normalised = PairStrip::Normalised;

  static int64_t most_inputs(const Convolution& c) { return c.kernel == 1 ? 16 : 4; }
  static int64_t most_outputs(const Convolution& c) { return most_inputs(c); }
  static bool turns_outputs(const Convolution& c) { return c.kernel > 1 || c.outputs <= c.inputs; }

  const Convolution& c;
  bool outputs_turned;
  int64_t inputs, outputs, pairs, halo;  // in tiles of channels; rows above and below
  int64_t images, rows;                  // of a strip; several images only where it has all rows
  int64_t deep, room;                    // lines of an image: turned, and straight
  std::vector<Line> turned;    // [channels][images][deep]
  std::vector<Line> straight;  // [columns that it is shifted by][channels][images][room]
  Registers registers;

  TileStrip(const Convolution& convolution, int64_t in, int64_t out)
      : c(convolution), outputs_turned(turns_outputs(c)), inputs(in), outputs(out),
        pairs(c.width / 2), halo(c.kernel / 2) {
    constexpr int64_t scratch = 81920;  // bytes of both signals in tiles
    const int64_t t = outputs_turned ? outputs : inputs, s = inputs + outputs - t;
    rows = std::clamp<int64_t>(
        scratch / (64 * pairs * (t + s * c.kernel)) - 2 * halo, 1, c.height);
    deep = (rows * pairs + DEEP - 1) / DEEP * DEEP;
    room = deep + 2 * halo * pairs;
    const int64_t image = 64 * (t * deep + s * c.kernel * room);
    images = rows < c.height ? 1 : std::clamp<int64_t>(scratch / image, 1, c.images);
    turned.resize(t * images * deep);
    straight.resize(c.kernel * s * images * room);
  }

  // A piece of both signals, and of x the rows beside it.
  template <typename Source>
  void fill(const Source& x, const Plain& dy, const Piece& piece, int64_t input, int64_t output) {
    for (int64_t k = 0; k < piece.images; ++k) {
      if (outputs_turned) {
        turn(dy, piece, k, output, outputs);
        straighten(x, piece, k, input, inputs);
      } else {
        turn(x, piece, k, input, inputs);
        straighten(dy, piece, k, output, outputs);
      }
    }
  }

  // The products of all taps, added to sums[tap][input][output][16][16].
  void add(float* sums, const Piece& piece, Ahead& ahead) const {
    const Depth depth = {piece.images, (piece.rows() * pairs + DEEP - 1) / DEEP, deep, room};
    const int64_t all = outputs_turned ? outputs : inputs, others = inputs + outputs - all;
    const int64_t beside = others * c.kernel * c.kernel;  // straight tiles, each once for each row of taps
    const int64_t most = all > 1 ? 2 : 4;
    const int64_t calls = (all + 1) / 2 * ((beside + most - 1) / most);
    const int64_t fetched = ((inputs + outputs) * DEEP + calls - 1) / calls;
    for (int64_t s = 0; s < beside; s += most)
      for (int64_t t = 0; t < all; t += 2) {
        const int64_t high = std::min<int64_t>(2, all - t), wide = std::min(most, beside - s);
        float* sum[4];
        const Line *left[2], *right[4];
        for (int64_t n = 0; n < high; ++n) left[n] = &turned[(t + n) * images * deep];
        for (int64_t k = 0; k < wide; ++k) {
          // What lies in one place is taken for all rows of taps in turn, while it is in the first cache.
          const int64_t row = (s + k) % c.kernel, which = (s + k) / c.kernel;
          right[k] = &straight[which * images * room + row * pairs];
          const int64_t tap = row * c.kernel + which / others, other = which % others;
          for (int64_t n = 0; n < high; ++n) {
            const int64_t i = outputs_turned ? other : t + n, o = outputs_turned ? t + n : other;
            sum[n * wide + k] = sums + ((tap * inputs + i) * outputs + o) * TILE;
          }
        }
        switch (10 * high + wide) {
          case 11: add_products<1, 1>(sum, left, right, depth, fetched, ahead); break;
          case 12: add_products<1, 2>(sum, left, right, depth, fetched, ahead); break;
          case 13: add_products<1, 3>(sum, left, right, depth, fetched, ahead); break;
          case 14: add_products<1, 4>(sum, left, right, depth, fetched, ahead); break;
          case 21: add_products<2, 1>(sum, left, right, depth, fetched, ahead); break;
          case 22: add_products<2, 2>(sum, left, right, depth, fetched, ahead); break;
        }
      }
  }

 private:
  // The k-th image of a piece, so many tiles of channels.
  template <typename Source>
  void turn(const Source& source, const Piece& piece, int64_t k, int64_t channel, int64_t tiles) {
    const int64_t pixel = ((piece.image + k) * c.height + piece.first) * c.width;
    const int64_t count = piece.rows() * pairs;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const auto column = source.column(channel + LANES * tile);
      Line* line = &turned[(tile * images + k) * deep];
      for (int64_t from = 0; from < count; from += DEEP) {
        __m512i lines[DEEP];
        for (int64_t p = from; p < from + DEEP; ++p)
          lines[p - from] = p < count ? column.pair(pixel + 2 * p) : _mm512_setzero_si512();
        transpose(lines, line + from);
      }
    }
  }

  // With the rows beside them where the kernel wants these, which are zero outside of the image.
  template <typename Source>
  void straighten(const Source& source, const Piece& piece, int64_t k, int64_t channel,
                  int64_t tiles) {
    const int64_t shift = tiles * images * room;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const auto column = source.column(channel + LANES * tile);
      Line* line = &straight[(tile * images + k) * room];
      for (int64_t row = piece.first - halo; row < piece.last + halo; ++row, line += pairs) {
        const int64_t pixel = ((piece.image + k) * c.height + row) * c.width;
        if (row < 0 || row >= c.height)
          for (int64_t n = 0; n < c.kernel; ++n) std::fill_n(line + n * shift, pairs, Line());
        else if (halo)
          put_shifted(column, pixel, pairs, line, shift);
        else
          for (int64_t p = 0; p < pairs; ++p)
            _mm512_store_si512(line + p, column.pair(pixel + 2 * p));
      }
    }
  }

  // A row from one column to the left on, as it is, and from one to the right on.
  template <typename Column>
  static void put_shifted(const Column column, int64_t pixel, int64_t pairs, Line* to,
                          int64_t shift) {
    Line *left = to, *here = to + shift, *right = to + 2 * shift;
    __m512i before = _mm512_setzero_si512();
    for (int64_t p = 0; p < pairs; ++p) {
      const __m512i now = column.pair(pixel + 2 * p);
      const __m512i between = _mm512_shrdi_epi32(before, now, 16);
      _mm512_store_si512(here + p, now);
      _mm512_store_si512(left + p, between);
      if (p) _mm512_store_si512(right + p - 1, between);
      before = now;
    }
    _mm512_store_si512(right + pairs - 1, _mm512_srli_epi32(before, 16));
  }
};

}  // namespace resvar

#endif

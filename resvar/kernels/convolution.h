// A convolution that keeps the resolution, and what the gradient of its weights is put together from.

#pragma once

#include "bn.h"

namespace resvar {

constexpr int64_t SIDE = 16;  // channels of a tile
constexpr int64_t TILE = SIDE * SIDE;

struct Convolution {
  int64_t images, height, width, inputs, outputs, kernel;

  Convolution(const Tensor& x, const Tensor& filters)
      : images(x.size(0)), height(x.size(2)), width(x.size(3)), inputs(x.size(1)),
        outputs(filters.size(0)), kernel(filters.size(2)) {}
};

// What is put into tiles at a time: rows `first` to `last` of an image, or of several in a row.
struct Piece {
  int64_t image, images, first, last;

  int64_t rows() const { return last - first; }
};

// The products of one tap are those of dy in the rows `from` to `to` with x so many rows further down.
struct Tap {
  int64_t down, right, from, to;

  Tap(const Convolution& c, int64_t number, int64_t first, int64_t last)
      : down(number / c.kernel - c.kernel / 2), right(number % c.kernel - c.kernel / 2),
        from(std::max(first, -down)), to(std::min(last, c.height - down)) {}
};

#if defined(__AMX_BF16__)
constexpr int CACHE = 2;  // Intel's first cache waits for few lines at a time, the second for many
#else
constexpr int CACHE = 3;  // the first one
#endif

// What is to be fetched while something else is computed, a line of the cache at a time: some
// channels of a number of pixels.
struct Fetch {
  const char* at;
  int64_t width, stride, pixels, line = 0;  // in bytes

  template <typename T>
  Fetch(const T* signal, int64_t channels, int64_t wanted, int64_t count)
      : at(reinterpret_cast<const char*>(signal)), width(sizeof(T) * wanted),
        stride(sizeof(T) * channels), pixels(count) {
    if (wanted == channels) width *= count, pixels = std::min<int64_t>(count, 1);
  }

  bool step() {
    if (pixels <= 0) return false;
    __builtin_prefetch(at + line, 0, CACHE);
    if ((line += 64) >= width) line = 0, at += stride, --pixels;
    return true;
  }
};

struct Ahead {
  Fetch gradient, signal;

  void step() { gradient.step() || signal.step(); }
};

}  // namespace resvar

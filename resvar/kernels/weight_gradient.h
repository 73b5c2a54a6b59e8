// The gradient of a convolution's weights, of the BN and ReLU before it too where these are given.
//
//   dW[o, i, tap] = sum over all pixels of  y[pixel + tap, i] dy[pixel, o],   y = relu(a x + b) or x
//
// For stride 1, padding that keeps the resolution, kernels of 1 and 3, and bf16. y is computed again
// from x, so that nobody has to keep it.
//
// The processor's instruction multiplies pairs of bf16 and adds up both products. A pair here is a
// pixel and the one to its right: some rows of both signals at a time are put into that order, in
// tiles of 16 channels, small enough for the cache. Then 16 registers add up the gradient of 16 × 16
// weights of one tap. While that goes on, the next rows are fetched from memory.
//
// The work is cut into parts by images and channels, in a way that depends on the shape alone, and
// the parts are added up in their order. So the result does not depend on the number of threads.

#pragma once

#include "bn.h"

namespace resvar {

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define RESVAR_PAIRS 1

using Bf16 = at::BFloat16;
using Pair = uint32_t;                 // two bf16
constexpr int64_t TILE = LANES * LANES;
constexpr int64_t SCRATCH = 65536;     // bytes of both signals in pairs
constexpr int64_t PARTS = 16;          // at least so many, where there are as many images

struct Convolution {
  int64_t images, height, width, inputs, outputs, kernel;

  Convolution(const Tensor& x, const Tensor& filters)
      : images(x.size(0)), height(x.size(2)), width(x.size(3)), inputs(x.size(1)),
        outputs(filters.size(0)), kernel(filters.size(2)) {}
};

// --- pairs of pixels ------------------------------------------------------------------------------

inline __m512i order_of_pairs() {
  alignas(64) uint16_t order[2 * LANES];
  for (int i = 0; i < LANES; ++i) order[2 * i] = i, order[2 * i + 1] = LANES + i;
  return _mm512_load_si512(order);
}

// 16 channels from c on of two pixels that lie next to each other: of the signal as it is,
struct Plain {
  const Bf16* signal;
  int64_t channels;
  __m512i order = order_of_pairs();

  __m512i pair(int64_t pixel, int64_t c) const {
    const Bf16* left = signal + pixel * channels + c;
    const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(left));
    const __m256i r = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(left + channels));
    return _mm512_permutexvar_epi16(order, _mm512_inserti64x4(_mm512_castsi256_si512(l), r, 1));
  }
};

// and of what BN, and ReLU where it follows, make of it: to the bit what the forward pass wrote.
struct Normalised {
  Plain plain;
  const Affine<float>& affine;
  bool relu;

  __m512i pair(int64_t pixel, int64_t c) const {
    const Bf16* left = plain.signal + pixel * plain.channels + c;
    const __m512bh both = _mm512_cvtne2ps_pbh(one(left + plain.channels, c), one(left, c));
    return _mm512_permutexvar_epi16(plain.order, (__m512i)both);
  }

  __m512 one(const Bf16* at, int64_t c) const {
    const Vec<float> y = get(at) * get(affine.scale.data() + c) + get(affine.shift.data() + c);
    return (__m512)(relu ? clip(y) : y);
  }
};

// What is to be fetched while something else is computed, a line of the cache at a time: some
// channels of a number of pixels.
struct Fetch {
  const char* at;
  int64_t width, stride, pixels, line = 0;  // in bytes

  Fetch(const Bf16* signal, int64_t channels, int64_t wanted, int64_t count)
      : at(reinterpret_cast<const char*>(signal)), width(2 * wanted), stride(2 * channels),
        pixels(count) {
    if (wanted == channels) width *= count, pixels = std::min<int64_t>(count, 1);
  }

  bool step() {
    if (pixels <= 0) return false;
    _mm_prefetch(at + line, _MM_HINT_T0);
    if ((line += 64) >= width) line = 0, at += stride, --pixels;
    return true;
  }
};

struct Ahead {
  Fetch gradient, signal;

  void step() { gradient.step() || signal.step(); }
};

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

// --- some rows of an image ------------------------------------------------------------------------

inline int64_t offset(int64_t row, int64_t pairs, int64_t pair) {
  return (row * pairs + pair) * LANES;
}

// Both signals of a few rows in pairs, for the input channels and output channels of one part.
struct Strip {
  const Convolution& c;
  int64_t inputs, outputs, rows, pairs, halo;  // in tiles of channels; rows above and below
  std::vector<Pair> dy, even, odd;  // pairs that begin in even columns, and in odd ones from -1 on

  Strip(const Convolution& convolution, int64_t in, int64_t out)
      : c(convolution), inputs(in), outputs(out), pairs(c.width / 2), halo(c.kernel / 2) {
    const int64_t row = 64 * pairs * (outputs + inputs * (1 + halo));
    rows = std::clamp<int64_t>(SCRATCH / row, 1, c.height);
    dy.resize(outputs * rows * pairs * LANES);
    even.resize(inputs * (rows + 2 * halo) * pairs * LANES);
    if (halo) odd.resize(inputs * (rows + 2 * halo) * (pairs + 1) * LANES);
  }

  // Rows `first` to `last` of an image, and of x the ones beside them.
  template <typename Source>
  void fill(const Source& x, const Plain& gradient, int64_t image, int64_t first, int64_t last,
            int64_t input, int64_t output) {
    const int64_t top = image * c.height;
    for (int64_t row = first; row < last; ++row)
      for (int64_t p = 0; p < pairs; ++p)
        for (int64_t o = 0; o < outputs; ++o)
          _mm512_storeu_si512(&dy[offset(o * rows + row - first, pairs, p)],
                              gradient.pair((top + row) * c.width + 2 * p, output + LANES * o));
    const int64_t end = std::min(c.height, last + halo);
    for (int64_t row = std::max<int64_t>(0, first - halo); row < end; ++row) {
      const int64_t to = row - first + halo;
      for (int64_t p = 0; p < pairs; ++p)
        for (int64_t i = 0; i < inputs; ++i)
          _mm512_storeu_si512(&even[offset(i * (rows + 2 * halo) + to, pairs, p)],
                              x.pair((top + row) * c.width + 2 * p, input + LANES * i));
      for (int64_t i = 0; halo && i < inputs; ++i) shift(i * (rows + 2 * halo) + to);
    }
  }

  // The products of all taps, added to sums[tap][input][output][16][16].
  void add(float* sums, int64_t first, int64_t last, Ahead& ahead) const {
    if (!halo) {
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t o = 0; o < outputs; ++o)
          add_tile(sums + (i * outputs + o) * TILE, &even[offset(i * rows, pairs, 0)], 0,
                   &dy[offset(o * rows, pairs, 0)], 0, 1, (last - first) * pairs, ahead);
      return;
    }
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t down = tap / 3 - 1, right = tap % 3 - 1;
      const int64_t from = std::max(first, -down), to = std::min(last, c.height - down);
      const bool same = right == 0;
      const int64_t width = same ? pairs : pairs + 1;
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t row = i * (rows + 2) + from + down - first + 1;
        for (int64_t o = 0; o < outputs; ++o)
          add_tile(sums + ((tap * inputs + i) * outputs + o) * TILE,
                   &(same ? even : odd)[offset(row, width, right > 0)], width * LANES,
                   &dy[offset(o * rows + from - first, pairs, 0)], pairs * LANES, to - from, pairs,
                   ahead);
      }
    }
  }

 private:
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

// --- all of it ------------------------------------------------------------------------------------

// How the work is cut: ranges of input and of output channels (in tiles), and blocks of images.
struct Cut {
  int64_t inputs, outputs, in_ranges, out_ranges, blocks;

  explicit Cut(const Convolution& c)
      : inputs(range(c.inputs, c.kernel == 1 ? 4 : 1)), outputs(range(c.outputs, 4)),
        in_ranges(c.inputs / LANES / inputs), out_ranges(c.outputs / LANES / outputs),
        blocks(std::clamp<int64_t>(PARTS / (in_ranges * out_ranges), 1, c.images)) {}

  // The most tiles, up to `most`, of which a whole number makes up the channels.
  static int64_t range(int64_t channels, int64_t most) {
    while (channels / LANES % most) --most;
    return most;
  }
};

// The parts of the sums: [blocks, in_ranges, out_ranges, taps, inputs, outputs, 16, 16].
template <typename Source>
Tensor sums_of_parts(const Convolution& c, const Cut& cut, const Source& x, const Plain& signal,
                     const Plain& gradient) {
  const int64_t ranges = cut.in_ranges * cut.out_ranges;
  const int64_t size = c.kernel * c.kernel * cut.inputs * cut.outputs * TILE;
  const int64_t ins = cut.inputs * LANES, outs = cut.outputs * LANES;
  const int64_t pixels = c.images * c.height * c.width;
  Tensor parts = at::empty({cut.blocks, ranges, size}, at::kFloat);
  float* sums = parts.data_ptr<float>();
  at::parallel_for(0, cut.blocks * ranges, 1, [&](int64_t begin, int64_t end) {
    Strip strip(c, cut.inputs, cut.outputs);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t block = part / ranges, range = part % ranges;
      const int64_t in = range / cut.out_ranges * ins, out = range % cut.out_ranges * outs;
      float* sum = sums + part * size;
      std::fill(sum, sum + size, 0.0f);
      for (int64_t image = block * c.images / cut.blocks,
                   stop = (block + 1) * c.images / cut.blocks; image < stop; ++image)
        for (int64_t first = 0; first < c.height; first += strip.rows) {
          const int64_t last = std::min(c.height, first + strip.rows);
          strip.fill(x, gradient, image, first, last, in, out);
          const int64_t next = (image * c.height + last) * c.width;
          const int64_t below = next + strip.halo * c.width;  // that row of x is here already
          const auto count = [&](int64_t from) {
            return std::min(strip.rows * c.width, pixels - from);
          };
          Ahead ahead = {
              Fetch(gradient.signal + next * c.outputs + out, c.outputs, outs, count(next)),
              Fetch(signal.signal + below * c.inputs + in, c.inputs, ins, count(below))};
          strip.add(sum, first, last, ahead);
        }
    }
  });
  return parts;
}

// dW in fp32, laid out as the filters [outputs, inputs, kernel, kernel] are. x and dy lie in rows.
inline Tensor weight_gradient(const Tensor& x, const Tensor& dy, const Tensor& filters,
                              const Affine<float>* affine, bool relu) {
  const Convolution c(x, filters);
  const Cut cut(c);
  const Plain signal = {x.const_data_ptr<Bf16>(), c.inputs};
  const Plain gradient = {dy.const_data_ptr<Bf16>(), c.outputs};
  const Tensor parts =
      affine ? sums_of_parts(c, cut, Normalised{signal, *affine, relu}, signal, gradient)
             : sums_of_parts(c, cut, signal, signal, gradient);
  Tensor sum = at::empty_like(filters, filters.options().dtype(at::kFloat));
  const float* from = parts.const_data_ptr<float>();
  float* to = sum.data_ptr<float>();
  const int64_t all = parts.stride(0), tiles = cut.inputs * cut.outputs;
  at::parallel_for(0, all / TILE, 8, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      float whole[TILE] = {};
      for (int64_t block = 0; block < cut.blocks; ++block)
        for (int64_t k = 0; k < TILE; ++k) whole[k] += from[block * all + tile * TILE + k];
      const int64_t range = tile / (tiles * c.kernel * c.kernel);
      const int64_t tap = tile / tiles % (c.kernel * c.kernel);
      const int64_t i = range / cut.out_ranges * cut.inputs + tile % tiles / cut.outputs;
      const int64_t o = range % cut.out_ranges * cut.outputs + tile % cut.outputs;
      float* corner = to + o * LANES * sum.stride(0) + i * LANES * sum.stride(1) +
                      tap / c.kernel * sum.stride(2) + tap % c.kernel * sum.stride(3);
      for (int64_t k = 0; k < TILE; ++k)
        corner[k % LANES * sum.stride(0) + k / LANES * sum.stride(1)] = whole[k];
    }
  });
  return sum;
}

#else

inline Tensor weight_gradient(const Tensor&, const Tensor&, const Tensor&, const Affine<float>*,
                              bool) {
  TORCH_CHECK(false, "resvar: this processor has no instruction for pairs of bf16");
}

#endif

}  // namespace resvar

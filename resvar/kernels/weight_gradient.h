// The gradient of a convolution's weights, of the BN and ReLU before it too where these are given.
//
//   dW[o, i, tap] = sum over all pixels of  y[pixel + tap, i] dy[pixel, o],   y = relu(a x + b) or x
//
// For stride 1, padding that keeps the resolution, and kernels of 1 and 3. y is computed again from
// x, so that nobody has to keep it.
//
// Some rows of both signals at a time are put into tiles of 16 channels, small enough for the cache, in
// the order that the processor multiplies them in: tiles.h (AMX) or pairs.h for bf16, floats.h for fp32.
// Then registers add up the gradient of 16 × 16 weights of one tap. While that goes on, the next rows
// are fetched from memory.
//
// The work is cut into parts by images and channels, in a way that depends on the shape alone, and
// the parts are added up in their order. So the result does not depend on the number of threads.

#pragma once

#include "floats.h"
#include "pairs.h"
#include "product.h"

namespace resvar {

constexpr int64_t PARTS = 16;  // at least so many, where there are as many images

// How the work is cut: ranges of input and of output channels (in tiles), and blocks of images.
struct Cut {
  int64_t inputs, outputs, in_ranges, out_ranges, blocks;

  // With so many tiles of input channels and of output channels in a part at most.
  Cut(const Convolution& c, int64_t most_inputs, int64_t most_outputs)
      : inputs(range(c.inputs, most_inputs)), outputs(range(c.outputs, most_outputs)),
        in_ranges(c.inputs / SIDE / inputs), out_ranges(c.outputs / SIDE / outputs),
        blocks(std::clamp<int64_t>(PARTS / (in_ranges * out_ranges), 1, c.images)) {}

  // The most tiles, up to `most`, of which a whole number makes up the channels.
  static int64_t range(int64_t channels, int64_t most) {
    while (channels / SIDE % most) --most;
    return most;
  }
};

// What else is to be done with a piece while it is in the cache: here nothing.
struct Nothing {
  struct Worker {
    explicit Worker(const Nothing&) {}
  };
  void operator()(const Convolution&, const Piece&, Worker&) const {}
};

#ifdef RESVAR_TILES
// The gradient of what goes into a convolution of kernel 1, from the one that the weights' is made of.
struct Backward {
  const Product& product;
  const Bf16* gradient;
  Bf16* out;

  struct Worker : Product::Worker {
    explicit Worker(const Backward& b) : Product::Worker(b.product, 0) {}
  };
  void operator()(const Convolution& c, const Piece& piece, Worker& worker) const {
    const int64_t first = (piece.image * c.height + piece.first) * c.width;
    product.multiply(gradient + first * c.outputs, piece.images * piece.rows() * c.width, nullptr,
                     out + first * c.inputs, worker);
  }
};
#endif

// The parts of the sums: [blocks, in_ranges, out_ranges, taps, inputs, outputs, 16, 16].
template <typename Strip, typename Source, typename Beside>
Tensor sums_of_parts(const Convolution& c, const Cut& cut, const Source& x,
                     const typename Strip::Plain& signal, const typename Strip::Plain& gradient,
                     const Beside& beside) {
  const int64_t ranges = cut.in_ranges * cut.out_ranges;
  const int64_t size = c.kernel * c.kernel * cut.inputs * cut.outputs * TILE;
  const int64_t ins = cut.inputs * SIDE, outs = cut.outputs * SIDE;
  const int64_t pixels = c.images * c.height * c.width;
  Tensor parts = at::empty({cut.blocks, ranges, size}, at::kFloat);
  float* sums = parts.data_ptr<float>();
  at::parallel_for(0, cut.blocks * ranges, 1, [&](int64_t begin, int64_t end) {
    Strip strip(c, cut.inputs, cut.outputs);
    typename Beside::Worker worker(beside);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t block = part / ranges, range = part % ranges;
      const int64_t in = range / cut.out_ranges * ins, out = range % cut.out_ranges * outs;
      float* sum = sums + part * size;
      std::fill(sum, sum + size, 0.0f);
      const int64_t stop = (block + 1) * c.images / cut.blocks;
      Piece piece;
      for (piece.image = block * c.images / cut.blocks; piece.image < stop;
           piece.image += piece.images) {
        piece.images = std::min(strip.images, stop - piece.image);
        for (piece.first = 0; piece.first < c.height; piece.first = piece.last) {
          piece.last = std::min(c.height, piece.first + strip.rows);
          strip.fill(x, gradient, piece, in, out);
          beside(c, piece, worker);
          const int64_t next = ((piece.image + piece.images - 1) * c.height + piece.last) * c.width;
          const int64_t below = next + strip.halo * c.width;  // that row of x is here already
          const auto count = [&](int64_t from) {
            return std::min(piece.images * piece.rows() * c.width, pixels - from);
          };
          Ahead ahead = {
              Fetch(gradient.signal + next * c.outputs + out, c.outputs, outs, count(next)),
              Fetch(signal.signal + below * c.inputs + in, c.inputs, ins, count(below))};
          strip.add(sum, piece, ahead);
        }
      }
    }
  });
  return parts;
}

// dW in fp32, laid out as the filters [outputs, inputs, kernel, kernel] are. x and dy lie in rows.
template <typename Strip, typename Beside = Nothing>
Tensor weight_gradient_in(const Tensor& x, const Tensor& dy, const Tensor& filters,
                          const Affine<float>* affine, bool relu, const Beside& beside = {}) {
  const Convolution c(x, filters);
  const Cut cut(c, Strip::most_inputs(c), Strip::most_outputs(c));
  using Number = typename Strip::Number;
  const typename Strip::Plain signal = {x.const_data_ptr<Number>(), c.inputs};
  const typename Strip::Plain gradient = {dy.const_data_ptr<Number>(), c.outputs};
  const Tensor parts =
      affine ? sums_of_parts<Strip>(
                   c, cut, typename Strip::Normalised{signal, *affine, relu}, signal, gradient, beside)
             : sums_of_parts<Strip>(c, cut, signal, signal, gradient, beside);
  Tensor sum = at::empty_like(filters, filters.options().dtype(at::kFloat));
  const float* from = parts.const_data_ptr<float>();
  float* to = sum.data_ptr<float>();
  const bool turned = Strip::turns_outputs(c);  // tiles are [16 outputs, 16 inputs] then
  const int64_t down = sum.stride(!turned), across = sum.stride(turned);
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
      float* corner = to + o * SIDE * sum.stride(0) + i * SIDE * sum.stride(1) +
                      tap / c.kernel * sum.stride(2) + tap % c.kernel * sum.stride(3);
      for (int64_t k = 0; k < TILE; ++k)
        corner[k / SIDE * down + k % SIDE * across] = whole[k];
    }
  });
  return sum;
}

// Whether the gradient of the weights of convolutions of such signals is computed here.
inline bool takes_convolutions(at::ScalarType type) {
#ifdef RESVAR_PAIRS
  if (type == at::kBFloat16) return true;
#endif
#ifdef RESVAR_FLOATS
  if (type == at::kFloat) return true;
#endif
  return false;
}

inline Tensor weight_gradient(const Tensor& x, const Tensor& dy, const Tensor& filters,
                              const Affine<float>* affine, bool relu) {
#ifdef RESVAR_PAIRS
  if (x.scalar_type() == at::kBFloat16) {
#ifdef RESVAR_TILES
    if (tiles_granted()) return weight_gradient_in<TileStrip>(x, dy, filters, affine, relu);
#endif
    return weight_gradient_in<PairStrip>(x, dy, filters, affine, relu);
  }
#endif
#ifdef RESVAR_FLOATS
  if (x.scalar_type() == at::kFloat)
    return weight_gradient_in<FloatStrip>(x, dy, filters, affine, relu);
#endif
  TORCH_CHECK(false, "resvar: no gradient of weights in ", x.scalar_type(), " on this processor");
}

#ifdef RESVAR_TILES
// That, and the gradient of what goes into a convolution of kernel 1: `product` is the way back. Where
// dy has more channels than the other, reading it once instead of twice is what counts.
inline std::tuple<Tensor, Tensor> both_gradients(
    const Tensor& x, const Tensor& dy, const Tensor& filters, const Affine<float>* affine, bool relu,
    const Product& product) {
  const Convolution c(x, filters);
  const Cut cut(c, TileStrip::most_inputs(c), TileStrip::most_outputs(c));
  if (c.kernel > 1 || cut.in_ranges * cut.out_ranges > 1 || !product.takes_whole_tiles())
    return {weight_gradient(x, dy, filters, affine, relu), multiplied(product, dy)};
  Tensor dx = at::empty_like(x);
  const Backward back = {product, dy.const_data_ptr<Bf16>(), dx.data_ptr<Bf16>()};
  return {weight_gradient_in<TileStrip>(x, dy, filters, affine, relu, back), dx};
}
#endif

}  // namespace resvar

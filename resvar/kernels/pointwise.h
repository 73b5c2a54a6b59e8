// A convolution whose kernel is 1, in bf16 on AMX: rows of pixels times a matrix of weights.
//
// It is cheap beside what it reads and writes, so it is computed where its signal lies in the cache
// anyway: forward on what BN has just normalised; backward, where that signal is the wider one, again in
// each of BN's two passes. Then neither is written to memory as a whole.

#pragma once

#include "tiles.h"

#ifdef RESVAR_TILES

namespace resvar {

// out[row, o] = sum over i of  in[row, i] weights[i, o], summed up in fp32, i upwards.
class Product {
 public:
  // What one thread needs: the registers, and room for the sums.
  struct Worker {
    Registers registers;
    alignas(64) float sums[4 * TILE];
    std::vector<Bf16> last;  // rows, where fewer than 16 are left

    explicit Worker(const Product& p) : registers(p.deep), last(SIDE * p.inputs) {}
  };

  // Weights [outputs, inputs], or with the gradient's way through them, from outputs to inputs.
  Product(const Tensor& filters, bool backward)
      : inputs(filters.size(backward ? 0 : 1)), outputs(filters.size(backward ? 1 : 0)),
        deep(inputs % 32 ? 8 : 16), chunks(inputs / (2 * deep)), lines(outputs / SIDE * chunks * deep) {
    const Tensor numbers = filters.contiguous();
    const float* from = numbers.const_data_ptr<float>();
    const int64_t along = backward ? outputs : 1, across = backward ? 1 : inputs;
    for (int64_t tile = 0; tile < outputs / SIDE; ++tile)
      for (int64_t pair = 0; pair < inputs / 2; ++pair) {
        Bf16* line = reinterpret_cast<Bf16*>(&lines[tile * chunks * deep + pair]);
        for (int64_t o = 0; o < SIDE; ++o)
          for (int64_t k = 0; k < 2; ++k)
            line[2 * o + k] = from[(2 * pair + k) * along + (tile * SIDE + o) * across];
      }
  }

  // `count` rows; `added`, where it is given, is added to what would else have been put out.
  void rows(const Bf16* in, int64_t count, const Bf16* added, Bf16* out, Worker& worker) const {
    const int64_t tiles = outputs / SIDE;
    for (int64_t row = 0; row < count; row += SIDE, in += SIDE * inputs, out += SIDE * outputs) {
      const int64_t some = std::min(SIDE, count - row);
      const Bf16* from = in;
      if (some < SIDE) {
        std::copy_n(in, some * inputs, worker.last.data());
        from = worker.last.data();
      }
      for (int64_t tile = 0; tile < tiles; tile += 4) {
        const int64_t wide = std::min<int64_t>(4, tiles - tile);
        multiply(from, &lines[tile * chunks * deep], wide, worker.sums);
        if (added)
          put(worker.sums, wide, some, added + row * outputs + tile * SIDE, out + tile * SIDE);
        else
          put(worker.sums, wide, some, out + tile * SIDE);
      }
    }
  }

  // Whether the registers are shaped as those of the weights' gradient.
  bool uses_whole_tiles() const { return deep == DEEP; }

  const int64_t inputs, outputs;

 private:
  const int64_t deep, chunks;  // pairs of inputs of a tile; tiles that make up the inputs
  std::vector<Line> lines;     // [tiles of outputs][chunks][deep]

  void multiply(const Bf16* in, const Line* weights, int64_t wide, float* sums) const {
    switch (wide) {
      case 1: return multiply<1>(in, weights, sums);
      case 2: return multiply<2>(in, weights, sums);
      case 3: return multiply<3>(in, weights, sums);
      case 4: return multiply<4>(in, weights, sums);
    }
  }

  template <int N> void multiply(const Bf16* in, const Line* weights, float* sums) const {
    constexpr int64_t line = sizeof(Line);
    const int64_t next = chunks * deep, row = 2 * inputs;
    written();
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (N > 2) _tile_zero(2);
    if constexpr (N > 3) _tile_zero(3);
    for (int64_t k = 0; k < chunks; ++k, in += 2 * deep, weights += deep) {
      _tile_loadd(4, in, row);
      _tile_loadd(5, weights, line);
      _tile_dpbf16ps(0, 4, 5);
      if constexpr (N > 1) {
        _tile_loadd(6, weights + next, line);
        _tile_dpbf16ps(1, 4, 6);
      }
      if constexpr (N > 2) {
        _tile_loadd(7, weights + 2 * next, line);
        _tile_dpbf16ps(2, 4, 7);
      }
      if constexpr (N > 3) {
        _tile_loadd(5, weights + 3 * next, line);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    _tile_stored(0, sums, line);
    if constexpr (N > 1) _tile_stored(1, sums + TILE, line);
    if constexpr (N > 2) _tile_stored(2, sums + 2 * TILE, line);
    if constexpr (N > 3) _tile_stored(3, sums + 3 * TILE, line);
  }

  // Sums [wide][16 rows][16] → rows of `out`, in bf16.
  void put(const float* sums, int64_t wide, int64_t rows, Bf16* out) const {
    for (int64_t row = 0; row < rows; ++row, sums += SIDE, out += outputs) {
      int64_t tile = 0;
      for (; tile + 2 <= wide; tile += 2)
        _mm512_storeu_si512(out + tile * SIDE,
                            (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(sums + (tile + 1) * TILE),
                                                         _mm512_load_ps(sums + tile * TILE)));
      if (tile < wide)
        resvar::put<Bf16>(out + tile * SIDE, (Vec<float>)_mm512_load_ps(sums + tile * TILE));
    }
  }

  // The same, and `added`: rounded before and after, as two operators would.
  void put(const float* sums, int64_t wide, int64_t rows, const Bf16* added, Bf16* out) const {
    for (int64_t row = 0; row < rows; ++row, sums += SIDE, added += outputs, out += outputs)
      for (int64_t tile = 0; tile < wide; ++tile) {
        Bf16 rounded[SIDE];
        resvar::put<Bf16>(rounded, (Vec<float>)_mm512_load_ps(sums + tile * TILE));
        resvar::put<Bf16>(out + tile * SIDE, get(rounded) + get(added + tile * SIDE));
      }
  }
};

// One thread's room for a signal of which only a block lies in memory at a time (see `Whole` in bn.h for
// the others), and for the product that makes it or takes it.
struct BlockWorker {
  Product::Worker product;
  std::vector<Bf16> numbers;

  template <typename Signal>
  BlockWorker(const Signal& signal, const Rows& r)
      : product(signal.product), numbers(r.rows_per_block * r.channels) {}
};

// dy, as it comes back through the convolution from the gradient of what that puts out.
struct Returning {
  const Product& product;  // backward
  const Bf16* gradient;
  using Worker = BlockWorker;

  const Bf16* begin(const Rows& r, int64_t block, Worker& worker) const {
    product.rows(gradient + r.first(block) * product.inputs, r.count(block), nullptr,
                 worker.numbers.data(), worker.product);
    return worker.numbers.data() - r.first(block) * r.channels;
  }
};

// y, which goes into the convolution, and what that makes of it into memory.
struct Entering {
  const Product& product;
  const Bf16* added;
  Bf16* out;
  using Worker = BlockWorker;

  Bf16* begin(const Rows& r, int64_t block, Worker& worker) const {
    return worker.numbers.data() - r.first(block) * r.channels;
  }
  void end(const Rows& r, int64_t block, Worker& worker) const {
    multiply(worker.numbers.data(), r, block, worker.product);
  }
  void multiply(const Bf16* in, const Rows& r, int64_t block, Product::Worker& worker) const {
    const int64_t first = r.first(block) * product.outputs;
    product.rows(in, r.count(block), added ? added + first : nullptr, out + first, worker);
  }
};

// A tensor like x in all but its channels.
inline Tensor with_channels(const Tensor& x, int64_t channels) {
  return at::empty({x.size(0), channels, x.size(2), x.size(3)}, x.options(),
                   at::MemoryFormat::ChannelsLast);
}

// The product of x as it is.
inline Tensor multiplied(const Product& product, const Tensor& x, const Bf16* added = nullptr) {
  const Rows r(x);
  Tensor out = with_channels(x, product.outputs);
  const Entering sink = {product, added, out.data_ptr<Bf16>()};
  const Bf16* in = x.const_data_ptr<Bf16>();
  at::parallel_for(0, r.blocks, 1, [&](int64_t begin, int64_t end) {
    Product::Worker worker(product);
    for (int64_t i = begin; i < end; ++i) sink.multiply(in + r.first(i) * r.channels, r, i, worker);
  });
  return out;
}

}  // namespace resvar

#endif

// A convolution in bf16 on AMX, of kernel 1 or 3: rows of pixels times a matrix of weights.
//
// It is cheap beside what it reads and writes, so it is computed where its signal lies in the cache
// anyway: forward on what BN has just normalised, backward just before BN's pass takes it up.

#pragma once

#include "tiles.h"

#ifdef RESVAR_TILES

namespace resvar {

// out[pixel, o] = sum over taps and i of  in[pixel + tap, i] weights[tap, i, o], summed up in fp32.
//
// For a kernel of 3 the pixels are spread out: there is a column of zeros to the right of each image and
// a row of zeros below it. Then what a tap takes for pixels in a row are pixels in a row, what the
// three taps of a line take are numbers in a row, and where one reaches over an edge it finds zeros.
// What comes out at the places of the zeros is dropped. A kernel of 1 takes the pixels as they lie.
class Product {
 public:
  // What one thread needs, for so many pixels at a time.
  struct Worker {
    Registers registers;
    alignas(64) float sums[4 * TILE];
    std::vector<Line> spread;     // what goes in; for a kernel of 1 the last pixels
    std::vector<int32_t> pixels;  // the pixel at each place of what is spread out, -1 for a zero

    Worker(const Product& p, int64_t count) : registers(p.halves) {
      const int64_t places = p.kernel > 1 ? p.place(count - 1) + 1 : 0;
      const int64_t room = places + 4 * SIDE + 2 * p.pitch + 2;
      spread.resize(room * p.inputs * sizeof(Bf16) / sizeof(Line) + 1);
      pixels.assign(places, -1);
      if (p.kernel > 1)
        for (int64_t pixel = 0; pixel < count; ++pixel) pixels[p.place(pixel)] = pixel;
    }
  };

  // Weights [outputs, inputs, kernel, kernel] for images of that size; or the gradient's way back, from
  // outputs to inputs.
  Product(const Tensor& filters, bool backward, int64_t height, int64_t width)
      : inputs(filters.size(backward ? 0 : 1)), outputs(filters.size(backward ? 1 : 0)),
        kernel(filters.size(2)), whole_images(kernel > 1 ? height * width : 1), height(height),
        width(width), pitch(width + 1), tiles(kernel * inputs / 32),
        halves(kernel * inputs % 32 != 0), depth(kernel * kernel * inputs / 2),
        weights(outputs / SIDE * depth) {
    const int64_t along = filters.stride(!backward), across = filters.stride(backward);
    alignas(64) int32_t steps[SIDE];
    for (int64_t o = 0; o < SIDE; ++o) steps[o] = o * across;
    const __m512i sixteen = _mm512_load_si512(steps), order = order_of_pairs();
    Line* to = weights.data();
    for (int64_t tile = 0; tile < outputs; tile += SIDE)
      for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
        const int64_t turned = backward ? kernel * kernel - 1 - tap : tap;
        const float* at = filters.const_data_ptr<float>() + tile * across +
                          turned / kernel * filters.stride(2) + turned % kernel * filters.stride(3);
        for (int64_t i = 0; i < inputs; i += 2, at += 2 * along) {
          const __m512 first = _mm512_i32gather_ps(sixteen, at, sizeof(float));
          const __m512 second = _mm512_i32gather_ps(sixteen, at + along, sizeof(float));
          const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
          _mm512_store_si512(to++, _mm512_permutexvar_epi16(order, both));
        }
      }
  }

  // `count` pixels, for a kernel of 3 those of whole images; `added`, where it is given, is added to what
  // would else have been put out.
  void multiply(const Bf16* in, int64_t count, const Bf16* added, Bf16* out, Worker& worker) const {
    Bf16* room = reinterpret_cast<Bf16*>(worker.spread.data());
    if (kernel > 1) spread(in, count, room);
    const int64_t places = kernel > 1 ? place(count - 1) + 1 : count;
    // Of a kernel of 1 all of a pixel's outputs are written in a row, of one of 3 weights are used again.
    const int64_t wide = std::min<int64_t>(kernel > 1 ? 2 : 4, outputs / SIDE);
    const int64_t group = kernel > 1 ? 4 * SIDE : 4 / wide * SIDE;
    for (int64_t first = 0; first < places; first += group) {
      const int64_t some = std::min(group, places - first);
      const Bf16* from = (kernel > 1 ? room : in) + first * inputs;
      if (kernel == 1 && some % SIDE) from = std::copy_n(from, some * inputs, room) - some * inputs;
      if (kernel > 1) {
        const int32_t* pixels = &worker.pixels[first];
        put_out(from, some, wide, [=](int64_t p) { return pixels[p]; }, added, out, worker.sums);
      } else {
        put_out(from, some, wide, [=](int64_t p) { return first + p; }, added, out, worker.sums);
      }
    }
  }

  // Whether the registers are shaped as those of the weights' gradient.
  bool takes_whole_tiles() const { return !halves; }

  const int64_t inputs, outputs, kernel;
  const int64_t whole_images;  // so many pixels, or a multiple, have to come together

 private:
  const int64_t height, width, pitch;  // of an image, and from a row to the next where it is spread out
  const int64_t tiles;                 // that the taps of a row are deep
  const bool halves;                   // whether half a tile follows those
  const int64_t depth;                 // pairs of inputs of all taps
  std::vector<Line> weights;           // [tiles of outputs][depth]

  int64_t place(int64_t pixel) const {
    const int64_t row = pixel / width;
    return (row + row / height) * pitch + pixel % width;
  }

  // Zeros are there already, and none of them is written over.
  void spread(const Bf16* in, int64_t count, Bf16* room) const {
    for (int64_t pixel = 0; pixel < count; pixel += width)
      std::copy_n(in + pixel * inputs, width * inputs, room + (place(pixel) + pitch + 1) * inputs);
  }

  // All outputs of some places, whose pixels `pixel` tells; `wide` tiles of outputs at a time.
  template <typename Pixel>
  void put_out(const Bf16* in, int64_t count, int64_t wide, const Pixel& pixel, const Bf16* added,
               Bf16* out, float* sums) const {
    for (int64_t tile = 0; tile < outputs / SIDE; tile += wide) {
      switch (std::min(wide, outputs / SIDE - tile)) {
        case 1: columns<4, 1>(in, count, tile, pixel, added, out, sums); break;
        case 2: columns<2, 2>(in, count, tile, pixel, added, out, sums); break;
        case 3: columns<1, 3>(in, count, tile, pixel, added, out, sums); break;
        case 4: columns<1, 4>(in, count, tile, pixel, added, out, sums); break;
      }
    }
  }

  // O tiles of outputs, from `tile` on, of P times 16 places at a time.
  template <int P, int O, typename Pixel>
  void columns(const Bf16* in, int64_t count, int64_t tile, const Pixel& pixel, const Bf16* added,
               Bf16* out, float* sums) const {
    for (int64_t p = 0; p < count; p += P * SIDE) {
      const int64_t some = std::min<int64_t>(P * SIDE, count - p);
      each<P>([&]<int n>() {
        if ((some + SIDE - 1) / SIDE == n + 1)
          add_up<n + 1, O>(in + p * inputs, &weights[tile * depth], sums);
      });
      put<O>(sums, some, [=](int64_t i) { return pixel(p + i); }, tile * SIDE, added, out);
    }
  }

  // Sums [P][O][16 places][16 outputs].
  template <int P, int O> void add_up(const Bf16* in, const Line* with, float* sums) const {
    constexpr int64_t line = sizeof(Line);
    const int64_t pixel = sizeof(Bf16) * inputs, next = SIDE * inputs, other = depth;
    const auto add = [&]<int left, int right>(const Bf16* from) {
      each<O>([&]<int o>() {
        load<right>(with + o * other, line);
        each<P>([&]<int n>() {
          constexpr int p = o % 2 ? P - 1 - n : n;  // back again, since the last one is there
          if constexpr (o == 0 || n > 0) load<left>(from + p * next, pixel);
          add_product<p * O + o, left, right>();
        });
      });
    };
    each<P * O>([&]<int n>() { clear<n>(); });
    for (int64_t row = 0; row < kernel; ++row, in += pitch * inputs) {
      const Bf16* from = in;
      for (int64_t k = 0; k < tiles; ++k, from += 2 * DEEP, with += DEEP)
        add.template operator()<4, 6>(from);
      if (halves) add.template operator()<5, 7>(from), with += DEEP / 2;
    }
    each<P * O>([&]<int n>() { store<n>(sums + n * TILE, line); });
  }

  // Sums of so many places → the channels of their pixels, in bf16. What is added is added to what has
  // been rounded, and rounded again, as two operators would.
  template <int O, typename Pixel>
  void put(const float* sums, int64_t count, const Pixel& pixel, int64_t channel,
           const Bf16* added, Bf16* out) const {
    const int64_t all = outputs;  // a local copy: what is written could be the member, for all g++ knows
    for (int64_t p = 0; p < count; ++p) {
      const int64_t number = pixel(p);
      if (number < 0) continue;
      const float* sum = sums + (p / SIDE * O * SIDE + p % SIDE) * SIDE;
      const int64_t at = number * all + channel;
      each<O>([&]<int o>() {
        Vec<float> value = get(sum + o * TILE);
        if (added) value = from_halves(to_halves(value)) + get(added + at + o * SIDE);
        resvar::put<Bf16>(out + at + o * SIDE, value);
      });
    }
  }
};

// One thread's room for a signal of which only a block lies in memory at a time (see `Whole` in bn.h for
// the others), and for the product that makes it or takes it.
struct BlockWorker {
  Product::Worker product;
  std::vector<Line> room;

  template <typename Signal>
  BlockWorker(const Signal& signal, const Rows& r)
      : product(signal.product, r.rows_per_block),
        room(r.rows_per_block * r.channels * sizeof(Bf16) / sizeof(Line) + 1) {}

  Bf16* numbers() { return reinterpret_cast<Bf16*>(room.data()); }
};

// dy, as it comes back through the convolution from the gradient of what that puts out.
struct Returning {
  const Product& product;  // backward
  const Bf16* gradient;
  Bf16* kept;  // where it shall lie as a whole, or nullptr
  using Worker = BlockWorker;

  int64_t together() const { return product.whole_images; }

  const Bf16* begin(const Rows& r, int64_t block, Worker& worker) const {
    const int64_t first = r.first(block) * r.channels;
    Bf16* to = kept ? kept + first : worker.numbers();
    product.multiply(gradient + r.first(block) * product.inputs, r.count(block), nullptr, to,
                     worker.product);
    return to - first;
  }
};

// y, which goes into the convolution, and what that makes of it into memory.
struct Entering {
  const Product& product;
  const Bf16* added;
  Bf16* out;
  using Worker = BlockWorker;

  int64_t together() const { return product.whole_images; }

  Bf16* begin(const Rows& r, int64_t block, Worker& worker) const {
    return worker.numbers() - r.first(block) * r.channels;
  }
  void end(const Rows& r, int64_t block, Worker& worker) const {
    multiply(worker.numbers(), r, block, worker.product);
  }
  void multiply(const Bf16* in, const Rows& r, int64_t block, Product::Worker& worker) const {
    const int64_t first = r.first(block) * product.outputs;
    product.multiply(in, r.count(block), added ? added + first : nullptr, out + first, worker);
  }
};

// A tensor like x in all but its channels.
inline Tensor with_channels(const Tensor& x, int64_t channels) {
  return at::empty({x.size(0), channels, x.size(2), x.size(3)}, x.options(),
                   at::MemoryFormat::ChannelsLast);
}

// The product of x as it is.
inline Tensor multiplied(const Product& product, const Tensor& x, const Bf16* added = nullptr) {
  Tensor out = with_channels(x, product.outputs);
  const Entering sink = {product, added, out.data_ptr<Bf16>()};
  const Rows r(x, sink.together());
  const Bf16* in = x.const_data_ptr<Bf16>();
  at::parallel_for(0, r.blocks, 1, [&](int64_t begin, int64_t end) {
    Product::Worker worker(product, r.rows_per_block);
    for (int64_t i = begin; i < end; ++i) sink.multiply(in + r.first(i) * r.channels, r, i, worker);
  });
  return out;
}

}  // namespace resvar

#endif

// BN, the ReLU after it and the shortcut's gradient, forward and backward.
//
// What moves memory costs the time here, so each tensor is passed over as seldom as can be:
//
//   forward    1. read x: the sums for mean and variance     2. read x, write y = relu(a x + b)
//   backward   1. read x, dy: the sums for the gradients     2. read x, dy, write dx (+ the shortcut's)
//
// For backward only x and the statistics are needed: where ReLU clipped is seen from x again.
//
// A tensor [N, C, H, W] in channels_last is a matrix of R = N H W rows and C columns. The rows are
// cut into blocks of a size that depends on C alone; each block is added up by itself, and the
// blocks in their order, in double. So the result does not depend on how many threads there are or
// which is first.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace resvar {

// --- rows in blocks -------------------------------------------------------------------------------

constexpr int64_t BLOCK = 16384;  // numbers in a block of rows

struct Rows {
  int64_t rows, channels, rows_per_block, blocks;

  // A block is a multiple of so many rows that have to come together.
  explicit Rows(const Tensor& x, int64_t together = 1)
      : rows(x.numel() / x.size(1)), channels(x.size(1)) {
    rows_per_block = std::max<int64_t>(1, BLOCK / channels / together) * together;
    blocks = (rows + rows_per_block - 1) / rows_per_block;
  }

  int64_t first(int64_t block) const { return block * rows_per_block; }
  int64_t count(int64_t block) const { return std::min(rows - first(block), rows_per_block); }

  // Blocks, shared out over torch's own threads, with what `other` needs for one thread. Backwards,
  // each thread meets first what it read last, while that is still in its cache.
  template <typename Other, typename F>
  void each_block(bool backwards, const Other& other, const F& work) const {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      typename Other::Worker worker(other, *this);
      for (int64_t i = begin; i < end; ++i) work(backwards ? begin + end - 1 - i : i, worker);
    });
  }

  // `work(c, lanes, first, last)` for each 16 channels from c on; fewer lanes at the end. `first`
  // and `last` are offsets of the block's rows at channel c.
  template <typename F> void each_group(int64_t block, const F& work) const {
    const int64_t from = first(block) * channels, to = from + count(block) * channels;
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES)
      work(c, std::integral_constant<int64_t, LANES>(), from + c, to + c);
    if (c < channels) work(c, channels - c, from + c, to + c);
  }
};

// The other signal that a pass reads or writes beside x: here one that lies in memory as a whole. For
// each block `begin` gives where its numbers are, counted from the first number of the tensor, and
// `end` is told when they have been written. (product.h has those that never lie there.)
template <typename T> struct Whole {
  T* numbers;

  struct Worker {
    Worker(const Whole&, const Rows&) {}
  };
  int64_t together() const { return 1; }  // rows that it wants in one block
  T* begin(const Rows&, int64_t, Worker&) const { return numbers; }
  void end(const Rows&, int64_t, Worker&) const {}
};

// Two sums per channel over all rows, in double: `terms(c, lanes, dy)` gives a function from a row's
// offset to the two terms of 16 channels.
template <typename T, typename Other, typename F>
std::vector<double> sums(const Rows& r, const Other& other, const F& terms) {
  constexpr int64_t U = 4;  // rows at once, whose additions need not wait for each other
  const int64_t C = r.channels;
  std::vector<Acc<T>> parts(r.blocks * 2 * C);
  r.each_block(false, other, [&](int64_t block, auto& worker) {
    Acc<T>* part = parts.data() + block * 2 * C;
    const T* dy = other.begin(r, block, worker);
    r.each_group(block, [&](int64_t c, auto lanes, int64_t first, int64_t last) {
      const auto term = terms(c, lanes, dy);
      Vec<T> p[U] = {}, q[U] = {};
      int64_t at = first;
      for (; at + (U - 1) * C < last; at += U * C)
        for (int64_t u = 0; u < U; ++u) term(at + u * C, p[u], q[u]);
      for (; at < last; at += C) term(at, p[0], q[0]);
      put(part + c, (p[0] + p[1]) + (p[2] + p[3]), lanes);
      put(part + C + c, (q[0] + q[1]) + (q[2] + q[3]), lanes);
    });
  });
  std::vector<double> whole(2 * C);
  for (int64_t block = 0; block < r.blocks; ++block)
    for (int64_t i = 0; i < 2 * C; ++i) whole[i] += parts[block * 2 * C + i];
  return whole;
}

// --- BN and ReLU ----------------------------------------------------------------------------------

// Per channel, in the type computed in: y = scale x + shift.
template <typename A> struct Affine {
  std::vector<A> scale, shift;

  Affine(const Tensor& mean, const Tensor& invstd, const Tensor& weight, const Tensor& bias)
      : scale(mean.numel()), shift(mean.numel()) {
    const A *m = mean.const_data_ptr<A>(), *s = invstd.const_data_ptr<A>();
    const A *w = weight.const_data_ptr<A>(), *b = bias.const_data_ptr<A>();
    for (size_t c = 0; c < scale.size(); ++c) {
      scale[c] = s[c] * w[c];
      shift[c] = b[c] - m[c] * scale[c];
    }
  }
};

// What BN, and ReLU where it follows, make of LANES channels from c on: to the bit what `normalise`
// writes.
template <typename T>
Vec<T> normalised(const T* x, const Affine<Acc<T>>& affine, int64_t c, bool relu) {
  const Vec<T> y = get(x) * get(affine.scale.data() + c) + get(affine.shift.data() + c);
  return relu ? clip(y) : y;
}

// Mean and 1 / standard deviation per channel. Running statistics move as torch's do.
template <typename T>
std::tuple<Tensor, Tensor> statistics(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var, double momentum, double eps) {
  using A = Acc<T>;
  const Rows r(input);
  const int64_t C = r.channels;
  const T* x = input.const_data_ptr<T>();
  // Differences from the first row, since a mean far from zero would drown the variance.
  const std::vector<double> sum =
      sums<T>(r, Whole<const T>{x}, [&](int64_t c, auto lanes, const T* from) {
        const Vec<T> origin = get(x + c, lanes);
        return [=](int64_t at, Vec<T>& p, Vec<T>& q) {
          const Vec<T> d = get(from + at, lanes) - origin;
          p += d;
          q += d * d;
        };
      });
  Tensor mean = at::empty_like(weight), invstd = at::empty_like(weight);
  A *m = mean.data_ptr<A>(), *s = invstd.data_ptr<A>();
  A* rm = running_mean ? running_mean->data_ptr<A>() : nullptr;
  A* rv = running_var ? running_var->data_ptr<A>() : nullptr;
  const double n = r.rows;
  for (int64_t c = 0; c < C; ++c) {
    const double d = sum[c] / n, variance = std::max(0.0, sum[C + c] / n - d * d);
    const double average = static_cast<double>(x[c]) + d;
    m[c] = average;
    s[c] = 1 / std::sqrt(variance + eps);
    if (rm) rm[c] = momentum * average + (1 - momentum) * rm[c];
    if (rv) rv[c] = momentum * variance * n / (n - 1) + (1 - momentum) * rv[c];
  }
  return {mean, invstd};
}

// Writes y = relu(a x + b), or without the ReLU, to `output`.
template <typename T, typename Output>
void normalise(const Tensor& input, const Affine<Acc<T>>& affine, bool relu, const Output& output) {
  const Rows r(input, output.together());
  const T* x = input.const_data_ptr<T>();
  r.each_block(true, output, [&](int64_t block, auto& worker) {
    T* y = output.begin(r, block, worker);
    r.each_group(block, [&](int64_t c, auto lanes, int64_t first, int64_t last) {
      const Vec<T> a = get(affine.scale.data() + c, lanes), b = get(affine.shift.data() + c, lanes);
      const T* from = x;
      T* to = y;  // local copies: what is written could be the captured ones, for all g++ knows
      const int64_t step = r.channels;
      if (relu)
        for (int64_t at = first; at < last; at += step)
          put(to + at, clip(get(from + at, lanes) * a + b), lanes);
      else
        for (int64_t at = first; at < last; at += step)
          put(to + at, get(from + at, lanes) * a + b, lanes);
    });
    output.end(r, block, worker);
  });
}

// Gradients of input, weight and bias, from that of the output, which the second pass may find elsewhere
// than the first; `more` is added to that of the input.
template <typename T, typename First, typename Second>
std::tuple<Tensor, Tensor, Tensor> normalise_backward(
    const First& gradient, const Second& again, const Tensor& input, const Tensor& mean, const Tensor& invstd,
    const Tensor& weight, const Tensor& bias, bool relu, const std::optional<Tensor>& more) {
  using A = Acc<T>;
  const Rows r(input, gradient.together());
  const int64_t C = r.channels;
  const T* x = input.const_data_ptr<T>();
  const A *m = mean.const_data_ptr<A>(), *s = invstd.const_data_ptr<A>();
  const Affine<A> affine(mean, invstd, weight, bias);
  const A *scale = affine.scale.data(), *shift = affine.shift.data();

  const auto reduce = [&](auto clipped) {
    return sums<T>(r, gradient, [&](int64_t c, auto lanes, const T* dy) {
      const Vec<T> average = get(m + c, lanes), a = get(scale + c, lanes), b = get(shift + c, lanes);
      return [=](int64_t at, Vec<T>& p, Vec<T>& q) {
        const Vec<T> v = get(x + at, lanes);
        Vec<T> g = get(dy + at, lanes);
        if constexpr (clipped) g = where_passed(v * a + b, g);
        p += g;
        q += g * (v - average);
      };
    });
  };
  const std::vector<double> sum = relu ? reduce(std::true_type()) : reduce(std::false_type());

  Tensor dweight = at::empty_like(weight), dbias = at::empty_like(bias);
  A *dw = dweight.data_ptr<A>(), *db = dbias.data_ptr<A>();
  std::vector<A> slope(C), constant(C);  // dx = scale g + slope (x - mean) + constant
  for (int64_t c = 0; c < C; ++c) {
    db[c] = sum[c];
    dw[c] = sum[C + c] * s[c];
    constant[c] = -scale[c] * sum[c] / r.rows;
    slope[c] = -scale[c] * sum[C + c] * s[c] * s[c] / r.rows;
  }
  Tensor dinput = at::empty_like(input);
  T* dx = dinput.data_ptr<T>();
  const T* also = more ? more->const_data_ptr<T>() : nullptr;
  const auto write = [&](auto clipped, auto added) {
    r.each_block(true, again, [&](int64_t block, auto& worker) {
      const T* dy = again.begin(r, block, worker);
      r.each_group(block, [&](int64_t c, auto lanes, int64_t first, int64_t last) {
        const Vec<T> a = get(scale + c, lanes), b = get(shift + c, lanes);
        const Vec<T> k = get(slope.data() + c, lanes), average = get(m + c, lanes);
        const Vec<T> o = get(constant.data() + c, lanes);
        const T *in = x, *out = dy, *other = also;
        T* to = dx;
        const int64_t step = C;
        for (int64_t at = first; at < last; at += step) {
          const Vec<T> v = get(in + at, lanes);
          Vec<T> g = get(out + at, lanes);
          if constexpr (clipped) g = where_passed(v * a + b, g);
          Vec<T> d = a * g + (k * (v - average) + o);
          if constexpr (added) d += get(other + at, lanes);
          put(to + at, d, lanes);
        }
      });
    });
  };
  const std::true_type yes;
  const std::false_type no;
  relu ? (also ? write(yes, yes) : write(yes, no)) : (also ? write(no, yes) : write(no, no));
  return {dinput, dweight, dbias};
}

}  // namespace resvar

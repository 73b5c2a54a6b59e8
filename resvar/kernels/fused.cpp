// The operators that torch is given, with what autograd has to know: BN and ReLU (bn.h), and the
// convolution after them, which is torch's own but for the gradient of its weights.

#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "product.h"
#include "weight_gradient.h"

namespace resvar {

// Calls `work` with a number of the tensor's type.
template <typename F> auto typed(const Tensor& x, const F& work) {
  switch (x.scalar_type()) {
    case at::kBFloat16: return work(at::BFloat16());
    case at::kFloat: return work(float());
    case at::kDouble: return work(double());
    default: TORCH_CHECK(false, "resvar: no fused operator for ", x.scalar_type());
  }
}

Tensor in_rows(const Tensor& x) { return x.contiguous(at::MemoryFormat::ChannelsLast); }

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A convolution that keeps the resolution: stride 1, and padding of half its kernel.
std::vector<int64_t> padding(const Tensor& filters) {
  return {filters.size(2) / 2, filters.size(3) / 2};
}

// BN where it has a weight, ReLU where it says so, and a convolution where it has filters. Only x and
// BN's statistics are kept for backward, never what BN and ReLU make of it.
struct Layer : torch::autograd::Function<Layer> {
  static variable_list forward(
      AutogradContext* context, const Tensor& x, const std::optional<Tensor>& weight,
      const std::optional<Tensor>& bias, const std::optional<Tensor>& running_mean,
      const std::optional<Tensor>& running_var, double momentum, double eps, bool relu, bool fork,
      const std::optional<Tensor>& filters, const std::optional<Tensor>& added) {
    TORCH_CHECK(
        x.is_contiguous(at::MemoryFormat::ChannelsLast) && x.numel() > x.size(1),
        "resvar::bn takes a tensor [N, C, H, W] in channels_last with two values per channel");
    TORCH_CHECK(
        !filters || (takes_convolutions(x.scalar_type()) &&
                     (x.scalar_type() == at::kFloat || x.size(3) % 2 == 0) &&
                     x.size(1) % SIDE == 0 && filters->size(0) % SIDE == 0 &&
                     (filters->size(2) == 1 || filters->size(2) == 3) &&
                     filters->size(2) == filters->size(3)),
        "resvar: a convolution here takes fp32, or bf16 of an even width, as far as the processor has "
        "the instructions, channels in sixteens, and a kernel of 1 or 3");
    TORCH_CHECK(
        !added || (filters && added->scalar_type() == x.scalar_type() &&
                   added->is_contiguous(at::MemoryFormat::ChannelsLast) &&
                   added->size(0) == x.size(0) && added->size(1) == filters->size(0) &&
                   added->size(2) == x.size(2) && added->size(3) == x.size(3)),
        "resvar: what is added lies in memory as the convolution's output does");
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor mean, invstd;
    if (weight)
      std::tie(mean, invstd) = typed(x, [&](auto number) {
        return statistics<decltype(number)>(x, *weight, running_mean, running_var, momentum, eps);
      });
    const Tensor y = forward(x, weight, bias, mean, invstd, relu, filters, added);
    context->save_for_backward(
        {x, weight.value_or(Tensor()), bias.value_or(Tensor()), mean, invstd,
         filters.value_or(Tensor())});
    context->saved_data["relu"] = relu;
    context->saved_data["added"] = added.has_value();
    context->set_materialize_grads(false);
    if (fork) return {y, x};
    return {y};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "resvar::bn has no second derivative");
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &filters = saved[5];
    const bool relu = context->saved_data["relu"].toBool();
    std::optional<Tensor> more;
    if (gradients.size() > 1 && gradients[1].defined()) more = in_rows(gradients[1]);
    Tensor dx, dweight, dbias, dfilters;
    if (gradients[0].defined()) {
      dx = in_rows(gradients[0]);
      std::tie(dx, dweight, dbias, dfilters) = backward(dx, saved, relu, more);
    } else if (more) {
      dx = *more;
    }
    const Tensor none, dadded = context->saved_data["added"].toBool() ? gradients[0] : none;
    return {dx, dweight, dbias, none, none, none, none, none, none, dfilters, dadded};
  }

 private:
  static Tensor forward(const Tensor& x, const std::optional<Tensor>& weight,
                        const std::optional<Tensor>& bias, const Tensor& mean,
                        const Tensor& invstd, bool relu, const std::optional<Tensor>& filters,
                        const std::optional<Tensor>& added) {
#ifdef RESVAR_TILES
    if (filters && is_product(x, *filters)) {
      RECORD_FUNCTION("resvar::product", {});
      const Product product(*filters, false, x.size(2), x.size(3));
      const Bf16* more = added ? added->const_data_ptr<Bf16>() : nullptr;
      if (!weight) return multiplied(product, x, more);
      Tensor out = with_channels(x, product.outputs);
      normalise<Bf16>(x, Affine<float>(mean, invstd, *weight, *bias), relu,
                      Entering{product, more, out.data_ptr<Bf16>()});
      return out;
    }
#endif
    Tensor y = x;
    if (weight)
      typed(x, [&](auto number) {
        using T = decltype(number);
        y = at::empty_like(x);
        normalise<T>(x, Affine<Acc<T>>(mean, invstd, *weight, *bias), relu,
                     Whole<T>{y.template data_ptr<T>()});
      });
    if (!filters) return y;
    y = at::conv2d(y, filters->to(x.scalar_type()), {}, at::IntArrayRef({1, 1}), padding(*filters));
    return added ? y.add_(*added) : y;
  }

  // Gradients of x, of BN's weight and bias, and of the filters.
  static std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
      Tensor gradient, const variable_list& saved, bool relu, const std::optional<Tensor>& more) {
    const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &filters = saved[5];
    std::optional<Affine<float>> affine;
    if (weight.defined() && filters.defined()) affine.emplace(saved[3], saved[4], weight, bias);
    const Affine<float>* normalised = affine ? &*affine : nullptr;
    Tensor dfilters;
    const auto through_bn = [&]<typename T>(T, const auto& dy, const auto& again) {
      RECORD_FUNCTION("resvar::bn_backward", {});
      const auto [dx, dweight, dbias] =
          normalise_backward<T>(dy, again, x, saved[3], saved[4], weight, bias, relu, more);
      return std::tuple(dx, dweight, dbias, dfilters);
    };
#ifdef RESVAR_TILES
    if (filters.defined() && is_product(x, filters)) {
      const Product product(filters, true, x.size(2), x.size(3));
      const bool from_narrower = product.outputs > product.inputs;
      if (weight.defined() && (from_narrower || product.kernel > 1)) {
        dfilters = gradient_of_filters(gradient, saved, normalised, relu);
        const Bf16* in = gradient.const_data_ptr<Bf16>();
        if (product.kernel == 1) {  // cheap enough to be computed twice
          const Returning returning = {product, in, nullptr};
          return through_bn(Bf16(), returning, returning);
        }
        const Tensor kept = at::empty_like(x);
        return through_bn(Bf16(), Returning{product, in, kept.data_ptr<Bf16>()},
                          Whole<const Bf16>{kept.const_data_ptr<Bf16>()});
      }
      RECORD_FUNCTION("resvar::convolution_backward", {});
      std::tie(dfilters, gradient) = both_gradients(x, gradient, filters, normalised, relu, product);
    } else
#endif
    if (filters.defined()) {
      dfilters = gradient_of_filters(gradient, saved, normalised, relu);
      gradient = in_rows(std::get<0>(at::convolution_backward(  // of x only the shape matters here
          gradient, x, filters.to(x.scalar_type()), std::nullopt, {1, 1}, padding(filters), {1, 1},
          false, {0, 0}, 1, {true, false, false})));
    }
    if (!weight.defined()) return {gradient, Tensor(), Tensor(), dfilters};
    return typed(x, [&](auto number) {
      using T = decltype(number);
      const Whole<const T> whole = {gradient.template const_data_ptr<T>()};
      return through_bn(number, whole, whole);
    });
  }

  static Tensor gradient_of_filters(const Tensor& gradient, const variable_list& saved,
                                    const Affine<float>* affine, bool relu) {
    RECORD_FUNCTION("resvar::weight_gradient", {});
    const Tensor& filters = saved[5];
    return weight_gradient(saved[0], gradient, filters, affine, relu).to(filters.scalar_type());
  }

  // Whether a convolution is a product of ours.
  static bool is_product(const Tensor& x, const Tensor& filters) {
#ifdef RESVAR_TILES
    return x.scalar_type() == at::kBFloat16 && filters.scalar_type() == at::kFloat &&
           tiles_granted();
#else
    return false;
#endif
  }
};

std::vector<Tensor> bn(
    const Tensor& x, const Tensor& weight, const Tensor& bias,
    const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
    double momentum, double eps, bool relu, bool fork, const std::optional<Tensor>& filters,
    const std::optional<Tensor>& added) {
  return Layer::apply(
      x, weight, bias, running_mean, running_var, momentum, eps, relu, fork, filters, added);
}

Tensor conv(const Tensor& x, const Tensor& filters, const std::optional<Tensor>& added) {
  const std::optional<Tensor> none;
  return Layer::apply(x, none, none, none, none, 0.0, 0.0, false, false, filters, added)[0];
}

}  // namespace resvar

TORCH_LIBRARY(resvar, library) {
  library.def(
      "bn(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "float momentum, float eps, bool relu, bool fork, Tensor? filters=None, "
      "Tensor? added=None) -> Tensor[]",
      &resvar::bn);
  library.def("conv(Tensor x, Tensor filters, Tensor? added=None) -> Tensor", &resvar::conv);
  library.def("takes_convolutions(ScalarType type) -> bool", &resvar::takes_convolutions);
}

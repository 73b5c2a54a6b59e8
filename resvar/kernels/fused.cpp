// The operators that torch is given, with what autograd has to know: BN and ReLU (bn.h), and the
// convolution after them, which is torch's own but for the gradient of its weights.

#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

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
      const std::optional<Tensor>& filters) {
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
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor y = x, mean, invstd;
    if (weight)
      std::tie(y, mean, invstd) = typed(x, [&](auto number) {
        return normalise<decltype(number)>(
            x, *weight, *bias, running_mean, running_var, momentum, eps, relu);
      });
    if (filters)
      y = at::conv2d(y, filters->to(x.scalar_type()), {}, at::IntArrayRef({1, 1}), padding(*filters));
    context->save_for_backward(
        {x, weight.value_or(Tensor()), bias.value_or(Tensor()), mean, invstd,
         filters.value_or(Tensor())});
    context->saved_data["relu"] = relu;
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
      if (filters.defined()) std::tie(dx, dfilters) = convolution_backward(dx, saved, relu);
      if (weight.defined())
        std::tie(dx, dweight, dbias) = typed(x, [&](auto number) {
          return normalise_backward<decltype(number)>(
              in_rows(dx), x, saved[3], saved[4], weight, bias, relu, more);
        });
    } else if (more) {
      dx = *more;
    }
    const Tensor none;
    return {dx, dweight, dbias, none, none, none, none, none, none, dfilters};
  }

 private:
  // Gradients of what went into the convolution, and of its filters in their own type.
  static std::tuple<Tensor, Tensor> convolution_backward(
      const Tensor& gradient, const variable_list& saved, bool relu) {
    const Tensor &x = saved[0], &filters = saved[5];
    Tensor dfilters;
    {
      RECORD_FUNCTION("resvar::weight_gradient", {});
      std::optional<Affine<float>> affine;
      if (saved[1].defined()) affine.emplace(saved[3], saved[4], saved[1], saved[2]);
      dfilters = weight_gradient(x, gradient, filters, affine ? &*affine : nullptr, relu);
    }
    // Of x only the shape matters for this one.
    const Tensor dy = std::get<0>(at::convolution_backward(
        gradient, x, filters.to(x.scalar_type()), std::nullopt, {1, 1}, padding(filters), {1, 1},
        false, {0, 0}, 1, {true, false, false}));
    return {dy, dfilters.to(filters.scalar_type())};
  }
};

std::vector<Tensor> bn(
    const Tensor& x, const Tensor& weight, const Tensor& bias,
    const std::optional<Tensor>& running_mean, const std::optional<Tensor>& running_var,
    double momentum, double eps, bool relu, bool fork, const std::optional<Tensor>& filters) {
  return Layer::apply(
      x, weight, bias, running_mean, running_var, momentum, eps, relu, fork, filters);
}

Tensor conv(const Tensor& x, const Tensor& filters) {
  const std::optional<Tensor> none;
  return Layer::apply(x, none, none, none, none, 0.0, 0.0, false, false, filters)[0];
}

}  // namespace resvar

TORCH_LIBRARY(resvar, library) {
  library.def(
      "bn(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "float momentum, float eps, bool relu, bool fork, Tensor? filters=None) -> Tensor[]",
      &resvar::bn);
  library.def("conv(Tensor x, Tensor filters) -> Tensor", &resvar::conv);
  library.def("takes_convolutions(ScalarType type) -> bool", &resvar::takes_convolutions);
}

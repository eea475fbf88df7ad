"""A linear layer with weights and input activations quantized as in a W4 plan with A4 or A8; computed in full precision."""

from torch import Tensor, nn

from bitplan.formats.table import FORMATS

GROUP_SIZE = 128


def quantize_weights(weight: Tensor, bits: int = 4, group_size: int = GROUP_SIZE) -> Tensor:
    """Return a weight (out, in) rounded to symmetric integers of `bits` bits with a scale per group along `in`; 16: unchanged."""
    return weight if bits == 16 else FORMATS[f"int{bits}"].roundtrip(weight, group_size).to(weight.dtype)


def quantize_activations(inputs: Tensor, bits: int, scope: str = "tensor") -> Tensor:
    """Return inputs (..., in) rounded to asymmetric integers of 4 or 8 bits, a scale per window or per "token"; 16: unchanged."""
    return inputs if bits == 16 else FORMATS[f"int{bits}_{scope}"].roundtrip(inputs).to(inputs.dtype)


class MixedPrecisionLinear(nn.Module):
    """A linear layer with weights of `w_bits` (4, 8, or 16: unchanged) and inputs of `a_bits` (4, 8, 16).

    Calling it with (..., in) returns (..., out) in the dtype of the weights.
    """

    def __init__(self, linear: nn.Linear, w_bits: int = 4, a_bits: int = 8, scope: str = "tensor") -> None:
        super().__init__()
        self.w_bits, self.a_bits, self.scope = w_bits, a_bits, scope
        self.weight = nn.Parameter(quantize_weights(linear.weight.detach(), w_bits), requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the layer's output for inputs rounded to `a_bits`."""
        return nn.functional.linear(quantize_activations(inputs, self.a_bits, self.scope), self.weight, self.bias)

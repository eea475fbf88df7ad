"""A model of a few layers, its sensitivity table, and a genetic search over it."""

import math
from dataclasses import replace

import numpy as np

from bitplan.models.layers import Layer, ModelInfo
from bitplan.plans.plan import LayerPlan, Plan, average_bits
from bitplan.search.genetic.algorithm import GeneticSettings
from bitplan.search.genetic.rows import sensitivity_of
from bitplan.search.genetic.run import (
    Target,
    genetic_plan,
)

PALETTE = ("q2_k", "q4_k", "q6_k", "q8_0")
SETTINGS = GeneticSettings(seed=5)


def info(blocks: int = 5) -> ModelInfo:
    """A model of four layers a block and a protected output; the embedding has as many parameters as the output."""
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    shapes = ((256, 256), (256, 256), (512, 256), (256, 512))
    layers = tuple(
        Layer(f"model.layers.{b}.{name}", name.split(".")[1], shape, b, "", False)
        for b in range(blocks)
        for name, shape in zip(names, shapes, strict=True)
    )
    output = Layer("lm_head", "lm_head", (1000, 256), -1, "", True)
    parameters = sum(layer.params for layer in layers) + 2 * 256_000
    return ModelInfo("here", "f" * 64, "A", "llama", parameters, (*layers, output))


def table_rows(model: ModelInfo, seed: int = 0, scope: str = "tensor", palette=PALETTE) -> list[dict]:
    rng, rows = np.random.default_rng(seed), []
    for layer in model.quantizable:
        size, ratio = rng.lognormal(), 1 + 4 * rng.random()
        candidates = [("int4", f"int8_{scope}", size), ("int4", f"int4_{scope}", size * ratio)]
        candidates += [(form, "bf16", size / 4**k) for k, form in enumerate(palette)]
        for form, inputs, mse in candidates:
            plan = Plan({layer.name: LayerPlan(form)})
            stored = average_bits(plan, replace(model, parameters=layer.params, layers=(layer,))).avg_bits
            row = {"layer": layer.name, "category": layer.category, "params": layer.params, "format": form}
            figures = {"mse": mse, "relative_mse": mse / 3, "weighted_error": mse / 5, "kld": None}
            rows.append({**row, "inputs": inputs, "bytes": math.ceil(stored * layer.params / 8), **figures})
    return rows


def searched(target: Target, model: ModelInfo | None = None, settings=SETTINGS, smoothing=None, seed=0, **more):
    model = model or info()
    return genetic_plan(sensitivity_of(table_rows(model, seed)), smoothing, model, target, "tensor", settings, **more)


def activation_bits(plan: Plan, model: ModelInfo) -> list[int]:
    return [{"int4_tensor": 4, "int8_tensor": 8}[plan.of(layer.name).aq] for layer in model.quantizable]


def formats(plan: Plan, model: ModelInfo) -> list[tuple]:
    return [(plan.of(x.name).wq, plan.of(x.name).aq, plan.of(x.name).group_size) for x in model.layers]

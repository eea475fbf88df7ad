"""What the tests of packed checkpoints share: plans that deal formats to the groups of a model, and the models that they simulate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bitplan.evaluate.perplexity import score_plan
from bitplan.evaluate.scores import summarize
from bitplan.models.checkpoint import Checkpoint
from bitplan.models.layers import ModelInfo, describe
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.plan import LayerPlan, Plan, uniform_plan
from bitplan.reference.opening import open_reference, prepare_model
from bitplan.reference.reference import Reference
from bitplan.runtimes.runtime import ExportJob, Runtime
from bitplan.runtimes.transformers.checkpoint import write_checkpoint

TOKENS = torch.arange(3, 67).reshape(2, 32)


@dataclass(frozen=True)
class Described:
    """A checkpoint and its layers."""

    checkpoint: Checkpoint
    info: ModelInfo


def described(folder: Path) -> Described:
    """The checkpoint in a folder."""
    checkpoint = Checkpoint.open(folder)
    return Described(checkpoint, describe(checkpoint))


def dealt(info: ModelInfo, formats: Sequence[LayerPlan]) -> Plan:
    """A plan that gives the groups of layers that read one input a format each, in turn."""
    groups = list(dict.fromkeys(layer.fusion_group or layer.name for layer in info.quantizable))
    of_group = {group: formats[place % len(formats)] for place, group in enumerate(groups)}
    return Plan({layer.name: of_group[layer.fusion_group or layer.name] for layer in info.quantizable})


def exported(runtime: Runtime, made: Described, plan: Plan, folder: Path, fusion: str = "repair"):
    """The report of a plan written for a runtime."""
    return runtime.write(ExportJob(made.checkpoint, made.info, plan, folder, settings={"fusion": fusion}))


def simulated(made: Described, plan: Plan, folder: Path):
    """The model of the plan in transformers, float32: weights replaced by the values of their formats."""
    write_checkpoint(folder, made.checkpoint, made.info, plan, QuantizedWeights(limit=0))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(net) -> torch.Tensor:
    """The logits of some tokens, (2, 32, vocabulary)."""
    with torch.no_grad():
        return net(TOKENS % net.config.vocab_size).logits


def measured_plan(demo: Path, form: str) -> tuple[Described, Reference, dict]:
    """The bundled model, the reference on four windows, and the figures of its plan with every matrix in a format, groups of 32."""
    made = prepare_model(demo / "model", "fp32", "cpu", 1)
    reference = open_reference(demo / "evaluation.txt", made, 64, 4)
    plan = uniform_plan(made.info, form, group_size=32 if form.startswith("int") else None)
    scores = score_plan(made.model, made.info, plan, reference, QuantizedWeights(limit=0))
    return Described(made.checkpoint, made.info), reference, summarize(scores)

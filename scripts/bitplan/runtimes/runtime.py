"""What a runtime is to the workflow: a program that loads models in a file format of its own, and how a plan gets into that format.

A runtime's module is imported when the workflow is read, so it imports what computes inside its functions.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from bitplan.evaluate.scores import TokenScores
    from bitplan.evaluate.timing import Run, SpeedSettings
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.models.layers import Layer, ModelInfo
    from bitplan.plans.plan import LayerPlan, Plan
    from bitplan.reference.reference import Reference

Status = Literal["exact", "exact_in_more_bits", "approximate", "refused"]
# Which layers a runtime stores as one: none, the experts of a projection, or all that read one input.
Fuses = Literal["", "experts", "all"]
# Columns that every format's own block divides; name, category and block of the layers of a Llama that a format is judged in.
BLOCKS_FIT = 4096
ORDINARY = {
    "linear": ("model.layers.0.mlp.down_proj", "mlp_down", 0),
    "embedding": ("model.embed_tokens", "embedding", -1),
}


@dataclass(frozen=True)
class Verdict:
    """What a runtime makes of a layer's format: how well it holds the values, as which type, in how many bits per weight, and why.

    "exact_in_more_bits" keeps every value in a wider type. Of a "refused" layer nothing is stored, and no plan with one is written.
    `always`: the status holds for all weights and for whatever loads the file, in float16 and in bfloat16; else the reason says when.
    `shared_form` is the format that layers stored as one have in the place of this one, which they cannot share; "" where they can.
    """

    status: Status
    stored_type: str
    stored_bits: float
    reason: str = ""
    always: bool = True
    shared_form: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether every value is kept."""
        return self.status in ("exact", "exact_in_more_bits")


@dataclass(frozen=True)
class ExportJob:
    """A plan to write. `output` is the artifact; `importance` maps layers to mean x^2 per column (in,) float32.

    `settings` has the values of the runtime's `settings`. `base` is the file or folder that the runtime starts from, where it names
    one. `notes` may say `model_name`, `plan_name`, `scores` (a perplexity.json), `calibration` (a text) and `allow_base_kl`.
    """

    checkpoint: "Checkpoint"
    info: "ModelInfo"
    plan: "Plan"
    output: Path
    importance: Mapping[str, "Tensor"] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    base: Path | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    `artifact` is the name of what `write` writes in the runtime's folder of a plan's results: a file, or a folder (`is_folder`).
    `environment` names the file in envs/ in which `write` and `score` run; `settings` the keys of the section `export` that it reads; `base`
    the result of the model that it starts from; `beside` are more files that `write` leaves beside the artifact. `verdict(layer, its plan, model)` is cheap and reads no weights. `write` returns what
    report.json holds. `score(artifact, reference, threads)` runs the artifact in the runtime, `time(artifact, settings)` times it; a
    runtime that cannot has None. `bytes_besides(checkpoint, model, layers, base)` is what an artifact takes at most besides some layers, which
    a plan of a given size needs; None where that is not known. `why_unsupported(config.json)` says, before anything is measured, why a
    model cannot be written at all; "" where it can. `score_packages` are what `score` imports and the project does not require: where one is not installed,
    the files are written and not scored. `how_to_run(artifact, name)` is text for the user, in which the model is
    called `name`. Layers that a runtime `fuses` are stored as one, and must have one type. One with
    `whole_model` holds all weights in float32 while it scores. `code` names the modules whose code is behind "write",
    "score", "time", "size" and "verdict", so that a change of one does not repeat the others; by default it is the module in the table.
    """

    name: str
    artifact: str
    verdict: Callable[["Layer", "LayerPlan", "ModelInfo"], Verdict]
    write: Callable[[ExportJob], Mapping[str, Any]]
    how_to_run: Callable[[Path, str], str]
    score: Callable[[Path, "Reference", int], "TokenScores"] | None = None
    time: Callable[[Path, "SpeedSettings"], "Run"] | None = None
    bytes_besides: Callable[["Checkpoint", "ModelInfo", Collection[str], Path | None], int] | None = None
    why_unsupported: Callable[[Mapping[str, Any]], str] | None = None
    environment: str = "torch"
    settings: tuple[str, ...] = ()
    base: str = ""
    beside: tuple[str, ...] = ()
    is_folder: bool = False
    fuses: Fuses = ""
    whole_model: bool = False
    score_packages: tuple[str, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)

    def holds(self, candidate: str, embedding: bool = False, fits: bool = True) -> Verdict:
        """Return the verdict on a candidate of a palette, as int4_g32 or mxfp4/mxfp8, in a layer that its blocks fit, or in the token embedding;
        with `fits` false in one whose rows no blocks fit.

        It is `verdict`'s own, and needs no heavy package. Raises ValueError for what is no candidate.
        """
        from bitplan.formats.pairs import parse_pair
        from bitplan.models.layers import Layer, ModelInfo
        from bitplan.plans.layer_plan import LayerPlan

        pair = parse_pair(candidate)
        shape = (BLOCKS_FIT, BLOCKS_FIT * (pair.group_size or 1) + (not fits))
        name, category, block = ORDINARY["embedding" if embedding else "linear"]
        layer = Layer(name, category, shape, block, "", protected=embedding)
        info = ModelInfo("", "", "LlamaForCausalLM", "llama", layer.params, (layer,))
        return self.verdict(layer, LayerPlan(pair.wq, pair.aq, pair.group_size, embeddings=embedding), info)

    @property
    def absent_packages(self) -> tuple[str, ...]:
        """The packages that `score` needs and that are not installed. They are looked for without importing them."""
        return tuple(name for name in self.score_packages if find_spec(name) is None)

    @property
    def scored_here(self) -> bool:
        """Whether the runtime's files can be scored with what is installed."""
        return self.score is not None and not self.absent_packages

    @property
    def files(self) -> tuple[str, ...]:
        """The results of a plan in this runtime, in its folder."""
        scored, timed = self.scored_here, self.time is not None
        return (self.artifact, "report.json", *self.beside, *["perplexity.json"] * scored, *["speed.json"] * timed)

"""The settings of the workflow: every key of `config.yaml`, its type, range and meaning. They reach commands as flags only."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from bitplan.config.setting_errors import problem_of
from bitplan.config.studies import StudySettings
from bitplan.core.errors import UserError
from bitplan.core.section import Amount, Flag, Name, PathName, Section
from bitplan.formats.importance import needing_importance
from bitplan.runtimes.gguf.recipe_names import IMATRIX_SUFFIX as IMATRIX_SUFFIX
from bitplan.runtimes.gguf.recipe_names import Recipe
from bitplan.runtimes.registry import known_runtime
from bitplan.search.plan_settings import OF_RUNTIMES, CandidateName, FormatName, Rounding
from bitplan.search.registry import AnyPlan

# Tokens of a window, and windows of each text.
WINDOW_LENGTH = 512
CALIBRATION_WINDOWS = 16
VALIDATION_WINDOWS = 16
EVALUATION_WINDOWS = 32

Bos = Literal["auto", "always", "never"]
BOS_MEANING = "whether windows begin with BOS; auto: in families that need it (Gemma)"
# Of rounding: docs/rounding.md.
DAMPING, DESCENTS, REFERENCE_SHARE, TUNING_STEPS, TOKENS_PER_STEP = 0.01, 2, 0.5, 50, 2048


RuntimeName = Annotated[str, AfterValidator(known_runtime)]


class ModelSettings(Section):
    """A model and its texts."""

    path: PathName = Field(description="folder of the checkpoint, or an id on the model hub")
    revision: str | None = Field(None, description="revision on the model hub: branch, tag or commit")
    calibration: PathName = Field(description="text on which statistics are taken and searches run")
    evaluation: PathName = Field(description="held-out text on which plans are compared")
    runtimes: list[RuntimeName] = Field(
        ["gguf"], description="runtimes that plans are exported for; none: plans are compared by simulation"
    )
    base_type: Literal["f32", "f16", "bf16"] | None = Field(
        None, description="precision of the GGUF that plans are exported from; the checkpoint's own when absent"
    )
    allow_base_kl: float = Field(
        1e-3,
        ge=0,
        description="largest KL of that GGUF from the model, nats per token: above, llama.cpp computes another model",
    )


class ComputeSettings(Section):
    """Where and in what numbers a model is run."""

    device: str = Field(
        "cpu",
        pattern=r"^(cpu|mps|auto|cuda(:\d+)?)$",
        description="cpu, cuda, cuda:N, mps, or auto: the best that is there",
    )
    dtype: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="number type to compute in")
    threads: int = Field(
        1, ge=1, description="processor threads of each step that runs the model; another number changes last digits"
    )


class WindowSettings(Section):
    """How a text is cut into windows of tokens."""

    length: int = Field(WINDOW_LENGTH, ge=2, description="tokens per window")
    sequences: Annotated[int | None, Flag(null="all")] = Field(
        EVALUATION_WINDOWS, ge=1, description="windows to use; null: all of the text"
    )


class CalibrationWindows(WindowSettings):
    """How the calibration text is cut."""

    sequences: Annotated[int | None, Flag(null="all")] = Field(
        CALIBRATION_WINDOWS, ge=1, description="windows to use; null: all of the text"
    )


class ValidationWindows(WindowSettings):
    """How the text of validation is cut."""

    sequences: Annotated[int | None, Flag(null="all")] = Field(
        VALIDATION_WINDOWS, ge=1, description="windows to use; null: all of the text"
    )


class RoundingSettings(Section):
    """How the weights of plans are rounded, on the calibration text."""

    default: Annotated[Rounding, Flag(name="rounding")] = Field(
        "nearest", description="how, for plans that do not say it themselves"
    )
    damping: float = Field(
        DAMPING, ge=0, description="added to the diagonal of each layer's second moments, in shares of its mean"
    )
    descents: int = Field(
        DESCENTS, ge=0, description="sweeps of coordinate descent over the codes after the one with error feedback"
    )
    reference_share: float = Field(
        REFERENCE_SHARE,
        ge=0,
        le=1,
        description="how far a layer's rounding aims from the outputs for its own inputs to those for the reference model's inputs",
    )
    steps: Annotated[int, Flag(when=("default", "tuned"))] = Field(
        TUNING_STEPS, ge=1, description="steps that tuning takes on each block"
    )
    tokens_per_step: Annotated[int, Flag(when=("default", "tuned"))] = Field(
        TOKENS_PER_STEP, ge=1, description="calibration tokens that a step of tuning looks at"
    )


class ExportSettings(Section):
    """How plans become files of runtimes."""

    unquantized: Literal["f16", "bf16"] = Field("f16", description="type of layers that a plan leaves at 16 bits")
    match: Literal["exact", "bits", "distortion"] = Field(
        "exact",
        description="the type for a format that GGUF lacks: the one that holds its codes, even in more bits; the table's; or the one of nearest error",
    )
    max_error: float = Field(
        1e-3, gt=0, description="squared error, as a share, that a type may make on weights with a width per channel"
    )
    fusion: Literal["repair", "refuse", "keep"] = Field(
        "repair",
        description="packed checkpoints: what becomes of layers that a runtime stores as one (vLLM: q, k, v; gate, up; MLX: the experts of a projection) and whose formats differ: the widest for all, an error, or kept apart, which transformers alone loads and MLX refuses",
    )


class SpeedSettings(Section):
    """How GGUF files are timed."""

    max_tokens: int = Field(64, ge=2, description="tokens to generate after each prompt")
    repeats: int = Field(3, ge=1, description="counted rounds over all files")
    max_repeats: int = Field(15, ge=1, description="rounds at most, while speeds vary by more than max_spread")
    max_spread: float = Field(1.3, gt=1, description="fastest over slowest round up to which a speed is stable")
    max_seconds: float = Field(60, gt=0, description="seconds after which no round beyond repeats begins")
    warmup: int = Field(1, ge=0, description="rounds before, not counted")
    prompts: list[str] | None = Field(None, description="prompts; three story beginnings when absent")


class SensitivitySettings(Section):
    """How the sensitivity table is measured, from which genetic plans are searched."""

    group_size: int = Field(128, ge=1, description="weights per group of int4")
    activation_scope: Literal["tensor", "token"] = Field(
        "tensor", description="what a scale of A4 and A8 spans: a window, or each token"
    )
    smooth_alpha: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Flag(empty="no-smoothing")] = Field(
        [0.5], description="SmoothQuant's alpha; of several the best for each group; none: no smoothing"
    )
    palette: list[CandidateName] = Field(
        [],
        description="formats to measure, of weights (q4_k) or weights/inputs (mxfp4/mxfp8): those that plans may choose from are added",
    )
    tokens: int = Field(2048, ge=1, description="tokens looked at for each layer")
    random: Annotated[bool, Flag(switch=True)] = Field(
        False, description="Gaussian inputs in the place of the calibration text"
    )
    anchors: Literal[1, 2, "all"] | None = Field(
        None,
        description="measure KL of each layer alone in 1 or 2 formats of the palette, or in all; absent: not at all",
    )
    metric: Literal["auto", "measured", "gradient"] = Field(
        "auto",
        description="where KL of a layer in a format comes from: measured as anchors says, or, gradient, from a few backward passes for all that anchors do not measure; auto: gradient if an optimal plan or embeddings need KL and there are no anchors",
    )
    draws: Annotated[int, Flag(when=("metric", "gradient"))] = Field(
        16, ge=1, description="draws of labels for each window, with metric gradient"
    )
    rounding: Annotated[Literal["nearest", "feedback"], Flag(when=("metric", "gradient"))] = Field(
        "nearest", description="how candidates are rounded for prices, with metric gradient: docs/rounding.md"
    )
    embeddings: list[FormatName] | None = Field(
        None,
        description="formats in which KL of the token embedding and of the output matrix is found; null: q4_k to q8_0 where a plan is optimal and runtimes store them",
    )
    memory_limit: Annotated[Amount, Flag(by_rule=True)] = Field(
        "4GB", description="memory for the hidden states carried to measure KL, as 4GB or 512MB"
    )
    shards: Annotated[int, Flag(name="shard", by_rule=True)] = Field(
        1, ge=1, description="jobs that share the layers; the table is the same for any number"
    )
    fisher: Annotated[bool, Flag(switch=True)] = Field(
        False, description="also the Fisher score, from one backward pass: a cheaper estimate of KL"
    )

    @field_validator("anchors", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("is a number of formats, or all: give 1, 2, all or null")
        return int(value) if value in ("1", "2") else value

    @model_validator(mode="after")
    def _is_measured_on_text(self) -> "SensitivitySettings":
        on_text = self.anchors is not None or self.metric == "gradient" or self.embeddings
        if self.random and (on_text or self.fisher or self.shards > 1):
            what = "random goes without anchors, metric gradient, embeddings, fisher and shards"
            raise ValueError(f"{what}: these measure on the calibration text")
        if self.embeddings and self.anchors is None and self.metric == "measured":
            raise ValueError("embeddings goes with anchors or metric gradient: its formats have KL alone")
        if self.rounding != "nearest" and (self.metric == "measured" or self.anchors is not None):
            what = "rounding feedback goes with metric gradient and without anchors"
            raise ValueError(f"{what}: these measure weights rounded to nearest")
        if self.anchors in (1, 2) and not self.palette:
            raise ValueError("anchors 1 and 2 are formats of the palette: give it some, or anchors all")
        return self


class TaskSettings(Section):
    """Which lm-eval tasks are run on the model and on every plan."""

    names: Annotated[list[str], Flag(name="tasks")] = Field(
        [], description="tasks, e.g. demo_stories and demo_memory; none by default"
    )
    include_path: PathName | None = Field(None, description="folder with your own tasks (YAML files of lm-eval)")
    limit: int | None = Field(None, ge=1, description="documents of each task; all when absent")
    batch_size: int = Field(
        8, ge=1, description="requests in one batch; changes speed only; 1 for plans with a scale per window"
    )
    max_length: int = Field(512, ge=2, description="tokens that the model sees at once; changes the figures")


USUAL_BASELINES = ("f16", "q4_k_m")


class Settings(Section):
    """The whole configuration."""

    models: dict[Name, ModelSettings] = Field(min_length=1, description="models by name")
    plans: dict[Name, AnyPlan] = Field(min_length=1, description="plans by name; each is searched for every model")
    studies: dict[Name, StudySettings] = Field({}, description="studies by name: a plan with some settings varied")
    baselines: list[Recipe] = Field(
        None,
        min_length=1,
        validate_default=True,
        description="llama.cpp's recipes, *_imatrix: with the importance matrix; the first is the reference of speed; null: f16 and those whose size a plan has, or q4_k_m",
    )
    imatrix: bool = Field(
        True,
        description="importance matrix (mean x^2 of each input column on the calibration text) for GGUF types, in measuring, simulating and exporting",
    )
    compute: ComputeSettings = Field(ComputeSettings(), description="where models are run")
    bos: Bos = Field("auto", description=BOS_MEANING)
    calibration: CalibrationWindows = Field(CalibrationWindows(), description="windows of the calibration text")
    validation: ValidationWindows = Field(
        ValidationWindows(),
        description="windows of the calibration text after those of calibration: what optimal plans decide their steps on",
    )
    evaluation: WindowSettings = Field(
        WindowSettings(),
        description="windows of the evaluation text; of one that is the calibration text too, those behind the others",
    )
    sensitivity: SensitivitySettings = Field(SensitivitySettings(), description="sensitivity of layers to formats")
    rounding: RoundingSettings = Field(
        RoundingSettings(), description="choice of each weight's code under its format, after the search"
    )
    export: ExportSettings = Field(ExportSettings(), description="GGUF files")
    speed: SpeedSettings = Field(SpeedSettings(), description="speed comparison")
    tasks: TaskSettings = Field(TaskSettings(), description="optional lm-eval tasks")

    @field_validator("models", "plans", "studies", mode="before")
    @classmethod
    def _null_drops(cls, value: Any) -> Any:
        """An entry set to null is left out: so a default one is dropped in a file that is laid over config.yaml."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value

    @field_validator("baselines", mode="before")
    @classmethod
    def _usual_baselines(cls, value: Any) -> Any:
        return list(USUAL_BASELINES) if value is None else value

    @property
    def tokens_before_validation(self) -> int | None:
        """How many tokens of the calibration text are measured on; None: all."""
        used = self.calibration
        return None if used.sequences is None else used.sequences * used.length

    @property
    def tokens_before_evaluation(self) -> int | None:
        """How many tokens of the calibration text are measured on or decided on; None: all."""
        before, used = self.tokens_before_validation, self.validation
        return None if before is None or used.sequences is None else before + used.sequences * used.length

    @cached_property
    def cells(self) -> dict[str, AnyPlan]:
        """The plans of all studies, `study.cell`."""
        return {cell.name: cell.plan for name, study in self.studies.items() for cell in study.cells(name)}

    @cached_property
    def every_plan(self) -> dict[str, AnyPlan]:
        """The plans, and those of the studies."""
        return {**self.plans, **self.cells}

    @property
    def priced(self) -> bool:
        """Whether KL of what anchors do not measure comes from gradients: `sensitivity.metric`, and what `auto` means here."""
        table = self.sensitivity
        wanted = bool(table.embeddings) or any(plan.method == "optimal" for plan in self.every_plan.values())
        return table.metric == "gradient" or (table.metric == "auto" and wanted and table.anchors is None)

    @property
    def has_kld(self) -> bool:
        """Whether the sensitivity table has KL, measured or from gradients."""
        return self.priced or self.sensitivity.anchors is not None

    def rounding_of(self, plan: str) -> str:
        """Return how the weights of a plan are rounded; one with a width per channel has no codes left to choose."""
        return getattr(self.every_plan[plan], "rounding", "nearest") or self.rounding.default

    @model_validator(mode="after")
    def _palettes_are_measured(self) -> "Settings":
        """Plans share one table: what a plan may choose has to be in it, with inputs as the plan has them."""
        for name, plan in self.every_plan.items():
            inputs = [form for form in getattr(plan, "palette", []) if "/" in form]
            if inputs and self.sensitivity.smooth_alpha:
                what = f"plan {name} may choose {inputs[0]}, whose inputs are not smoothed"
                raise ValueError(f"{what}: set sensitivity.smooth_alpha to []")
            wanted = [form for form in getattr(plan, "palette", []) if form != OF_RUNTIMES]
            absent = [form for form in wanted if form not in self.sensitivity.palette]
            if absent:
                raise ValueError(f"plan {name} may choose {absent[0]}, which sensitivity.palette does not measure")
        return self

    @model_validator(mode="after")
    def _formats_have_their_importance(self) -> "Settings":
        """Some formats are quantized with the importance matrix only."""
        chosen = [
            *self.sensitivity.palette,
            *(form for plan in self.every_plan.values() for form in getattr(plan, "formats", [])),
        ]
        if (needing := needing_importance(chosen)) and not self.imatrix:
            what = f"{', '.join(needing)} need{'s' * (len(needing) == 1)} the importance matrix"
            raise ValueError(f"{what}: set imatrix to true, or choose other formats")
        return self

    @model_validator(mode="after")
    def _plans_have_what_they_need(self) -> "Settings":
        """Each method says what a plan of it needs of the other settings."""
        for name, plan in self.every_plan.items():
            for what in plan.lacks(self):
                raise ValueError(f"plan {name} {what}")
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Settings":
        """A plan, a baseline: each has a folder, a log and a row of its own."""
        twice = sorted(
            {name for name in self.baselines if self.baselines.count(name) > 1}
            | set(self.baselines) & set(self.every_plan)
            | set(self.cells) & set(self.plans)
        )
        if twice:
            raise ValueError(
                f"baselines, plans and cells of studies need names of their own: {', '.join(twice)} is used twice"
            )
        return self


def parse_settings(config: Mapping[str, Any]) -> Settings:
    """Return the settings in a configuration. Raises `UserError` with one line for every problem."""
    try:
        return TypeAdapter(Settings).validate_python(dict(config))
    except ValidationError as error:
        raise UserError(problem_of(each, Settings) for each in error.errors()) from None

"""The settings of the workflow: every key of `config.yaml`, its type, range and meaning. They reach commands as flags only."""

import difflib
import shlex
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from bitplan.config.defaults import (
    BOS_MEANING,
    CALIBRATION_WINDOWS,
    EVALUATION_WINDOWS,
    VALIDATION_WINDOWS,
    WINDOW_LENGTH,
    Bos,
)
from bitplan.config.plan_settings import (
    METHODS,
    AnyPlan,
    CandidateName,
    CheckSettings,
    FormatName,
    Name,
    PathName,
    Section,
)
from bitplan.config.studies import StudySettings
from bitplan.core.errors import Problem, UserError
from bitplan.core.sizes import parse_size

# Ends the name of a baseline whose recipe is given the importance matrix.
IMATRIX_SUFFIX = "_imatrix"


def _amount(text: str) -> str:
    """Return an amount of memory as it is written. Raises ValueError for what is none."""
    parse_size(text)
    return text


Amount = Annotated[str, AfterValidator(_amount)]


class ModelSettings(Section):
    """A model and its texts."""

    path: PathName = Field(description="folder of the checkpoint, or an id on the model hub")
    revision: str | None = Field(None, description="revision on the model hub: branch, tag or commit")
    calibration: PathName = Field(description="text on which statistics are taken and searches run")
    evaluation: PathName = Field(description="held-out text on which plans are compared")
    gguf: bool = Field(
        True, description="whether llama.cpp knows the family; without, plans are compared by simulation"
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


class WindowSettings(Section):
    """How a text is cut into windows of tokens."""

    length: int = Field(WINDOW_LENGTH, ge=2, description="tokens per window")
    sequences: int | None = Field(EVALUATION_WINDOWS, ge=1, description="windows to use; null: all of the text")


class CalibrationWindows(WindowSettings):
    """How the calibration text is cut."""

    sequences: int | None = Field(CALIBRATION_WINDOWS, ge=1, description="windows to use; null: all of the text")


class ValidationWindows(WindowSettings):
    """How the text of validation is cut."""

    sequences: int | None = Field(VALIDATION_WINDOWS, ge=1, description="windows to use; null: all of the text")


class ExportSettings(Section):
    """How plans become GGUF files."""

    unquantized: Literal["f16", "bf16"] = Field("f16", description="type of layers that a plan leaves at 16 bits")
    match: Literal["bits", "distortion"] = Field(
        "bits", description="how the type for a format that GGUF lacks is chosen"
    )
    max_error: float = Field(
        1e-3, gt=0, description="squared error, as a share, that a type may make on weights with a width per channel"
    )


class SpeedSettings(Section):
    """How GGUF files are timed."""

    max_tokens: int = Field(200, ge=2, description="tokens to generate after each prompt")
    repeats: int = Field(5, ge=1, description="counted rounds over all files")
    max_repeats: int = Field(15, ge=1, description="rounds at most, while speeds vary by more than max_spread")
    max_spread: float = Field(1.3, gt=1, description="fastest over slowest round up to which a speed is stable")
    warmup: int = Field(1, ge=0, description="rounds before, not counted")
    prompts: list[str] | None = Field(None, description="prompts; three story beginnings when absent")


class SensitivitySettings(Section):
    """How the sensitivity table is measured, from which genetic plans are searched."""

    group_size: int = Field(128, ge=1, description="weights per group of int4")
    activation_scope: Literal["tensor", "token"] = Field(
        "tensor", description="what a scale of A4 and A8 spans: a window, or each token"
    )
    smooth_alpha: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        [0.5], description="SmoothQuant's alpha; of several the best for each group; none: no smoothing"
    )
    palette: list[CandidateName] = Field(
        [],
        description="formats to measure, of weights (q4_k) or weights/inputs (mxfp4/mxfp8): those that genetic plans with average bits and optimal plans may choose from",
    )
    tokens: int = Field(2048, ge=1, description="tokens looked at for each layer")
    random: bool = Field(False, description="Gaussian inputs in the place of the calibration text")
    anchors: Literal[1, 2, "all"] | None = Field(
        None,
        description="measure KL of each layer alone in 1 or 2 formats of the palette, or in all; absent: not at all",
    )
    metric: Literal["measured", "gradient"] = Field(
        "measured",
        description="where KL of a layer in a format comes from: measured as anchors says, or, gradient, from a few backward passes for all that anchors do not measure",
    )
    draws: int = Field(16, ge=1, description="draws of labels for each window, with metric gradient")
    embeddings: list[FormatName] = Field(
        [],
        description="formats in which KL of the token embedding and of the output matrix is found, with anchors or metric gradient",
    )
    memory_limit: Amount = Field(
        "4GB", description="memory for the hidden states carried to measure KL, as 4GB or 512MB"
    )
    shards: int = Field(1, ge=1, description="jobs that share the layers; the table is the same for any number")
    fisher: bool = Field(False, description="also the Fisher score, from one backward pass: a cheaper estimate of KL")

    @property
    def has_kld(self) -> bool:
        """Whether the table has KL, measured or from gradients."""
        return self.anchors is not None or self.metric == "gradient"

    @field_validator("anchors", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("is a number of formats, or all: give 1, 2, all or null")
        return int(value) if value in ("1", "2") else value

    @model_validator(mode="after")
    def _is_measured_on_text(self) -> "SensitivitySettings":
        if self.random and (self.has_kld or self.fisher or self.shards > 1):
            what = "random goes without anchors, metric gradient, fisher and shards"
            raise ValueError(f"{what}: these measure on the calibration text")
        if self.embeddings and not self.has_kld:
            raise ValueError("embeddings goes with anchors or metric gradient: its formats have KL alone")
        if self.anchors in (1, 2) and not self.palette:
            raise ValueError("anchors 1 and 2 are formats of the palette: give it some, or anchors all")
        return self


class TaskSettings(Section):
    """Which lm-eval tasks are run on the model and on every plan."""

    names: list[str] = Field([], description="tasks, e.g. demo_stories and demo_memory; none by default")
    include_path: PathName | None = Field(None, description="folder with your own tasks (YAML files of lm-eval)")
    limit: int | None = Field(None, ge=1, description="documents of each task; all when absent")
    batch_size: int = Field(
        8, ge=1, description="requests in one batch; changes speed only; 1 for plans with a scale per window"
    )
    max_length: int = Field(512, ge=2, description="tokens that the model sees at once; changes the figures")


# llama.cpp's recipes by name; a test holds them known to the runtime.
QUANTIZED_RECIPES = (
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
    "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
WITH_IMPORTANCE = tuple(f"{recipe}{IMATRIX_SUFFIX}" for recipe in QUANTIZED_RECIPES)
Recipe = Literal[("f16", "bf16", *QUANTIZED_RECIPES, *WITH_IMPORTANCE)]


class Settings(Section):
    """The whole configuration."""

    models: dict[Name, ModelSettings] = Field(min_length=1, description="models by name")
    plans: dict[Name, AnyPlan] = Field(min_length=1, description="plans by name; each is searched for every model")
    studies: dict[Name, StudySettings] = Field({}, description="studies by name: a plan with some settings varied")
    baselines: list[Recipe] = Field(
        ["f16", "q4_k_m"],
        min_length=1,
        description="llama.cpp's recipes, *_imatrix: with the importance matrix; the first is the reference of speed",
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
    export: ExportSettings = Field(ExportSettings(), description="GGUF files")
    speed: SpeedSettings = Field(SpeedSettings(), description="speed comparison")
    tasks: TaskSettings = Field(TaskSettings(), description="optional lm-eval tasks")

    @field_validator("models", "plans", "studies", mode="before")
    @classmethod
    def _null_drops(cls, value: Any) -> Any:
        """An entry set to null is left out: so a default one is dropped in a file that is laid over config.yaml."""
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value

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

    @model_validator(mode="after")
    def _palettes_are_measured(self) -> "Settings":
        """Plans share one table: what a plan may choose has to be in it, with inputs as the plan has them."""
        for name, plan in self.every_plan.items():
            inputs = [form for form in getattr(plan, "palette", []) if "/" in form]
            if inputs and self.sensitivity.smooth_alpha:
                what = f"plan {name} may choose {inputs[0]}, whose inputs are not smoothed"
                raise ValueError(f"{what}: set sensitivity.smooth_alpha to []")
            absent = [form for form in getattr(plan, "palette", []) if form not in self.sensitivity.palette]
            if absent:
                raise ValueError(f"plan {name} may choose {absent[0]}, which sensitivity.palette does not measure")
        return self

    @model_validator(mode="after")
    def _optimal_plans_have_what_they_need(self) -> "Settings":
        """Measured KL, and the baseline whose size is theirs."""
        for name, plan in self.every_plan.items():
            if plan.method == "optimal" and not self.sensitivity.has_kld:
                hint = "set sensitivity.metric to gradient, or sensitivity.anchors to 1, 2 or all"
                raise ValueError(f"plan {name} is optimal by KL: {hint}")
            if plan.method == "optimal" and (plan.correct or plan.refine) and self.calibration.sequences is None:
                what = "decides its steps on calibration text that was not measured on"
                raise ValueError(f"plan {name} {what}: set calibration.sequences, or correct and refine to false")
            if getattr(plan, "same_size_as", None) not in (None, *self.baselines):
                raise ValueError(f"plan {name} is to have the size of {plan.same_size_as}, which is no baseline")
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


def _keys_at(location: tuple) -> list[str]:
    """Return the keys that are valid where an unknown key was found."""
    sections: dict[str, type[Section]] = {
        "compute": ComputeSettings,
        "calibration": WindowSettings,
        "evaluation": WindowSettings,
    }
    sections["validation"] = WindowSettings
    sections |= {
        "export": ExportSettings,
        "speed": SpeedSettings,
        "tasks": TaskSettings,
        "sensitivity": SensitivitySettings,
    }
    if len(location) == 1:
        return list(Settings.model_fields)
    if location[0] == "studies":
        return list(StudySettings.model_fields)
    if location[0] == "plans":
        return list((CheckSettings if "check" in location[2:-1] else METHODS[location[2]]).model_fields)
    return list((ModelSettings if location[0] == "models" else sections[location[0]]).model_fields)


# What YAML reads as truth values, as it was probably written.
BOOLEANS = {"False": "no", "True": "yes"}


def _problem(error: Mapping[str, Any]) -> Problem:
    location = error["loc"] or ("configuration",)
    shown = ".".join(str(part) for i, part in enumerate(location) if not (location[0] == "plans" and i == 2))
    if error["type"] == "extra_forbidden":
        known = _keys_at(location)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        return Problem(shown, "unknown key", f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(known)}")
    if error["type"] == "union_tag_not_found":
        return Problem(shown, "has no method", f"Add one of: {', '.join(METHODS)}")
    if location[-1] == "[key]" and error["type"] == "string_type":
        name = BOOLEANS.get(str(error["input"]), str(error["input"]))
        what = f"the name {name} is no word in YAML, but a {type(error['input']).__name__}"
        return Problem(str(location[0]), what, f'Put the name in quotes: "{name}"')
    what = error["msg"].removeprefix("Value error, ")
    hint = "Add it" if error["type"] == "missing" else ""
    given = "" if error["type"] == "missing" or isinstance(error["input"], Mapping) else f" (it is {error['input']!r})"
    return Problem(shown, what[0].lower() + what[1:] + given, hint)


def parse_settings(config: Mapping[str, Any]) -> Settings:
    """Return the settings in a configuration. Raises `UserError` with one line for every problem."""
    try:
        return TypeAdapter(Settings).validate_python(dict(config))
    except ValidationError as error:
        raise UserError(_problem(each) for each in error.errors()) from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which YAML would silently keep the last."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict:
    loader.flatten_mapping(node)
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            mark = key_node.start_mark
            raise UserError(
                [Problem(f"{mark.name}:{mark.line + 1}", f"key {key!r} is given twice", f"First in line {seen[key]}")]
            )
        seen[key] = key_node.start_mark.line + 1
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def check_duplicate_keys(path: Path) -> None:
    """Raise `UserError` when a YAML file gives a key twice or is no YAML."""
    try:
        with open(path, encoding="utf-8") as handle:
            yaml.load(handle, _UniqueKeys)
    except yaml.YAMLError as error:
        raise UserError([Problem(str(path), f"is not YAML: {' '.join(str(error).split())}")]) from None


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(values):
        value, flag = values[key], f"--{key}"
        if value is None:
            continue
        if isinstance(value, bool):
            yield flag if value else f"--no-{key}"
            continue
        for item in value if isinstance(value, (list, tuple)) else (value,):
            yield from (flag, str(item))


def cli_flags(values: Mapping[str, Any]) -> str:
    """Return settings as one sorted string of flags: lists repeat the flag, booleans are --x/--no-x, None is left out."""
    return shlex.join(_words(values))

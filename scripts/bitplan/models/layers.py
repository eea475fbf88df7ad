"""The layers of a model: every weight matrix that it loads and that a plan may name."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitplan.core.errors import user_error
from bitplan.core.files import SCHEMA_VERSION, read_json
from bitplan.models.checkpoint import Checkpoint, TensorInfo
from bitplan.models.complete import UNTIED, check_loading
from bitplan.models.families import PROTECTED_CATEGORIES, TOKEN_TABLE, category_of, fusion_group_of, kind_of, place_of

log = logging.getLogger(__name__)
# GPT-2 stores these matrices as Conv1D: (in, out).
CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)$")
TRANSPOSED = {"gpt2": CONV1D, "openai-gpt": CONV1D}


@dataclass(frozen=True)
class Layer:
    """A weight matrix that plans may name.

    `shape` is (out, in), however it is stored (`transposed`: as (in, out)); `block` is -1 outside the decoder blocks. A
    `protected` layer is not quantized. A `tied` layer shares the embedding's parameters, which are counted there.
    """

    name: str
    category: str
    shape: tuple[int, int]
    block: int
    fusion_group: str
    protected: bool
    tied: bool = False
    transposed: bool = False

    @property
    def params(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    @property
    def token_table(self) -> bool:
        """Whether it is the token embedding; position embeddings are not."""
        return self.category == "embedding" and bool(TOKEN_TABLE.search(self.name))

    @property
    def is_embedding(self) -> bool:
        """Whether it is the token embedding or the output matrix: protected unless a plan names it explicitly."""
        return self.token_table or self.category == "lm_head"

    @property
    def kind(self) -> str:
        """ "expert", "attention" or "other"."""
        return kind_of(self.category)


@dataclass(frozen=True)
class ModelInfo:
    """The description of a model for later steps: folder, layers in model order, number of parameters (tied ones once).

    `unused_tensors` and `unused_files` are in the folder but not loaded by the model.
    """

    path: str
    fingerprint: str
    architecture: str
    model_type: str
    parameters: int
    layers: tuple[Layer, ...]
    unused_tensors: tuple[str, ...] = ()
    unused_files: tuple[str, ...] = ()

    @property
    def quantizable(self) -> tuple[Layer, ...]:
        """The layers that a plan may change, in model order."""
        return tuple(layer for layer in self.layers if not layer.protected)

    def to_json(self) -> dict[str, Any]:
        """Return the content of model.json."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}


def _layer(name: str, info: TensorInfo, model_type: str) -> Layer:
    layer = name.removesuffix(".weight")
    category = category_of(layer)
    pattern = TRANSPOSED.get(model_type)
    transposed = bool(pattern and pattern.search(layer))
    shape = tuple(reversed(info.shape)) if transposed else info.shape
    group, block = fusion_group_of(layer, category), place_of(layer).index
    protected = category in PROTECTED_CATEGORIES or block < 0
    return Layer(layer, category, shape, block, group, protected, transposed=transposed)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a natural sort key: block 10 follows block 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


# The order in which a block uses its layers; other categories come last.
ORDER = {
    name: i
    for i, name in enumerate(
        ("attn_q", "attn_k", "attn_v", "attn_kv", "attn_qkv", "attn_o", "router", "mlp_gate", "mlp_up", "mlp_down")
    )
}


def _position(layer: Layer) -> tuple:
    rank = {"embedding": -2, "lm_head": 10**9}.get(layer.category, layer.block)
    return rank, ORDER.get(layer.category, len(ORDER)), _natural(layer.name)


def list_layers(checkpoint: Checkpoint) -> tuple[Layer, ...]:
    """Return every matrix that the model loads, in model order: embeddings, blocks, output. A tied output is listed and marked.

    Raises `UserError` if transformers cannot build the model.
    """
    model_type = _model_type(checkpoint.text_config)
    matrices = {
        name: info
        for name, info in checkpoint.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and name not in checkpoint.loading.buffers
    }
    layers = [_layer(name, info, model_type) for name, info in matrices.items()]
    if checkpoint.tied:
        layers = _with_tied_output(layers)
    return tuple(sorted(layers, key=_position))


def _with_tied_output(layers: Sequence[Layer]) -> list[Layer]:
    """Return `layers` with both names of a tied matrix, whichever of them the checkpoint stores."""
    rest = [layer for layer in layers if layer.category != "lm_head"]
    table = next((layer for layer in rest if TOKEN_TABLE.search(layer.name)), None)
    output = next((layer for layer in layers if layer.category == "lm_head"), None)
    stored = table or output
    if stored is None:
        return rest
    if table is None:
        rest.append(Layer("model.embed_tokens", "embedding", stored.shape, -1, "", True))
    return [*rest, Layer("lm_head", "lm_head", stored.shape, -1, "", True, tied=True)]


def output_tensor_name(checkpoint: Checkpoint) -> str:
    """Return the name under which a checkpoint stores the output matrix; it may be the embedding's if they are tied."""
    loading = checkpoint.loading
    candidates = (loading.embedding, loading.output) if checkpoint.tied else (loading.output,)
    name = next((name for name in candidates if name is not None), None)
    if name is None:
        raise user_error("MODEL-NO-OUTPUT", checkpoint.folder, "lacks an output matrix", UNTIED)
    return name


def count_parameters(checkpoint: Checkpoint) -> int:
    """Return the number of parameters that the model loads; a tied matrix counts once even if it is stored twice."""
    loading = checkpoint.loading
    left_out = set(loading.buffers)
    if checkpoint.tied and loading.embedding is not None:
        left_out.add(loading.output)
    return sum(info.params for name, info in checkpoint.tensors.items() if name not in left_out)


def _check_supported(checkpoint: Checkpoint) -> None:
    """Raise `UserError` for quantized checkpoints and for experts that are stored in one tensor."""
    settings = checkpoint.text_config.get("quantization_config")
    method = settings.get("quant_method", "unnamed method") if isinstance(settings, dict) else settings
    if method is not None:
        raise user_error(
            "MODEL-QUANTIZED",
            checkpoint.folder,
            f"is already quantized ({method})",
            "Use the full-precision checkpoint",
        )
    stacked = [
        n for n, t in checkpoint.stored.items() if len(t.shape) == 3 and place_of(n).index >= 0 and t.shape[0] > 1
    ]
    experts = [name for name in stacked if re.search(r"experts|_linear", name)]
    if experts:
        what = f"stores all experts of a projection in one tensor ({experts[0]})"
        raise user_error(
            "MODEL-FUSED-EXPERTS",
            checkpoint.folder,
            what,
            "Only families with one tensor per expert are supported: docs/families.md",
        )


def describe(checkpoint: Checkpoint) -> ModelInfo:
    """Return the description of a checkpoint. Raises `UserError` if it has no layer that can be quantized."""
    info = replace(outline(checkpoint), fingerprint=checkpoint.fingerprint())
    _warn_of_unused(checkpoint)
    return info


def outline(checkpoint: Checkpoint) -> ModelInfo:
    """Return the description of a checkpoint without its fingerprint: the headers are read, and none of the weights.

    Raises `UserError` for a model that is not supported or not complete, or that has no layer that can be quantized.
    """
    _check_supported(checkpoint)
    check_loading(checkpoint)
    info = ModelInfo(
        str(checkpoint.folder),
        "",
        _first_architecture(checkpoint.config),
        _model_type(checkpoint.text_config) or "unknown",
        count_parameters(checkpoint),
        list_layers(checkpoint),
        checkpoint.loading.unused,
        checkpoint.unused_files,
    )
    if not info.quantizable:
        raise user_error(
            "MODEL-NO-LAYERS",
            checkpoint.folder,
            "has no weight matrix inside decoder blocks",
            "Looked for 2-D tensors called *.layers.N.*.weight, *.h.N.*.weight or *.blocks.N.*.weight: docs/families.md",
        )
    return info


def _some(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _warn_of_unused(checkpoint: Checkpoint) -> None:
    """Warn of tensors and files that the model does not use, and of an output matrix that contradicts config.json."""
    folder, unused, files = checkpoint.folder, checkpoint.loading.unused, checkpoint.unused_files
    if unused:
        log.warning(
            "%s: %d stored tensors are not part of the model and are left out: %s", folder, len(unused), _some(unused)
        )
    if files:
        log.warning("%s: not the model's weights, left alone: %s", folder, _some(files))
    if checkpoint.loading.tied and not checkpoint.tied:
        what = "%s: config.json ties embedding and output, but %s is stored with other values: it is used, as transformers does"
        log.warning(what, folder, checkpoint.loading.output)


def _model_type(config: Mapping[str, Any]) -> str:
    """Return `model_type` of a `config.json`; "" if it has none."""
    model_type = config.get("model_type")
    return model_type if isinstance(model_type, str) else ""


def _first_architecture(config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown"


def _from_json(content: Mapping[str, Any]) -> ModelInfo:
    """Parse a model.json. Raises KeyError, TypeError or ValueError for content that `describe_model.py` does not write."""
    layers = tuple(Layer(**{**layer, "shape": tuple(layer["shape"])}) for layer in content["layers"])
    fields = {key: content[key] for key in ("path", "fingerprint", "architecture", "model_type", "parameters")}
    unused = {key: tuple(content.get(key, ())) for key in ("unused_tensors", "unused_files")}
    info = ModelInfo(**fields, layers=layers, **unused)
    sizes = (info.parameters, *(number for layer in layers for number in layer.shape))
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {content.get('schema_version')!r}, not {SCHEMA_VERSION}")
    matrices = all(len(layer.shape) == 2 for layer in layers)
    if not (info.quantizable and matrices and all(type(number) is int and number > 0 for number in sizes)):
        raise ValueError("it has no layer that can be quantized, or invalid sizes")
    return info


def open_described_checkpoint(path: Path, info: ModelInfo) -> Checkpoint:
    """Return the checkpoint at a path. Raises `UserError` if the path is a `model.json` that no longer matches its checkpoint."""
    checkpoint = Checkpoint.open(path)
    if Path(path).suffix == ".json":
        shapes = {layer.name: layer.shape for layer in list_layers(checkpoint)}
        other = [layer.name for layer in info.layers if shapes.get(layer.name) != layer.shape]
        if other:
            what = f"describes a different model from the one in {checkpoint.folder}, which has no matching {other[0]}"
            raise user_error("MODEL-INFO-MISMATCH", path, what, "Create it again with scripts/describe_model.py")
    return checkpoint


def model_info(path: Path) -> ModelInfo:
    """Return the description of a model from its folder, or from a `model.json` written earlier."""
    if Path(path).suffix == ".json":
        try:
            return _from_json(read_json(path))
        except (KeyError, TypeError, ValueError) as error:
            raise user_error(
                "MODEL-INFO-INVALID", path, f"is not a model.json: {error}", "Create it with scripts/describe_model.py"
            ) from None
    return describe(Checkpoint.open(path))

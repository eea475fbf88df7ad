"""What has to rerun after a change, written by hand: a change's first jobs, and which jobs follow which.

A job is `model/rule@name`; the name is that of a plan, a baseline or a study, or nothing. A selector is a part of it: `rule` (whatever the model and
the name), `rule@name`, `model/rule`, `model/rule@name`; each part may hold `*`. Selectors stand in one string, apart by spaces.
"""

from typing import Any

# Every method, twice where its settings exclude each other; a model that is here and one of the hub, which no test fetches.
CONFIG: dict[str, Any] = {
    "models": {
        "demo": {"path": "demo/model", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"},
        "hub": {
            "path": "somebody/a-model",
            "revision": "main",
            "calibration": "demo/other.txt",
            "evaluation": "demo/evaluation.txt",
            "runtimes": ["compressed_tensors", "mlx", "auto_round"],
        },
    },
    "plans": {
        "threshold": {"method": "adaptive"},
        "typed": {"method": "adaptive", "formats": ["q4_k", "q8_0"]},
        "tasked": {"method": "adaptive", "task": "demo_stories"},
        "lot": {"method": "random"},
        "w4": {"method": "genetic"},
        "mixed": {"method": "genetic", "target_avg_bits": 6.0, "palette": ["int4", "int6"]},
        "best": {"method": "optimal", "target_avg_bits": 6.0, "palette": ["int4", "int6", "int8"], "refine": True},
        "sized": {"method": "optimal", "same_size_as": "q4_k_m", "palette": ["int4", "int6"], "correct": False},
        "limited": {"method": "optimal", "max_size": "2MB", "palette": ["int4", "int6"], "correct": False},
        "pruned": {"method": "sparsegpt", "prunen": 2, "prunem": 4},
        "fed": {"method": "random", "rounding": "feedback"},
        "tuned": {"method": "genetic", "rounding": "tuned"},
    },
    "studies": {"widths": {"plan": {"method": "sparsegpt"}, "vary": {"target_avg_bits": [3.0, 4.0]}}},
    "baselines": ["f16", "q4_k_m", "q4_k_m_imatrix"],
    "calibration": {"sequences": 16},
    "validation": {"sequences": 16},
    "sensitivity": {"anchors": 2, "embeddings": ["q6_k"], "palette": ["int4", "int6", "int8"]},
    "tasks": {"names": ["demo_stories"]},
}

# Jobs that follow a job because they read what it makes. Between jobs of plans (or of baselines) only those of the same name follow, unless the
# rule on the left has a name of its own. bits.json of a plan is read by the comparison and by studies alone: for the others it only has to be there.
PACKED = "plan_compressed_tensors plan_mlx plan_auto_round"
EXPORTS = f"plan_gguf {PACKED}"
IMPORTANCE = f"plan_perplexity {EXPORTS} plan_tasks baseline_gguf@q4_k_m_imatrix"
OF_A_PLAN = f"bits rounded_plan rounded_genetic_plan plan_perplexity {EXPORTS} plan_card plan_tasks comparison"
ROUNDED = "rounded_plan rounded_genetic_plan"
ALL_OF_A_MODEL = "layer_stats validation evaluation sensitivity sensitivity_shard *_plan bits plan_* model_tasks base_gguf baseline_* comparison study estimate"
FOLLOWS = {
    "download": "model",
    "model": ALL_OF_A_MODEL,
    "layer_stats": f"sensitivity sensitivity_shard {ROUNDED} adaptive_plan optimal_plan sparsegpt_plan {IMPORTANCE}",
    "validation": "optimal_plan@best",
    "sensitivity_shard": "sensitivity",
    "sensitivity": "genetic_plan optimal_plan comparison",
    "adaptive_plan": OF_A_PLAN,
    "random_plan": OF_A_PLAN,
    "genetic_plan": OF_A_PLAN,
    "optimal_plan": OF_A_PLAN,
    "sparsegpt_plan": OF_A_PLAN,
    "rounded_plan": f"plan_perplexity {EXPORTS} plan_card plan_tasks comparison",
    "rounded_genetic_plan": f"plan_perplexity {EXPORTS} plan_card plan_tasks comparison",
    "bits": "comparison",
    "bits@widths.*": "study@widths",
    "evaluation": "plan_perplexity plan_runtime_perplexity baseline_perplexity",
    # The card of a file that no program scores here has the figures of the simulated plan.
    "plan_perplexity": "comparison hub/plan_card",
    "plan_perplexity@widths.*": "study@widths",
    "base_gguf": "plan_gguf baseline_gguf demo/optimal_plan@limited",
    "plan_gguf": "plan_runtime_perplexity plan_speed plan_card comparison",
    "plan_compressed_tensors": "plan_runtime_perplexity plan_card comparison",
    "plan_mlx": "plan_card comparison",
    "plan_auto_round": "plan_card comparison",
    "plan_runtime_perplexity": "plan_card comparison",
    "plan_card": "",
    "plan_tasks": "comparison",
    "model_tasks": "comparison",
    "plan_speed": "comparison",
    "baseline_gguf": "baseline_perplexity baseline_speed comparison",
    "baseline_gguf@f16": "plan_speed baseline_speed",
    "baseline_gguf@q4_k_m": "optimal_plan@sized",
    "baseline_perplexity": "comparison",
    "baseline_speed": "comparison",
    "comparison": "",
    "study": "",
    "estimate": "",
}

ON_A_DEVICE = (
    "layer_stats validation evaluation sensitivity adaptive_plan genetic_plan optimal_plan sparsegpt_plan"
    " rounded_plan rounded_genetic_plan plan_perplexity plan_tasks model_tasks"
)
# The plans that say nothing of rounding themselves.
ROUNDED_BY_DEFAULT = " ".join(
    [
        *(f"rounded_plan@{name}" for name in ("threshold", "typed", "tasked", "lot", "best", "sized", "limited")),
        *(f"rounded_genetic_plan@{name}" for name in ("w4", "mixed")),
    ]
)
SPEEDS = "plan_speed baseline_speed"
TASKS = "plan_tasks model_tasks"

# Each setting outside the plans: a path in the configuration, another value, and the first jobs that rerun.
SETTINGS: dict[str, tuple[str, Any, str]] = {
    "models.path": ("models.demo.path", "demo/copy", "demo/model"),
    "models.revision": ("models.hub.revision", "v2", "hub/download"),
    "models.calibration": (
        "models.demo.calibration",
        "demo/other.txt",
        "demo/layer_stats demo/validation demo/plan_gguf",
    ),
    "models.evaluation": ("models.demo.evaluation", "demo/other.txt", "demo/evaluation"),
    "models.base_type": ("models.demo.base_type", "f32", "demo/base_gguf"),
    "models.allow_base_kl": ("models.demo.allow_base_kl", 0.01, ""),
    "models.runtimes": ("models.demo.runtimes", [], "comparison"),
    "studies.plan": ("studies.widths.plan", {"method": "sparsegpt", "sparsity": 0.5}, "sparsegpt_plan@widths.*"),
    "studies.vary": (
        "studies.widths.vary",
        {"target_avg_bits": {"3": 3.5, "4": 4.0}},
        "sparsegpt_plan@widths.3",
    ),
    "studies.also": ("studies.widths.also", {"rtn": {"compensate": False}}, "*@widths.rtn study"),
    "studies.x": ("studies.widths.x", "avg_bits_layers", "study"),
    "baselines": ("baselines", ["f16", "q4_k_m", "q4_k_m_imatrix", "q8_0"], "*@q8_0 demo/comparison"),
    "imatrix": ("imatrix", False, f"sensitivity adaptive_plan@typed optimal_plan {IMPORTANCE.rsplit(' ', 1)[0]}"),
    "compute.device": ("compute.device", "auto", ON_A_DEVICE),
    "compute.dtype": ("compute.dtype", "bf16", f"{ON_A_DEVICE} plan_runtime_perplexity baseline_perplexity"),
    "compute.threads": ("compute.threads", 2, ON_A_DEVICE),
    "bos": ("bos", "always", "layer_stats validation evaluation"),
    "calibration.length": ("calibration.length", 256, "layer_stats validation"),
    "calibration.sequences": ("calibration.sequences", 15, "layer_stats validation"),
    "validation.length": ("validation.length", 256, "validation"),
    "validation.sequences": ("validation.sequences", 15, "validation"),
    "evaluation.length": ("evaluation.length", 256, "evaluation"),
    "evaluation.sequences": ("evaluation.sequences", 15, "evaluation"),
    "sensitivity.group_size": ("sensitivity.group_size", 64, "sensitivity"),
    "sensitivity.activation_scope": ("sensitivity.activation_scope", "token", "sensitivity genetic_plan"),
    "sensitivity.smooth_alpha": ("sensitivity.smooth_alpha", [], "sensitivity"),
    "sensitivity.palette": ("sensitivity.palette", ["int4", "int6", "int8", "q5_k"], "sensitivity"),
    "sensitivity.tokens": ("sensitivity.tokens", 1024, "sensitivity"),
    "sensitivity.random": ("sensitivity.random", True, "sensitivity"),
    "sensitivity.anchors": ("sensitivity.anchors", "all", "sensitivity"),
    "sensitivity.metric": ("sensitivity.metric", "gradient", "sensitivity"),
    "sensitivity.draws": ("sensitivity.draws", 8, "sensitivity"),
    "sensitivity.rounding": ("sensitivity.rounding", "feedback", "sensitivity"),
    "sensitivity.embeddings": ("sensitivity.embeddings", ["q8_0"], "sensitivity"),
    "sensitivity.memory_limit": ("sensitivity.memory_limit", "1GB", ""),
    "sensitivity.shards": ("sensitivity.shards", 2, "sensitivity_shard sensitivity"),
    "sensitivity.fisher": ("sensitivity.fisher", True, "sensitivity"),
    "rounding.default": ("rounding.default", "feedback", ROUNDED_BY_DEFAULT),
    "rounding.damping": ("rounding.damping", 0.02, ROUNDED),
    "rounding.descents": ("rounding.descents", 1, ROUNDED),
    "rounding.reference_share": ("rounding.reference_share", 0.25, ROUNDED),
    "rounding.steps": ("rounding.steps", 20, "rounded_genetic_plan@tuned"),
    "rounding.tokens_per_step": ("rounding.tokens_per_step", 1024, "rounded_genetic_plan@tuned"),
    "export.unquantized": ("export.unquantized", "bf16", "plan_gguf"),
    "export.match": ("export.match", "distortion", "plan_gguf"),
    "export.max_error": ("export.max_error", 0.01, "plan_gguf"),
    "export.fusion": ("export.fusion", "refuse", PACKED),
    "speed.max_tokens": ("speed.max_tokens", 8, SPEEDS),
    "speed.repeats": ("speed.repeats", 8, SPEEDS),
    "speed.max_repeats": ("speed.max_repeats", 8, SPEEDS),
    "speed.max_spread": ("speed.max_spread", 1.5, SPEEDS),
    "speed.max_seconds": ("speed.max_seconds", 8, SPEEDS),
    "speed.warmup": ("speed.warmup", 8, SPEEDS),
    "speed.prompts": ("speed.prompts", ["Once"], SPEEDS),
    "tasks.names": ("tasks.names", ["demo_stories", "demo_memory"], TASKS),
    "tasks.include_path": ("tasks.include_path", "demo/own", TASKS),
    "tasks.limit": ("tasks.limit", 8, TASKS),
    "tasks.batch_size": ("tasks.batch_size", 4, TASKS),
    "tasks.max_length": ("tasks.max_length", 256, f"{TASKS} adaptive_plan@tasked"),
}

# What a setting needs besides, because some exclude each other.
BESIDE: dict[str, dict[str, Any]] = {
    "models.runtimes": {"plans.limited": None},
    "sensitivity.draws": {"sensitivity.metric": "gradient"},
    "sensitivity.rounding": {"sensitivity.metric": "gradient", "sensitivity.anchors": None},
    "sensitivity.random": {
        "sensitivity.anchors": None,
        "sensitivity.embeddings": [],
        "plans.best": None,
        "plans.sized": None,
        "plans.limited": None,
    },
}

# Each setting of a plan: the plan, and another value. Its search reruns; for `check` only the judgement of its bits. The last is a baseline that
# the model of the hub, which makes no others, has for the size of this plan alone.
PLAN_SETTINGS: dict[str, dict[str, tuple[str, Any] | tuple[str, Any, str]]] = {
    "adaptive": {
        "ppl_threshold": ("threshold", 0.15),
        "target_avg_bits": ("threshold", 7.0),
        "step_size": ("threshold", 0.4),
        "batch_size": ("threshold", 4),
        "search": ("threshold", "bisect"),
        "fit": ("threshold", "xmin_mid"),
        "polarity": ("threshold", "low_alpha_fewer_bits"),
        "group_size": ("threshold", 64),
        "formats": ("threshold", ["mxfp4", "mxfp6_e2m3"]),
        "task": ("threshold", "demo_stories"),
        "metric": ("tasked", "acc"),
        "task_limit": ("tasked", 8),
        "include_path": ("tasked", "demo/own"),
        "rounding": ("threshold", "feedback"),
        "check.on_miss": ("threshold", "fail"),
        "check.tolerance": ("threshold", 0.5),
    },
    "random": {
        "mxfp4_ratio": ("lot", 0.4),
        "bf16_ratio": ("lot", 0.4),
        "seed": ("lot", 1),
        "group_size": ("lot", 64),
        "rounding": ("lot", "feedback"),
        "check.on_miss": ("lot", "fail"),
        "check.tolerance": ("lot", 0.5),
    },
    "genetic": {
        "target_compression": ("w4", 0.8),
        "target_avg_bits": ("mixed", 5.0),
        "palette": ("mixed", ["int4", "int8"]),
        "metric": ("w4", "relative_mse"),
        "solution": ("w4", "exact"),
        "ga_pop": ("w4", 40),
        "ga_gen": ("w4", 40),
        "seed": ("w4", 1),
        "rounding": ("w4", "feedback"),
        "check.on_miss": ("w4", "fail"),
        "check.tolerance": ("w4", 0.5),
    },
    "optimal": {
        "target_avg_bits": ("best", 5.0),
        "same_size_as": ("sized", "q4_k_m_imatrix", "hub/baseline_gguf@q4_k_m_imatrix"),
        "max_size": ("limited", "3MB"),
        "palette": ("best", ["int4", "int6"]),
        "sizes": ("best", "stored"),
        "groups": ("best", "none"),
        "correct": ("sized", True),
        "swaps": ("best", 8),
        "refine": ("best", False),
        "seed": ("best", 1),
        "rounding": ("best", "feedback"),
        "check.on_miss": ("best", "fail"),
        "check.tolerance": ("best", 0.5),
    },
    "sparsegpt": {
        "sparsity": ("pruned", 0.5),
        "prunen": ("pruned", 1),
        "prunem": ("pruned", 8),
        "target_avg_bits": ("pruned", [3.0, 4.0]),
        "layer_bits": ("pruned", {"*q_proj": 3.0}),
        "bit_allocation_method": ("pruned", "optimal"),
        "bit_options": ("pruned", [2, 4, 8]),
        "quantiles": ("pruned", [0.1, 0.2, 0.3, 0.4]),
        "weights": ("pruned", {"activation": 1.0}),
        "sym": ("pruned", False),
        "mse": ("pruned", False),
        "group_size": ("pruned", 64),
        "blocksize": ("pruned", 64),
        "percdamp": ("pruned", 0.1),
        "compensate": ("pruned", False),
        "check.on_miss": ("pruned", "fail"),
        "check.tolerance": ("pruned", 0.5),
    },
}

# Other changes of the configuration; None takes an entry out.
CHANGES: dict[str, tuple[str, Any, str]] = {
    "a plan is added": ("plans.mine", {"method": "random"}, "*@mine comparison"),
    "a plan is taken out": ("plans.lot", None, "comparison"),
    "another target of optimal plans": (
        "plans.best-5",
        {"method": "optimal", "target_avg_bits": 5.0, "palette": ["int4", "int6", "int8"]},
        "*@best-5 comparison",
    ),
    "another value of a study": ("studies.widths.vary.target_avg_bits", [3.0, 4.0, 5.0], "*@widths.5 study"),
    "another study": (
        "studies.more",
        {"plan": {"method": "random"}, "vary": {"seed": [1, 2]}},
        "*@more.* study@more",
    ),
    "a study is taken out": ("studies.widths", None, ""),
    "a model is added": (
        "models.copy",
        {"path": "demo/copy", "calibration": "demo/calibration.txt", "evaluation": "demo/evaluation.txt"},
        "copy/*",
    ),
    "the evaluation text is the calibration text": (
        "models.demo.evaluation",
        "demo/calibration.txt",
        "demo/evaluation",
    ),
    "a model is taken out": ("models.hub", None, ""),
    "a model that llama.cpp turns out to know": (
        "models.hub.runtimes",
        ["compressed_tensors", "mlx", "auto_round", "gguf"],
        "hub/plan_gguf hub/baseline_gguf@f16 hub/baseline_gguf@q4_k_m_imatrix hub/baseline_perplexity hub/baseline_speed hub/optimal_plan@limited",
    ),
    "a baseline is taken out": ("baselines", ["f16", "q4_k_m"], "demo/comparison"),
    "another reference of speed": ("baselines", ["q4_k_m", "f16", "q4_k_m_imatrix"], f"{SPEEDS} demo/comparison"),
    "no task": ("tasks.names", [], "comparison"),
    "a default written out": ("plans.threshold.step_size", 0.5, ""),
    "a number without its point": ("plans.threshold.target_avg_bits", 8, ""),
    "a number as a word, as --config gives it": ("plans.threshold.step_size", "5e-1", ""),
    "a list of one without its brackets": ("plans.pruned.target_avg_bits", 4.0, ""),
}

# Files that jobs read: another content, and the first jobs that rerun.
FILES = {
    "demo/calibration.txt": "demo/layer_stats demo/validation demo/plan_gguf",
    "demo/other.txt": "hub/layer_stats hub/validation hub/plan_compressed_tensors hub/plan_mlx hub/plan_auto_round",
    "demo/evaluation.txt": "evaluation",
    "demo/model/config.json": "demo/model",
    "demo/model/model.safetensors": "demo/model",
    "demo/tasks/demo_stories.yaml": f"{TASKS} adaptive_plan@tasked",
    "demo/copy/config.json": "",
    "results/hub/download.json": "hub/model",
}

# A forecast that no step reads and no change of settings or code makes again.
MADE_ONCE = {"estimate"}

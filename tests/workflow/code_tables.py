"""Which rules run which command, and behind which rules the code of each module is."""

from tests.workflow.rerun_tables import EXPORTS, PACKED, ROUNDED, SPEEDS, TASKS

# The rules that call each command.
COMMANDS = {
    "download_model.py": "download",
    "describe_model.py": "model",
    "layer_stats.py": "layer_stats",
    "teacher.py": "validation evaluation",
    "sensitivity.py": "sensitivity",
    "merge_sensitivity.py": "",
    "adaptive_quantization_search.py": "adaptive_plan",
    "random_mixed_precision_quantization.py": "random_plan",
    "mixed_precision_ptq.py": "genetic_plan",
    "optimal_search.py": "optimal_plan",
    "sparsegpt_enhanced.py": "sparsegpt_plan",
    "calculate_avg_bits.py": "bits",
    "perplexity.py": "plan_perplexity plan_runtime_perplexity baseline_perplexity",
    "eval_with_lm_eval.py": "plan_tasks model_tasks",
    "convert_gguf.py": "base_gguf",
    "round_model.py": ROUNDED,
    "export_plan.py": EXPORTS,
    "baseline_gguf.py": "baseline_gguf",
    "compare_real_quant.py": "plan_speed baseline_speed",
    "model_card.py": "plan_card",
    "report.py": "comparison",
    "study_report.py": "study",
}


# Rules whose command imports modules of runtimes by name: which runtimes, and for which task.
RUNTIME_TASKS = {
    # The runtimes of the model of the hub: they store embeddings in 16 bits alone, which is a bound on what its plans choose.
    "optimal_plan": ("verdict", "compressed_tensors", "mlx", "auto_round"),
    "plan_gguf": ("write", "gguf"),
    "plan_compressed_tensors": ("write", "compressed_tensors"),
    "plan_mlx": ("write", "mlx"),
    "plan_auto_round": ("write", "auto_round"),
    "plan_runtime_perplexity": ("score", "gguf", "compressed_tensors", "mlx", "auto_round"),
    "baseline_perplexity": ("score", "gguf"),
    "plan_speed": ("time", "gguf"),
    "baseline_speed": ("time", "gguf"),
}


PERPLEXITY = "plan_perplexity plan_runtime_perplexity baseline_perplexity"


GGUF = "plan_gguf baseline_gguf"


SEARCHES = "adaptive_plan random_plan genetic_plan optimal_plan sparsegpt_plan"


REFERENCE = "validation evaluation"


RUN_A_MODEL = f"layer_stats {REFERENCE} sensitivity adaptive_plan genetic_plan optimal_plan sparsegpt_plan {ROUNDED} {PERPLEXITY} {TASKS} {SPEEDS}"


QUANTIZE = f"layer_stats sensitivity {SEARCHES} {ROUNDED} bits {PERPLEXITY} {TASKS} {GGUF} {PACKED} plan_card"


QUANTIZE_WALKING = f"layer_stats sensitivity adaptive_plan genetic_plan optimal_plan sparsegpt_plan {ROUNDED} {PERPLEXITY} {TASKS} {GGUF} {PACKED}"


READ_WEIGHTS = f"{QUANTIZE} {REFERENCE} {SPEEDS} base_gguf"


READ_A_MODEL = f"{READ_WEIGHTS} model comparison"


CHECKED = "base_gguf plan_gguf"  # what converts a model checks that llama.cpp computes it


STATISTICS = "layer_stats sensitivity adaptive_plan optimal_plan"


SMOOTHED = "sensitivity genetic_plan optimal_plan"


EXACT = "genetic_plan optimal_plan sparsegpt_plan"


# Modules of the library by pattern, and the rules that their code is behind; the last pattern that matches counts.
MODULES = {
    "console/*": "",
    "__init__.py": "*",
    "cli/*": "*",
    "cli/reference.py": "",
    "cli/testing.py": "",
    "config/*": "",
    "config/flag_types.py": "*",
    "config/flags.py": "*",
    "core/*": "*",
    "core/colours.py": "genetic_plan comparison",
    "core/figures.py": "genetic_plan comparison study",
    "core/tables.py": "comparison study",
    "core/section.py": "",
    "core/garbage.py": READ_A_MODEL,
    "core/intervals.py": f"{PERPLEXITY} plan_card comparison",
    "core/progress.py": f"sensitivity optimal_plan sparsegpt_plan {ROUNDED} {GGUF} {PACKED} {SPEEDS}",
    "core/resume.py": f"{STATISTICS} {ROUNDED} genetic_plan sparsegpt_plan",
    "core/error_codes.py": "",
    "core/safetensors_io.py": READ_A_MODEL,
    "demo/*": "",
    "demo/__init__.py": "*",
    "evaluate/*": f"adaptive_plan {TASKS}",
    "evaluate/perplexity.py": f"sensitivity adaptive_plan optimal_plan sparsegpt_plan {PERPLEXITY}",
    "evaluate/scores.py": f"sensitivity adaptive_plan optimal_plan sparsegpt_plan {PERPLEXITY} {SPEEDS} {CHECKED}",
    "evaluate/timing.py": SPEEDS,
    "formats/*": f"{QUANTIZE} comparison",
    "formats/describe.py": "",
    "formats/facts.py": f"model {QUANTIZE} comparison",
    "formats/fitting.py": f"model {QUANTIZE} comparison",
    "formats/importance.py": QUANTIZE,
    "formats/mixed_linear.py": "",
    "formats/pairs.py": f"{SMOOTHED} comparison",
    "models/*": READ_A_MODEL,
    "models/checkpoint_files.py": "*",
    "models/devices.py": READ_WEIGHTS,
    "models/finite.py": f"model {READ_WEIGHTS}",
    "models/layer_patterns.py": f"{QUANTIZE} comparison",
    "models/layers.py": READ_A_MODEL,
    "models/original.py": SPEEDS,
    "models/walk.py": READ_WEIGHTS,
    "models/hub/*": "download",
    "models/hub/cache.py": "",
    "models/hub/ids.py": "download plan_card",
    "plans/*": QUANTIZE,
    "plans/apply.py": QUANTIZE_WALKING,
    "plans/apply_embeddings.py": f"sensitivity adaptive_plan optimal_plan sparsegpt_plan {PERPLEXITY} {TASKS} {GGUF} {PACKED}",
    "plans/bits.py": "bits",
    "plans/names.py": EXPORTS,
    "search/allocation/patterns.py": "optimal_plan",
    "plans/torch_config.py": f"genetic_plan {ROUNDED} bits {PERPLEXITY} {TASKS} {EXPORTS} plan_card",
    "reference/*": f"{RUN_A_MODEL} {CHECKED}",
    "reference/datasets.py": f"sparsegpt_plan {ROUNDED}",
    "reference/opening.py": RUN_A_MODEL,
    "reference/bos.py": f"{RUN_A_MODEL} {CHECKED} baseline_gguf",
    "reference/text.py": f"{RUN_A_MODEL} {CHECKED} baseline_gguf",
    "reference/text_file.py": f"{RUN_A_MODEL} {CHECKED} baseline_gguf",
    "reference/token_count.py": "",
    "report/*": "comparison",
    "report/page/*": "comparison",
    "report/metrics.py": "comparison study",
    "report/results.py": "comparison study",
    "report/tables.py": "comparison study",
    "report/study.py": "study",
    "report/three_way.py": SPEEDS,
    "rounding/*": f"sensitivity optimal_plan {ROUNDED}",
    "rounding/candidates.py": ROUNDED,
    "rounding/held_out.py": ROUNDED,
    "rounding/model.py": ROUNDED,
    "rounding/report.py": ROUNDED,
    "rounding/tuning.py": ROUNDED,
    "rounding/channel_grid.py": f"sensitivity optimal_plan sparsegpt_plan {ROUNDED}",
    "rounding/sweep.py": f"sensitivity optimal_plan sparsegpt_plan {ROUNDED}",
    "rounding/gguf_blocks.py": f"{GGUF} sensitivity optimal_plan {ROUNDED}",
    "rounding/gguf_codes.py": f"{GGUF} optimal_plan",
    "rounding/gguf_holders.py": f"{GGUF} optimal_plan",
    "rounding/gguf_packing.py": f"{GGUF} optimal_plan",
    "runtimes/card/*": "plan_card",
    "runtimes/export.py": EXPORTS,
    "runtimes/registry.py": "",
    "runtimes/palette.py": "optimal_plan",
    "runtimes/runtime.py": f"{EXPORTS} optimal_plan",
    "runtimes/speed.py": SPEEDS,
    "runtimes/verdicts.py": EXPORTS,
    "runtimes/packed/*": PACKED,
    # Behind optimal plans with a limit on the file's size alone, as the runtimes' own sizes are.
    "runtimes/packed/size.py": "",
    "runtimes/packed/verdicts.py": f"{PACKED} optimal_plan",
    "runtimes/auto_round/*": "plan_auto_round",
    "runtimes/auto_round/runtime.py": "",
    "runtimes/auto_round/schemes.py": "plan_auto_round optimal_plan",
    "runtimes/auto_round/scores.py": "plan_runtime_perplexity",
    "runtimes/compressed_tensors/*": "plan_compressed_tensors",
    "runtimes/compressed_tensors/runtime.py": "",
    "runtimes/compressed_tensors/schemes.py": "plan_compressed_tensors optimal_plan",
    "runtimes/compressed_tensors/scores.py": "plan_runtime_perplexity",
    "runtimes/fusion.py": PACKED,
    "runtimes/mlx/*": "plan_mlx",
    "runtimes/mlx/runtime.py": "",
    "runtimes/mlx/names.py": "plan_mlx optimal_plan",
    "runtimes/mlx/schemes.py": "plan_mlx optimal_plan",
    "runtimes/mlx/scores.py": "plan_runtime_perplexity",
    "runtimes/packed/scores.py": "plan_runtime_perplexity",
    "runtimes/served/*": "",
    "runtimes/packed/bits.py": "plan_mlx plan_auto_round",
    "runtimes/check.py": "",
    "runtimes/gguf/*": f"base_gguf {GGUF}",
    "runtimes/gguf/architectures.py": "",
    "runtimes/gguf/base_check.py": f"{PERPLEXITY} {CHECKED}",
    "runtimes/gguf/export.py": GGUF,
    "runtimes/gguf/file.py": f"{GGUF} optimal_plan",
    "runtimes/gguf/folding.py": GGUF,
    "runtimes/gguf/format_types.py": f"{GGUF} optimal_plan",
    "runtimes/gguf/llama_runtime.py": f"{PERPLEXITY} {SPEEDS} base_gguf {GGUF}",
    "runtimes/gguf/metadata.py": "plan_gguf",
    "runtimes/gguf/named_types.py": "",
    "runtimes/gguf/options.py": f"{GGUF} optimal_plan",
    "runtimes/gguf/packed_tensors.py": GGUF,
    "runtimes/gguf/recipe_importance.py": "baseline_gguf",
    "runtimes/gguf/recipe_names.py": "",
    "runtimes/gguf/recipes.py": "baseline_gguf",
    "runtimes/gguf/rounded_tensors.py": GGUF,
    "runtimes/gguf/scores.py": f"{PERPLEXITY} {SPEEDS} {CHECKED}",
    "runtimes/gguf/size.py": "",
    "runtimes/gguf/tensor_data.py": f"{GGUF} optimal_plan",
    "runtimes/gguf/tensor_types.py": GGUF,
    "runtimes/gguf/timing.py": SPEEDS,
    "runtimes/gguf/type_lines.py": GGUF,
    "runtimes/gguf/runtime.py": "",
    "runtimes/gguf/verdicts.py": "",
    "runtimes/gguf/write.py": "plan_gguf",
    "runtimes/transformers/checkpoint.py": f"{GGUF} {PACKED} sparsegpt_plan",
    "runtimes/transformers/original.py": SPEEDS,
    "runtimes/transformers/simulated.py": "",
    "search/damage.py": "optimal_plan",
    "search/plan_settings.py": "",
    "search/reach.py": "genetic_plan optimal_plan",
    "search/registry.py": "comparison",
    "search/evaluations.py": "adaptive_plan optimal_plan",
    "search/adaptive/*": "adaptive_plan",
    "search/allocation/*": "",
    "search/allocation/constraints.py": "optimal_plan comparison",
    "search/allocation/problem.py": "optimal_plan comparison",
    "search/genetic/*": "genetic_plan",
    "search/knapsack/*": f"{EXACT} comparison",
    "search/knapsack/levels.py": "optimal_plan",
    "search/optimal/*": "optimal_plan",
    "search/optimal/candidates.py": "optimal_plan comparison",
    "search/random/*": "random_plan",
    "search/sparsegpt/*": "sparsegpt_plan",
    "search/*/settings.py": "",
    "sensitivity/*": "sensitivity optimal_plan",
    "sensitivity/layer_calls.py": SMOOTHED,
    "sensitivity/local_errors.py": SMOOTHED,
    "sensitivity/local_run.py": SMOOTHED,
    "sensitivity/output_gradients.py": SMOOTHED,
    "sensitivity/smooth_factors.py": SMOOTHED,
    "sensitivity/table.py": f"{SMOOTHED} comparison",
    "statistics/*": STATISTICS,
    "statistics/hessian.py": f"sensitivity optimal_plan sparsegpt_plan {ROUNDED}",
    "statistics/importance.py": f"{STATISTICS} {PERPLEXITY} {TASKS} {GGUF} {PACKED}",
    "statistics/inputs.py": SMOOTHED,
    "statistics/shrinkage.py": f"sensitivity optimal_plan {ROUNDED}",
    "workflow/*": "",
    "workflow/slurm/*": "",
    "workflow/estimate/*": "",
}

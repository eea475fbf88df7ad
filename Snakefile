# bitplan: which number format each weight matrix of a language model should get.
# Settings: config.yaml. Every rule calls one command of scripts/; README.md says what they do.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")


# The file in the working directory, or the workflow's own: --directory may lead elsewhere.
HERE = Path("config.yaml")


configfile: str(HERE if HERE.exists() else Path(workflow.basedir) / HERE)


include: "rules/common.smk"
include: "rules/model.smk"
include: "rules/stats.smk"
include: "rules/sensitivity.smk"
include: "rules/search.smk"
include: "rules/check.smk"
include: "rules/evaluate.smk"
include: "rules/export.smk"
include: "rules/compare.smk"
include: "rules/studies.smk"


rule all:
    default_target: True
    input:
        comparison_files(),


rule stats:
    input:
        of_models("layer_stats.tsv"),


rule plans:
    input:
        of_plans("bits.json"),


rule perplexity:
    input:
        of_plans("perplexity.json"),
        of_plans("gguf_perplexity.json", models=with_gguf()),
        of_baselines("perplexity.json"),


rule gguf:
    input:
        of_plans("model.gguf", models=with_gguf()),
        of_baselines("model.gguf"),


rule speed:
    input:
        of_plans("speed.json", models=with_gguf()),
        of_baselines("speed.json"),


rule report:
    input:
        comparison_files(),


rule studies:
    input:
        study_files(),


onstart:
    start_on_slurm()


onsuccess:
    show_comparisons()
    show_endings(succeeded=True)


onerror:
    show_endings(succeeded=False)

# bitplan: which number format each weight matrix of a language model should get.
# Settings: config.yaml. Every rule calls one command of scripts/; README.md says what they do.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")


# The file in the working directory; without one there and on the command line, the workflow's own: --directory may lead elsewhere.
# Not beside files of the command line: jobs of a cluster are told those, and not that they replace this one.
HERE = Path("config.yaml")
OWN = Path(workflow.current_basedir) / HERE


configfile: str(HERE if HERE.exists() or workflow.overwrite_configfiles else OWN)


report: "docs/report.rst"


# Of the jobs that could start, Snakemake starts those of the highest priority: 100 for the estimate, 90 for what every search waits for, down to 10
# for scores. Timings have none: they need the machine to themselves and come last.
include: "rules/common.smk"
include: "rules/model.smk"
include: "rules/stats.smk"
include: "rules/sensitivity.smk"
include: "rules/search.smk"
include: "rules/rounding.smk"
include: "rules/check.smk"
include: "rules/evaluate.smk"
include: "rules/export.smk"
include: "rules/compare.smk"
include: "rules/studies.smk"


rule all:
    default_target: True
    input:
        targets.of_models(SETTINGS, "estimate.txt"),
        targets.comparison_files(SETTINGS),
        targets.cards(SETTINGS),


rule stats:
    input:
        targets.of_models(SETTINGS, "layer_stats.tsv"),


rule plans:
    input:
        targets.of_plans(SETTINGS, "bits.json"),


rule perplexity:
    input:
        targets.of_plans(SETTINGS, "perplexity.json"),
        targets.runtime_files(SETTINGS, "perplexity.json"),
        targets.of_baselines(SETTINGS, "perplexity.json"),


rule exports:
    input:
        targets.artifacts(SETTINGS),


rule cards:
    input:
        targets.cards(SETTINGS),


rule gguf:
    input:
        targets.of_runtimes(
            SETTINGS, lambda each: [each.artifact] if each.name == "gguf" else []
        ),
        targets.of_baselines(SETTINGS, "model.gguf"),


rule speed:
    input:
        targets.runtime_files(SETTINGS, "speed.json"),
        targets.of_baselines(SETTINGS, "speed.json"),


rule report:
    input:
        targets.comparison_files(SETTINGS),


rule studies:
    input:
        targets.study_files(SETTINGS),


onstart:
    start_on_slurm()


onsuccess:
    show_end(succeeded=True)


onerror:
    show_end(succeeded=False)

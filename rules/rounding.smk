# Only plans whose rounding is not to nearest: each weight's code is chosen again, on the calibration text alone.
# The blocks that are done stand in rounded.partial, which no rule removes: a job that was ended goes on from there.
rule rounded_plan:
    input:
        model="results/{model}/model.json",
        plan="results/{model}/plans/{plan}/plan.json",
        beside=beside(inputs.beside_plan, "plan"),
        calibration="results/{model}/calibration.safetensors",
    output:
        plan="results/{model}/plans/{plan}/rounding/plan.json",
        rounded=directory("results/{model}/plans/{plan}/rounding/rounded"),
        layers="results/{model}/plans/{plan}/rounding/rounding.tsv",
    log:
        "logs/{model}/{plan}/rounding.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.rounding.tsv"
    wildcard_constraints:
        plan=one_of(targets.rounded_plans(SETTINGS, ("adaptive", "random", "optimal"))),
    priority: 60
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.rounding_mem_mb),
        runtime=time_limit(12, 30),
    params:
        code=code_version("round_model.py"),
        script=script("round_model.py"),
        flags=on_wildcards(flags.rounding_flags),
        folder=subpath(output.plan, parent=True),
    shell:
        "python {params.script:q} --model {input.model} --plan {input.plan} --calibration {input.calibration}"
        " {params.flags} --output {params.folder} > {log} 2>&1"


use rule rounded_plan as rounded_genetic_plan with:
    output:
        plan="results/{model}/plans/{plan}/rounding/plan.json",
        rounded=directory("results/{model}/plans/{plan}/rounding/rounded"),
        layers="results/{model}/plans/{plan}/rounding/rounding.tsv",
        smoothing="results/{model}/plans/{plan}/rounding/plan.smoothing.safetensors",
    wildcard_constraints:
        plan=one_of(targets.rounded_plans(SETTINGS, ("genetic",))),

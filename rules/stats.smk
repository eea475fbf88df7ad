rule layer_stats:
    input:
        model="results/{model}/model.json",
        text=on_wildcards(inputs.calibration_text),
    output:
        stats="results/{model}/layer_stats.tsv",
        importance="results/{model}/layer_stats.safetensors",
        calibration="results/{model}/calibration.safetensors",
    log:
        "logs/{model}/layer_stats.log",
    benchmark:
        "results/{model}/benchmarks/layer_stats.tsv"
    priority: 90
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.model_mem_mb),
        runtime=time_limit(2, 5),
    params:
        code=code_version("layer_stats.py"),
        script=script("layer_stats.py"),
        flags=flags.text_flags(SETTINGS, "calibration"),
    shell:
        "python {params.script:q} --model {input.model} --calibration {input.text:q} {params.flags}"
        " --output {output.stats} --importance {output.importance} --save-text {output.calibration} > {log} 2>&1"


# Tokens that no statistic and no measurement has seen, of the same text: what corrections and races are decided on.
rule validation:
    input:
        model="results/{model}/model.json",
        text=on_wildcards(inputs.calibration_text),
    output:
        saved="results/{model}/validation.safetensors",
    log:
        "logs/{model}/validation.log",
    benchmark:
        "results/{model}/benchmarks/validation.tsv"
    priority: 80
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.model_mem_mb),
        runtime=time_limit(2, 5),
    params:
        code=code_version("teacher.py"),
        script=script("teacher.py"),
        flags=flags.text_flags(
            SETTINGS, "validation", SETTINGS.tokens_before_validation
        ),
    shell:
        "python {params.script:q} --model {input.model} --text {input.text:q} {params.flags}"
        " --output {output.saved} > {log} 2>&1"

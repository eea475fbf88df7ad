# One table a model, shared by every plan that is searched from it: changing a plan's target measures nothing again.
rule sensitivity:
    input:
        model="results/{model}/model.json",
        calibration="results/{model}/calibration.safetensors",
    output:
        table="results/{model}/sensitivity.tsv",
        smoothing="results/{model}/sensitivity.smoothing.safetensors",
    log:
        "logs/{model}/sensitivity.log",
    benchmark:
        "results/{model}/benchmarks/sensitivity.tsv"
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus,
        mem_mb=model_mem_mb,
        runtime="4h",
    params:
        *code("sensitivity.py"),
        script=script("sensitivity.py"),
        flags=sensitivity_flags,
    shell:
        "python {params.script:q} --model {input.model} --calibration {input.calibration} {params.flags}"
        " --threads {threads} --output {output.table} > {log} 2>&1"

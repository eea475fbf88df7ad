# One table a model, shared by every plan that is searched from it: changing a plan's target measures nothing again.
# With several shards the layers are shared among as many jobs, and a last one joins their tables: the same bytes.
SHARD = "results/{model}/shards/{scatteritem}/sensitivity"


scattergather:
    sensitivity=SETTINGS.sensitivity.shards,


if SETTINGS.sensitivity.shards == 1:

    rule sensitivity:
        input:
            model="results/{model}/model.json",
            stats="results/{model}/layer_stats.tsv",
            calibration="results/{model}/calibration.safetensors",
            imatrix=on_wildcards(inputs.importance_of),
        output:
            table="results/{model}/sensitivity.tsv",
            smoothing="results/{model}/sensitivity.smoothing.safetensors",
            agreement="results/{model}/agreement.json",
        log:
            "logs/{model}/sensitivity.log",
        benchmark:
            "results/{model}/benchmarks/sensitivity.tsv"
        priority: 90
        conda:
            "../envs/torch.yaml"
        threads: SETTINGS.compute.threads
        resources:
            gpu=GPUS,
            mem_mb=on_attempt(resources.sensitivity_mem_mb),
            runtime=time_limit(12, 20),
        params:
            code=code_version("sensitivity.py"),
            script=script("sensitivity.py"),
            flags=on_wildcards(flags.sensitivity_flags),
            memory=on_input(flags.memory_flag),
            imatrix=on_input(flags.imatrix_flag),
        shell:
            "python {params.script:q} --model {input.model} --layer-stats {input.stats} --calibration {input.calibration}"
            " {params.flags} {params.memory} {params.imatrix} --output {output.table}"
            " --report {output.agreement} > {log} 2>&1"

else:

    rule sensitivity_shard:
        input:
            model="results/{model}/model.json",
            stats="results/{model}/layer_stats.tsv",
            calibration="results/{model}/calibration.safetensors",
            imatrix=on_wildcards(inputs.importance_of),
        output:
            table=temp(f"{SHARD}.tsv"),
            smoothing=temp(f"{SHARD}.smoothing.safetensors"),
        log:
            "logs/{model}/sensitivity.{scatteritem}.log",
        benchmark:
            "results/{model}/benchmarks/sensitivity.{scatteritem}.tsv"
        priority: 90
        conda:
            "../envs/torch.yaml"
        threads: SETTINGS.compute.threads
        resources:
            gpu=GPUS,
            mem_mb=on_attempt(resources.sensitivity_mem_mb),
            runtime=time_limit(12, 20),
        params:
            code=code_version("sensitivity.py"),
            script=script("sensitivity.py"),
            flags=on_wildcards(flags.sensitivity_flags),
            memory=on_input(flags.memory_flag),
            imatrix=on_input(flags.imatrix_flag),
            shard=on_wildcards(flags.shard_flag),
        shell:
            "python {params.script:q} --model {input.model} --layer-stats {input.stats} --calibration {input.calibration}"
            " {params.flags} {params.memory} {params.imatrix} {params.shard} --output {output.table} > {log} 2>&1"

    rule sensitivity:
        input:
            model="results/{model}/model.json",
            tables=gather.sensitivity(SHARD.replace("{model}", "{{model}}") + ".tsv"),
            smoothing=gather.sensitivity(
                SHARD.replace("{model}", "{{model}}") + ".smoothing.safetensors"
            ),
        output:
            table="results/{model}/sensitivity.tsv",
            smoothing="results/{model}/sensitivity.smoothing.safetensors",
            agreement="results/{model}/agreement.json",
        log:
            "logs/{model}/sensitivity.log",
        priority: 90
        conda:
            "../envs/torch.yaml"
        params:
            code=code_version("merge_sensitivity.py"),
            script=script("merge_sensitivity.py"),
        shell:
            "python {params.script:q} --model {input.model} --tables {input.tables}"
            " --output {output.table} --report {output.agreement} > {log} 2>&1"

# A plan's bits.json is an input of what follows it, so that a plan that misses its target stops there when it is told to.
# It is ancient: what a missed target does may change without scoring the plan again.
rule evaluation:
    input:
        model="results/{model}/model.json",
        text=on_wildcards(inputs.evaluation_text),
    output:
        saved="results/{model}/evaluation.safetensors",
    log:
        "logs/{model}/evaluation.log",
    benchmark:
        "results/{model}/benchmarks/evaluation.tsv"
    priority: 50
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
        flags=on_wildcards(flags.evaluation_flags, HELD_OUT_FROM),
    shell:
        "python {params.script:q} --model {input.model} --text {input.text:q} {params.flags}"
        " --output {output.saved} > {log} 2>&1"


rule plan_perplexity:
    input:
        model="results/{model}/model.json",
        bits=ancient("results/{model}/plans/{plan}/bits.json"),
        plan=on_wildcards(inputs.used_plan),
        beside=beside(inputs.beside_used_plan),
        imatrix=on_wildcards(inputs.importance_of),
        evaluation="results/{model}/evaluation.safetensors",
    output:
        scores="results/{model}/plans/{plan}/perplexity.json",
    log:
        "logs/{model}/{plan}/perplexity.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.perplexity.tsv"
    priority: 10
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.model_mem_mb),
        runtime=time_limit(2, 5),
        in_turn=1,
    params:
        code=code_version("perplexity.py"),
        script=script("perplexity.py"),
        flags=flags.flags_of(SETTINGS, "compute"),
        imatrix=on_input(flags.imatrix_flag),
    shell:
        "python {params.script:q} --model {input.model} --plan {input.plan} --text {input.evaluation} {params.flags}"
        " {params.imatrix} --output {output.scores} > {log} 2>&1"


rule plan_runtime_perplexity:
    input:
        model="results/{model}/model.json",
        artifact=beside(inputs.artifact),
        report=on_wildcards(inputs.artifact_report),
        evaluation="results/{model}/evaluation.safetensors",
    output:
        scores="results/{model}/plans/{plan}/{runtime}/perplexity.json",
    log:
        "logs/{model}/{plan}/{runtime}_perplexity.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.{runtime}.perplexity.tsv"
    priority: 10
    conda:
        on_wildcards(inputs.environment_of, ROOT)
    threads: 1
    resources:
        mem_mb=on_attempt(resources.score_mem_mb),
        runtime=time_limit(2, 5),
        in_turn=1,
    params:
        code=on_wildcards(runtime_code, "perplexity.py", "score"),
        script=script("perplexity.py"),
        named=on_wildcards(inputs.runtime_name),
        flags=flags.flags_of(
            SETTINGS, dtype=SETTINGS.compute.dtype, **flags.CHECKED_BEFORE
        ),
    shell:
        "python {params.script:q} --model {input.model} --artifact {input.artifact} --runtime {params.named}"
        " --text {input.evaluation} {params.flags}"
        " --threads {threads} --output {output.scores} > {log} 2>&1"


use rule plan_runtime_perplexity as baseline_perplexity with:
    input:
        model="results/{model}/model.json",
        artifact="results/{model}/baselines/{baseline}/model.gguf",
        evaluation="results/{model}/evaluation.safetensors",
    output:
        scores="results/{model}/baselines/{baseline}/perplexity.json",
    log:
        "logs/{model}/{baseline}/perplexity.log",
    benchmark:
        "results/{model}/benchmarks/{baseline}.perplexity.tsv"


# lm-eval's tasks are optional: no target asks for these files unless the settings name some.
rule model_tasks:
    input:
        on_wildcards(inputs.task_files, ROOT),
        model="results/{model}/model.json",
    output:
        figures="results/{model}/tasks.json",
    log:
        "logs/{model}/tasks.log",
    benchmark:
        "results/{model}/benchmarks/tasks.tsv"
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.whole_mem_mb),
        runtime=time_limit(12, 20),
    params:
        code=code_version("eval_with_lm_eval.py"),
        script=script("eval_with_lm_eval.py"),
        flags=on_wildcards(flags.task_flags),
    shell:
        "python {params.script:q} --model {input.model} {params.flags}"
        " --output {output.figures} > {log} 2>&1"


rule plan_tasks:
    input:
        on_wildcards(inputs.task_files, ROOT),
        model="results/{model}/model.json",
        bits=ancient("results/{model}/plans/{plan}/bits.json"),
        plan=on_wildcards(inputs.used_plan),
        beside=beside(inputs.beside_used_plan),
        imatrix=on_wildcards(inputs.importance_of),
    output:
        figures="results/{model}/plans/{plan}/tasks.json",
    log:
        "logs/{model}/{plan}/tasks.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.tasks.tsv"
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.whole_mem_mb),
        runtime=time_limit(12, 20),
    params:
        code=code_version("eval_with_lm_eval.py"),
        script=script("eval_with_lm_eval.py"),
        flags=on_wildcards(flags.task_flags),
        imatrix=on_input(flags.imatrix_flag),
    shell:
        "python {params.script:q} --model {input.model} --plan {input.plan} {params.flags} {params.imatrix}"
        " --output {output.figures} > {log} 2>&1"

# The model as GGUF in its own precision: every other file is made from it, and gives up nothing but what it is asked to.
rule base_gguf:
    input:
        model="results/{model}/model.json",
    output:
        gguf=ensure("results/{model}/base.gguf", non_empty=True),
    log:
        "logs/{model}/base_gguf.log",
    conda:
        "../envs/llama.yaml"
    threads: 1
    resources:
        mem_mb=on_attempt(resources.runtime_mem_mb),
        runtime=time_limit(2, 2),
    params:
        code=code_version("convert_gguf.py"),
        script=script("convert_gguf.py"),
        flags=on_wildcards(flags.base_flags),
        check=on_input(flags.base_check_flags),
    shell:
        "python {params.script:q} --model {input.model} {params.flags} {params.check} --threads {threads}"
        " --output {output.gguf} > {log} 2>&1"


rule plan_gguf:
    input:
        model="results/{model}/model.json",
        base="results/{model}/base.gguf",
        bits=ancient("results/{model}/plans/{plan}/bits.json"),
        plan=on_wildcards(inputs.used_plan),
        beside=beside_used_plan,
        imatrix=on_wildcards(inputs.importance_of),
        calibration=on_wildcards(inputs.export_calibration),
    output:
        gguf=ensure("results/{model}/plans/{plan}/model.gguf", non_empty=True),
        report="results/{model}/plans/{plan}/gguf.json",
    log:
        "logs/{model}/{plan}/gguf.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.gguf.tsv"
    conda:
        "../envs/llama.yaml"
    threads: 1
    resources:
        mem_mb=on_attempt(resources.model_mem_mb),
        runtime=time_limit(2, 1),
    params:
        code=code_version("export_gguf.py"),
        script=script("export_gguf.py"),
        flags=on_wildcards(flags.plan_gguf_flags),
        imatrix=on_input(flags.imatrix_flag),
        calibration=on_input(flags.calibration_flag),
    shell:
        "python {params.script:q} --model {input.model} --plan {input.plan} --base {input.base} {params.flags}"
        " {params.imatrix} {params.calibration} --threads {threads} --output {output.gguf} --report {output.report} > {log} 2>&1"


rule baseline_gguf:
    input:
        unpack(on_wildcards(inputs.baseline_importance)),
        base="results/{model}/base.gguf",
    output:
        gguf=ensure("results/{model}/baselines/{baseline}/model.gguf", non_empty=True),
    log:
        "logs/{model}/{baseline}/gguf.log",
    conda:
        "../envs/llama.yaml"
    threads: 1
    resources:
        mem_mb=on_attempt(resources.runtime_mem_mb),
        runtime=time_limit(2, 2),
    params:
        code=code_version("baseline_gguf.py"),
        script=script("baseline_gguf.py"),
        flags=on_input(flags.baseline_flags),
    shell:
        "python {params.script:q} --base {input.base} {params.flags} --threads {threads}"
        " --output {output.gguf} > {log} 2>&1"

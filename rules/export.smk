# The model as GGUF in its own precision: every other file is made from it, and gives up nothing but what it is asked to.
rule base_gguf:
    input:
        model="results/{model}/model.json",
    output:
        gguf=ensure("results/{model}/base.gguf", non_empty=True),
    log:
        "logs/{model}/base_gguf.log",
    benchmark:
        "results/{model}/benchmarks/base_gguf.tsv"
    priority: 80
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


# One rule for each runtime, plan_gguf ...: what it writes has a name, and is a file or a folder.
for RUNTIME in map(runtime_named, RUNTIMES):

    rule:
        name:
            f"plan_{RUNTIME.name}"
        input:
            model="results/{model}/model.json",
            base=on_wildcards(inputs.export_base),
            bits=ancient("results/{model}/plans/{plan}/bits.json"),
            plan=on_wildcards(inputs.used_plan),
            beside=beside(inputs.beside_used_plan),
            imatrix=on_wildcards(inputs.importance_of),
            calibration=on_wildcards(inputs.export_calibration),
        output:
            artifact=(
                directory(
                    f"results/{{model}}/plans/{{plan}}/{{runtime}}/{RUNTIME.artifact}"
                )
                if RUNTIME.is_folder
                else ensure(
                    f"results/{{model}}/plans/{{plan}}/{{runtime}}/{RUNTIME.artifact}",
                    non_empty=True,
                )
            ),
            report="results/{model}/plans/{plan}/{runtime}/report.json",
            beside=[
                f"results/{{model}}/plans/{{plan}}/{{runtime}}/{name}"
                for name in RUNTIME.beside
            ],
        log:
            "logs/{model}/{plan}/{runtime}.log",
        benchmark:
            "results/{model}/benchmarks/{plan}.{runtime}.tsv"
        wildcard_constraints:
            runtime=RUNTIME.name,
        priority: 40
        conda:
            f"../envs/{RUNTIME.environment}.yaml"
        threads: 1
        resources:
            mem_mb=on_attempt(resources.model_mem_mb),
            runtime=time_limit(2, 1),
            in_turn=1,
        params:
            code=on_wildcards(runtime_code, "export_plan.py", "write"),
            script=script("export_plan.py"),
            flags=on_wildcards(flags.export_flags),
            base=on_input(flags.base_flag),
            imatrix=on_input(flags.imatrix_flag),
            calibration=on_input(flags.calibration_flag),
        shell:
            "python {params.script:q} --model {input.model} --plan {input.plan} {params.base} {params.flags}"
            " {params.imatrix} {params.calibration} --threads {threads} --output {output.artifact} --report {output.report} > {log} 2>&1"


# Apart from the export, so that scores of another text change the card and not the file.
rule plan_card:
    input:
        model="results/{model}/model.json",
        plan=on_wildcards(inputs.used_plan),
        report="results/{model}/plans/{plan}/{runtime}/report.json",
        scores=on_wildcards(inputs.card_scores),
        calibration=on_wildcards(inputs.export_calibration),
    output:
        card="results/{model}/plans/{plan}/{runtime}/README.md",
    log:
        "logs/{model}/{plan}/{runtime}_card.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    params:
        code=code_version("model_card.py"),
        script=script("model_card.py"),
        calibration=on_input(flags.calibration_flag),
    shell:
        "python {params.script:q} --model {input.model} --plan {input.plan} --report {input.report} --scores {input.scores}"
        " {params.calibration} --output {output.card} > {log} 2>&1"


rule baseline_gguf:
    input:
        unpack(on_wildcards(inputs.baseline_importance)),
        base="results/{model}/base.gguf",
    output:
        gguf=ensure("results/{model}/baselines/{baseline}/model.gguf", non_empty=True),
    log:
        "logs/{model}/{baseline}/gguf.log",
    benchmark:
        "results/{model}/benchmarks/{baseline}.gguf.tsv"
    priority: 80
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

# Each file is timed beside the reference, in turn with it, so that a new plan is timed alone and is still comparable.
rule plan_speed:
    input:
        reference=on_wildcards(inputs.reference_file),
        artifact=beside(inputs.artifact),
        report=on_wildcards(inputs.artifact_report),
    output:
        speed="results/{model}/plans/{plan}/{runtime}/speed.json",
    log:
        "logs/{model}/{plan}/{runtime}_speed.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.{runtime}.speed.tsv"
    conda:
        "../envs/llama.yaml"
    threads: whole_machine
    resources:
        mem_mb=on_attempt(resources.runtime_mem_mb),
        runtime=time_limit(2, 5),
        slurm_extra="--exclusive",
        in_turn=1,
    params:
        code=on_wildcards(runtime_code, "compare_real_quant.py", "time"),
        script=script("compare_real_quant.py"),
        flags=on_wildcards(flags.speed_flags),
        reference=SETTINGS.baselines[0],
        name=inputs.compared_name,
    shell:
        "python {params.script:q} --models {params.reference}={input.reference} {params.name}={input.artifact}"
        " {params.flags} --threads {threads} --output {output.speed} > {log} 2>&1"


use rule plan_speed as baseline_speed with:
    input:
        reference=on_wildcards(inputs.reference_file),
        artifact="results/{model}/baselines/{baseline}/model.gguf",
    output:
        speed="results/{model}/baselines/{baseline}/speed.json",
    log:
        "logs/{model}/{baseline}/speed.log",
    benchmark:
        "results/{model}/benchmarks/{baseline}.speed.tsv"


rule comparison:
    input:
        beside(inputs.compared_plans),
        on_wildcards(inputs.compared_baselines),
        on_wildcards(inputs.compared_model),
        on_wildcards(inputs.compared_agreement),
        on_wildcards(inputs.compared_table),
        model="results/{model}/model.json",
    output:
        table="results/{model}/comparison.tsv",
        json="results/{model}/comparison.json",
        text=report(
            "results/{model}/comparison.txt",
            caption="../docs/table.rst",
            category="Comparison",
            labels={"model": "{model}", "what": "tables"},
        ),
        page=report(
            "results/{model}/comparison.html",
            caption="../docs/page.rst",
            category="Comparison",
            labels={"model": "{model}", "what": "interactive page"},
        ),
        figure=report(
            "results/{model}/comparison.svg",
            caption="../docs/figure.rst",
            category="Comparison",
            labels={"model": "{model}", "what": "figure"},
        ),
    log:
        "logs/{model}/comparison.log",
    benchmark:
        "results/{model}/benchmarks/comparison.tsv"
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        code=code_version("report.py"),
        script=script("report.py"),
        flags=on_wildcards(flags.report_flags),
    shell:
        "python {params.script:q} --model {input.model} --results results/{wildcards.model} {params.flags}"
        " --output {output.table} --json {output.json} --text {output.text} --page {output.page} --figure {output.figure} > {log} 2>&1"

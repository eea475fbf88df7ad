# One rule a method: a plan's name decides which of them makes it.
rule adaptive_plan:
    input:
        unpack(on_wildcards(inputs.search_inputs)),
        tasks=on_wildcards(inputs.search_task_files, ROOT),
        imatrix=on_wildcards(inputs.search_importance),
    output:
        config="results/{model}/plans/{plan}/config.json",
        plan="results/{model}/plans/{plan}/plan.json",
    log:
        "logs/{model}/{plan}/search.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.search.tsv"
    wildcard_constraints:
        plan=one_of(targets.plans_of(SETTINGS, "adaptive")),
    priority: 70
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.method_mem_mb),
        runtime=on_attempt(resources.method_time),
    params:
        code=code_version("adaptive_quantization_search.py"),
        script=script("adaptive_quantization_search.py"),
        flags=on_wildcards(flags.plan_flags),
        imatrix=on_input(flags.imatrix_flag),
    shell:
        "python {params.script:q} --model {input.model} --layer-stats {input.layer_stats} --calibration {input.calibration}"
        " {params.flags} {params.imatrix}"
        " --output-config {output.config} --output-plan {output.plan} > {log} 2>&1"


rule random_plan:
    input:
        unpack(on_wildcards(inputs.search_inputs)),
    output:
        config="results/{model}/plans/{plan}/config.json",
        plan="results/{model}/plans/{plan}/plan.json",
    log:
        "logs/{model}/{plan}/search.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.search.tsv"
    wildcard_constraints:
        plan=one_of(targets.plans_of(SETTINGS, "random")),
    priority: 70
    localrule: True
    conda:
        "../envs/torch.yaml"
    params:
        code=code_version("random_mixed_precision_quantization.py"),
        script=script("random_mixed_precision_quantization.py"),
        flags=on_wildcards(flags.plan_flags),
    shell:
        "python {params.script:q} --model {input.model} {params.flags}"
        " --output-config {output.config} --output-plan {output.plan} > {log} 2>&1"


rule genetic_plan:
    input:
        unpack(on_wildcards(inputs.search_inputs)),
        smoothing="results/{model}/sensitivity.smoothing.safetensors",
    output:
        config="results/{model}/plans/{plan}/config.json",
        plan="results/{model}/plans/{plan}/plan.json",
        smoothing=multiext(
            "results/{model}/plans/{plan}/",
            "config.smoothing.safetensors",
            "plan.smoothing.safetensors",
        ),
        figure=report(
            "results/{model}/plans/{plan}/history.svg",
            caption="../docs/history.rst",
            category="Searches",
            labels={"model": "{model}", "plan": "{plan}"},
        ),
    log:
        "logs/{model}/{plan}/search.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.search.tsv"
    wildcard_constraints:
        plan=one_of(targets.plans_of(SETTINGS, "genetic")),
    priority: 70
    conda:
        "../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=on_attempt(resources.method_mem_mb),
        runtime=on_attempt(resources.method_time),
    params:
        code=code_version("mixed_precision_ptq.py"),
        script=script("mixed_precision_ptq.py"),
        flags=on_wildcards(flags.plan_flags),
        pt=on_wildcards(inputs.genetic_pt),
    shell:
        "rm -f {params.pt}; python {params.script:q} --model {input.model} --sensitivity {input.sensitivity} {params.flags}"
        " --output {params.pt} --output-config {output.config} --output-plan {output.plan}"
        " --figure {output.figure} > {log} 2>&1"


rule optimal_plan:
    input:
        unpack(on_wildcards(inputs.search_inputs)),
        validation=on_wildcards(inputs.validation_text),
        imatrix=on_wildcards(inputs.importance_of),
        same_size=on_wildcards(inputs.optimal_size),
        base=on_wildcards(inputs.size_bases),
    output:
        config="results/{model}/plans/{plan}/config.json",
        plan="results/{model}/plans/{plan}/plan.json",
    log:
        "logs/{model}/{plan}/search.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.search.tsv"
    wildcard_constraints:
        plan=one_of(targets.plans_of(SETTINGS, "optimal")),
    priority: 70
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.method_mem_mb),
        runtime=on_attempt(resources.method_time),
        in_turn=1,
    params:
        code=on_wildcards(search_code, "optimal_search.py"),
        script=script("optimal_search.py"),
        flags=on_wildcards(flags.plan_flags),
        same_size=on_input(flags.size_flag),
        base=on_input(flags.base_flag),
        unseen=on_input(flags.validation_flag),
        imatrix=on_input(flags.imatrix_flag),
    shell:
        "python {params.script:q} --model {input.model} --sensitivity {input.sensitivity}"
        " --calibration {input.calibration} {params.unseen} {params.imatrix} {params.same_size} {params.base} {params.flags}"
        " --output-config {output.config} --output-plan {output.plan} > {log} 2>&1"


# What is made so far stands in compressed.partial, which no rule removes: a job that was ended goes on from there.
rule sparsegpt_plan:
    input:
        unpack(on_wildcards(inputs.search_inputs)),
    output:
        config="results/{model}/plans/{plan}/config.json",
        plan="results/{model}/plans/{plan}/plan.json",
        compressed=directory("results/{model}/plans/{plan}/compressed"),
        layers="results/{model}/plans/{plan}/layers.tsv",
    log:
        "logs/{model}/{plan}/search.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.search.tsv"
    wildcard_constraints:
        plan=one_of(targets.plans_of(SETTINGS, "sparsegpt")),
    priority: 70
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.method_mem_mb),
        runtime=on_attempt(resources.method_time),
    params:
        code=code_version("sparsegpt_enhanced.py"),
        script=script("sparsegpt_enhanced.py"),
        flags=on_wildcards(flags.plan_flags),
    shell:
        "python {params.script:q} {input.model} {input.calibration} {params.flags}"
        " --output-config {output.config} --output-plan {output.plan} --output-stats {output.layers} > {log} 2>&1"

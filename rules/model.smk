# The checkpoint is no output: a download that breaks off keeps what has come, and goes on from there.
rule download:
    output:
        record="results/{model}/download.json",
    log:
        "logs/{model}/download.log",
    localrule: True
    conda:
        "../envs/torch.yaml"
    params:
        code=code_version("download_model.py"),
        script=script("download_model.py"),
        flags=on_wildcards(flags.download_flags),
        folder=on_wildcards(inputs.model_folder),
    shell:
        "python {params.script:q} {params.flags} --output {params.folder:q} --record {output.record} > {log} 2>&1"


# What the settings ask of a model that it cannot give is said here, which everything waits for: no plan and no text is tried in vain. The check
# has no code version, and its settings are not recorded: a start asks it again of a model that is described (check_described).
rule model:
    input:
        on_wildcards(inputs.model_files),
    output:
        model="results/{model}/model.json",
    log:
        "logs/{model}/model.log",
    benchmark:
        "results/{model}/benchmarks/model.tsv"
    localrule: True
    conda:
        "../envs/torch.yaml"
    params:
        code=code_version("describe_model.py"),
        script=script("describe_model.py"),
        folder=on_wildcards(inputs.model_folder),
        check=script("check_settings.py"),
        settings=on_input(flags.settings_of_model),
    shell:
        "(python {params.script:q} --model {params.folder:q} --output {output.model} && python {params.check:q}"
        " --model {output.model} --name {wildcards.model:q} --settings {params.settings:q}) > {log} 2>&1"


# A forecast, which no step reads: it is made once for a model, before its long steps, and says what they will take. No code version: an edit
# would time the model again and change no result.
rule estimate:
    input:
        model="results/{model}/model.json",
    output:
        json="results/{model}/estimate.json",
        text="results/{model}/estimate.txt",
    log:
        "logs/{model}/estimate.log",
    benchmark:
        "results/{model}/benchmarks/estimate.tsv"
    priority: 100
    conda:
        "../envs/torch.yaml"
    threads: SETTINGS.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=on_attempt(resources.model_mem_mb),
        runtime=time_limit(1, 1),
    params:
        script=script("estimate.py"),
        settings=on_input(flags.settings_of_model),
        cores=all_cores,
    shell:
        "python {params.script:q} --model {input.model} --name {wildcards.model:q} --settings {params.settings:q}"
        " --cores {params.cores} --threads {threads} --output {output.json} --text {output.text} > {log} 2>&1 && tail -n 1 {output.text}"

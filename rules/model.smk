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
    shell:
        "python {params.script:q} --model {params.folder:q} --output {output.model} > {log} 2>&1"

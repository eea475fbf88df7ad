rule model:
    input:
        model_files,
    output:
        model="results/{model}/model.json",
    log:
        "logs/{model}/model.log",
    conda:
        "../envs/torch.yaml"
    params:
        *code("describe_model.py"),
        script=script("describe_model.py"),
        folder=model_folder,
    shell:
        "python {params.script:q} --model {params.folder:q} --output {output.model} > {log} 2>&1"

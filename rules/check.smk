rule bits:
    input:
        model="results/{model}/model.json",
        config="results/{model}/plans/{plan}/config.json",
        beside=beside(inputs.beside_plan, "config"),
    output:
        bits="results/{model}/plans/{plan}/bits.json",
    log:
        "logs/{model}/{plan}/bits.log",
    benchmark:
        "results/{model}/benchmarks/{plan}.bits.tsv"
    priority: 60
    localrule: True
    conda:
        "../envs/torch.yaml"
    params:
        code=code_version("calculate_avg_bits.py"),
        script=script("calculate_avg_bits.py"),
        flags=on_wildcards(flags.check_flags),
    shell:
        "python {params.script:q} --config {input.config} --model {input.model} {params.flags}"
        " --json {output.bits} > {log} 2>&1"

rule study:
    input:
        on_wildcards(inputs.study_cells),
    output:
        table="results/{model}/studies/{study}.tsv",
        text=report(
            "results/{model}/studies/{study}.txt",
            caption="../docs/study.rst",
            category="Studies",
            labels={"model": "{model}", "study": "{study}", "what": "table"},
        ),
        figure=report(
            "results/{model}/studies/{study}.svg",
            caption="../docs/study.rst",
            category="Studies",
            labels={"model": "{model}", "study": "{study}", "what": "figure"},
        ),
    log:
        "logs/{model}/studies/{study}.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        code=code_version("study_report.py"),
        script=script("study_report.py"),
        flags=on_wildcards(flags.study_flags),
    shell:
        "python {params.script:q} --results results/{wildcards.model} {params.flags}"
        " --output {output.table} --text {output.text} --figure {output.figure} > {log} 2>&1"

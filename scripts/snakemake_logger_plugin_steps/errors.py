"""What is printed of a failed step: where its log has an error of the project, that line and the log's path instead of Snakemake's trace."""

import re
from collections.abc import Iterable
from pathlib import Path

# A step's error as the commands print it, and a setting's as the workflow raises it: [AREA-WHAT] and what is wrong.
CODED = re.compile(r"^(?:error )?(\[[A-Z0-9]+(?:-[A-Z0-9]+)+\] .+)$", re.MULTILINE)
# What Snakemake says of a failed step besides the step's own error: a command's exit code, and that the run ends.
OF_A_COMMAND = re.compile(r"RuleException:\n(?:\w+ in .*\n)?|CalledProcessError in ")
OF_THE_END = (
    "Exiting because a job execution failed",
    "WorkflowError:\nAt least one job did not complete successfully",
)


def coded_errors(text: str) -> list[str]:
    """Return the errors of the project in a text, each once, as `error [CODE] what is wrong`."""
    return [f"error {line}" for line in dict.fromkeys(CODED.findall(text))]


def errors_in_logs(logs: Iterable[str]) -> list[str]:
    """Return the errors in some logs, each with its log's path; a log that cannot be read has none."""
    found = []
    for log in map(Path, logs):
        try:
            text = log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found += [f"{error} (log: {log})" for error in coded_errors(text)]
    return found

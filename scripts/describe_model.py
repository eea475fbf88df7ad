"""List a model's layers: names, categories, shapes, fusion groups, parameters.

For example:

    python scripts/describe_model.py --model demo/model --output model.json
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import output_file
from bitplan.cli.parser import add_model_flag, parser, run


def main(args) -> None:
    """Write the list of a model's layers. Raises `UserError`."""
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.formats.fitting import fitting_lines, fitting_summary
    from bitplan.models.checkpoint import Checkpoint
    from bitplan.models.finite import finite_files
    from bitplan.models.layers import model_info
    from bitplan.models.recorded_loading import loading_record

    started = time.monotonic()
    info = model_info(args.model)
    checkpoint = Checkpoint.open(args.model)
    finite = finite_files(checkpoint)
    loading = loading_record(checkpoint.folder, checkpoint.stored, checkpoint.loading)
    substitutes = fitting_summary([layer.shape[1] for layer in info.quantizable])
    write_json(args.output, {**info.to_json(), "substitutes": substitutes, "finite": finite, "loading": loading})
    write_provenance(args.output, started)
    print(f"{info.architecture}: {info.parameters:,} parameters, {len(info.quantizable)} layers that a plan may change")
    print("".join(f"{line}\n" for line in fitting_lines(substitutes, len(info.quantizable))), end="")


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    add_model_flag(flags)
    flags.add_argument("--output", type=output_file, required=True, help="model.json to write")
    return flags


if __name__ == "__main__":
    run(build_parser(), main)

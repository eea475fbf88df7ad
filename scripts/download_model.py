"""Fetch a model from a model hub into a folder: safetensors, settings and tokenizer, every file checked by size and hash.

For example:

    python scripts/download_model.py --model organization/name --revision main --output checkpoint
"""

import time
from argparse import ArgumentParser

from bitplan.cli.inputs import output_file, output_folder
from bitplan.cli.parser import parser, run


def main(args) -> None:
    """Fetch the model and write what it is beside it. Raises `UserError`."""
    from bitplan.core.files import write_json
    from bitplan.core.provenance import write_provenance
    from bitplan.models.checkpoint_files import RECORD
    from bitplan.models.hub.download import download

    started = time.monotonic()
    source = download(args.id, args.revision, args.output)
    if args.record:
        write_json(args.record, source.to_json())
    write_provenance(args.record or args.output / RECORD, started)
    fetched = len(source.transferred)
    print(
        f"{source.id} at {source.commit[:12]}: {len(source.files)} files, {source.size / 1e6:,.1f} MB, checked in {args.output};"
        f" {fetched} fetched, {len(source.files) - fetched} were there"
    )


def build_parser() -> ArgumentParser:
    """Return the command's flags."""
    flags = parser(__doc__)
    flags.add_argument("--model", dest="id", metavar="ID", required=True, help="id on the model hub: organization/name")
    flags.add_argument("--revision", help="branch, tag or commit; the hub's main branch by default")
    flags.add_argument("--output", type=output_folder, required=True, metavar="DIR", help="folder for the model")
    flags.add_argument(
        "--record", type=output_file, help="JSON to write: commit, and every file with its size and hash"
    )
    return flags


if __name__ == "__main__":
    run(build_parser(), main)

"""What scripts/optimal_search.py does, once its flags are read: the table, the texts, the budgets, the places of the results."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bitplan.core.errors import Problem, UserError, user_error
from bitplan.formats.importance import check_importance
from bitplan.plans.apply import QuantizedWeights
from bitplan.plans.fitting import warn_of_formats
from bitplan.reference.opening import PreparedModel, open_held_out_reference, open_reference, prepare_model
from bitplan.reference.reference import Reference
from bitplan.runtimes.gguf.file import layer_names, read_gguf
from bitplan.runtimes.palette import palette_of_runtimes, quantizes
from bitplan.runtimes.registry import runtime_named
from bitplan.runtimes.runtime import Runtime
from bitplan.search.evaluations import Evaluations, facts_of, facts_of_text
from bitplan.search.optimal.candidates import chosen_table
from bitplan.search.optimal.file_size import budget_of_size
from bitplan.search.optimal.held import held_table, shared_in
from bitplan.search.optimal.reach import out_of_reach, problem_of_shapes
from bitplan.search.optimal.refinement import RefinementSettings
from bitplan.search.optimal.run import OptimalSearch, OptimalSettings, check_fresh, file_budget
from bitplan.search.plan_settings import OF_RUNTIMES
from bitplan.sensitivity.candidates import MeasureSettings
from bitplan.sensitivity.local_errors import SensitivitySettings, choice_named
from bitplan.sensitivity.run import make_table
from bitplan.sensitivity.table import SensitivityTable, read_sensitivity_table
from bitplan.statistics.importance import read_importance

PLACE = "{target}"


def checked_outputs(args: Namespace) -> Callable[[float | None], tuple[Path | None, Path | None]]:
    """Return a function that gives config.json and plan.json of a target. Raises `UserError` for targets or places that are missing."""
    problems = []
    if sum(map(bool, (args.target_avg_bits, args.same_size_as, args.max_size))) != 1:
        problems.append(
            Problem(
                "OPTIMAL-BAD-FLAGS",
                "--target-avg-bits, --same-size-as or --max-size",
                "exactly one of them is required",
                "Give exactly one",
            )
        )
    given = [path for path in (args.output_config, args.output_plan) if path is not None]
    if not given:
        problems.append(
            Problem(
                "OPTIMAL-BAD-FLAGS",
                "--output-plan",
                "no output is given for the plan",
                "Give --output-plan, --output-config or both",
            )
        )
    if len(args.target_avg_bits or ()) > 1:
        problems += [
            Problem(
                "OPTIMAL-BAD-FLAGS",
                str(path),
                "would be overwritten by the plan of each target",
                f"Put {PLACE} into its name",
            )
            for path in given
            if PLACE not in str(path)
        ]
    if problems:
        raise UserError(problems)

    def outputs(target: float | None) -> tuple[Path | None, Path | None]:
        shown = "size" if target is None else f"{target:g}"
        paths = (args.output_config, args.output_plan)
        return tuple(path if path is None else Path(str(path).replace(PLACE, shown)) for path in paths)

    return outputs


def _texts(args: Namespace, model: PreparedModel) -> tuple[Reference, Reference]:
    """Return the text that is measured on, and the one to decide on: the tokens after the first ones, where none is given."""
    source, how = args.calibration, (model, args.length, args.sequences)
    if args.validation is None and source.suffix == ".safetensors":
        what = "is required to decide on corrections: a saved reference has no further windows"
        raise user_error(
            "OPTIMAL-NO-VALIDATION", "--validation", what, "Give --validation, or --no-correct and --no-refine"
        )
    seen = open_reference(source, *how)
    fresh = open_held_out_reference(args.validation or source, seen, *how)
    check_fresh(fresh)
    return seen, fresh


def _table_beside(output: Path) -> Path:
    """Return where the table of a search is written: beside its plan and under its name, which other plans there do not have."""
    own = output.stem.replace(PLACE, "").strip("-_.")
    parent = Path(*(part for part in output.parent.parts if PLACE not in part))
    return parent / (f"{own}.sensitivity.tsv" if own else "sensitivity.tsv")


def _measured(args: Namespace, model: PreparedModel, palette: tuple[str, ...]) -> Path:
    """Return the table, measured beside the results: every format of every layer. Raises `UserError`."""
    place = _table_beside(args.output_plan or args.output_config)
    settings = SensitivitySettings(tuple(map(choice_named, palette)))
    priced = args.metric == "gradient"
    measure = MeasureSettings(None if priced else "all", args.memory_limit, draws=args.draws if priced else None)
    make_table(model, args.calibration, args.length, args.sequences, settings, measure, None, place, args.imatrix)
    return place


def _check_targets(
    args: Namespace, model: PreparedModel, settings: OptimalSettings, runtimes: Sequence[Runtime]
) -> None:
    """Raise `UserError` with every target that the table could not reach if it were measured."""
    shared = (runtimes, settings.stored_sizes, settings.groups)
    problem = problem_of_shapes(model.info, settings.palette, (), *shared)
    wrong = [out_of_reach(problem, model.info, target) for target in args.target_avg_bits or ()]
    if any(wrong):
        raise UserError(replace(each, where="--target-avg-bits") for each in wrong if each)


def searched(args: Namespace) -> tuple[OptimalSearch, OptimalSettings]:
    """Return the search that the flags ask for, its table read or measured. Raises `UserError`."""
    runtimes = [runtime_named(name) for name in args.runtimes or ()]
    palette, stored = _palette(args, runtimes)
    check_importance(palette, args.imatrix is not None)
    groups, refinement = args.groups or shared_in(runtimes), RefinementSettings(seed=args.seed)
    names = tuple(runtime.name for runtime in runtimes)
    settings = OptimalSettings(palette, args.correct, args.refine, args.swaps, groups, refinement, names, stored)
    model = prepare_model(args.model, args.dtype, args.device, args.threads, args.bos)
    warn_of_formats(palette, model.info)
    importance = read_importance(args.imatrix, model.info.quantizable)
    if not args.sensitivity:
        _check_targets(args, model, settings, runtimes)
    texts = _texts(args, model) if args.correct or args.refine else (None, None)
    path = args.sensitivity or _measured(args, model, palette)
    table: SensitivityTable = chosen_table(read_sensitivity_table(path, palette), palette, model.info, path)
    if runtimes:
        table = held_table(table, runtimes, model.info, stored)
    weights = QuantizedWeights(args.memory_limit, importance=importance)
    kept = _kept(args, model, weights, *texts)
    return OptimalSearch(model, table, settings, weights, *texts, kept), settings


def _palette(args: Namespace, runtimes: list[Runtime]) -> tuple[tuple[str, ...], bool]:
    """Return the candidates to choose from, and whether their sizes are what runtimes store. Raises `UserError`."""
    of_runtimes = args.palette == [OF_RUNTIMES]
    limited = args.max_size is not None
    stored = args.sizes == "stored" or limited or (of_runtimes and args.sizes is None)
    if (of_runtimes or stored) and not runtimes:
        where = "--max-size" if limited else f"--palette {OF_RUNTIMES}" if of_runtimes else "--sizes stored"
        raise user_error("RUNTIME-NO-PALETTE", where, "is about runtimes, and none is given", "Give --runtimes")
    if not of_runtimes:
        return tuple(choice_named(name).name for name in args.palette), stored
    palette = palette_of_runtimes(runtimes, importance=args.imatrix is not None)
    if not quantizes(palette):
        what = f"no format below 16 bits is held exactly by all of {', '.join(args.runtimes)}"
        raise user_error("RUNTIME-NO-PALETTE", f"--palette {OF_RUNTIMES}", what, "Leave out a runtime, or name formats")
    return palette, stored


def _kept(
    args: Namespace, model: PreparedModel, weights: QuantizedWeights, seen: Reference | None, fresh: Reference | None
) -> Evaluations:
    """Return what a search that was killed has evaluated, from beside the plan of the first target."""
    first = args.target_avg_bits[0] if args.target_avg_bits else None
    facts = {**facts_of(model, weights), "calibration": facts_of_text(seen), "fresh": facts_of_text(fresh)}
    return Evaluations.beside(next(path for path in reversed(checked_outputs(args)(first)) if path is not None), facts)


def budgets_of(search: OptimalSearch, args: Namespace) -> Iterator[tuple[float | None, float]]:
    """Yield each target of average bits, None for a file's size, and its budget for the table's layers in bytes."""
    if args.target_avg_bits:
        budgets = [(target, search.budget(target)) for target in args.target_avg_bits]
        yield from budgets
    elif args.max_size:
        yield None, budget_of_size(search, args.max_size, [runtime_named(name) for name in args.runtimes], args.base)
    else:
        yield None, _as_large_as(search, args.same_size_as)


def _as_large_as(search: OptimalSearch, same_size_as: Path) -> float:
    """Return the bytes that the table's layers take in a GGUF file. Raises `UserError` where it lacks one."""
    reader = read_gguf(same_size_as)
    names = layer_names(reader, search.model.info)
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        shared = names.get(tensor.name, ())
        sizes.update(dict.fromkeys(shared, tensor.n_bytes // max(1, len(shared))))
    return file_budget(search.table, sizes, same_size_as)

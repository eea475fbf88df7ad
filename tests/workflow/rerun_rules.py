"""The arithmetic of the tables: which jobs a selector means, and all that follow a change's first jobs."""

import copy
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from tests.workflow.rerun_tables import FOLLOWS


def parts(job: str) -> tuple[str, str, str]:
    """Return the model, the rule and the name of a job or selector; "*" for what a selector leaves out."""
    model, _, rest = job.rpartition("/")
    rule, at, name = rest.partition("@")
    return model or "*", rule, name if at else "*"


def selected(jobs: Iterable[str], selectors: str) -> set[str]:
    """Return the jobs that one of some selectors means."""
    wanted = [parts(selector) for selector in selectors.split()]
    return {job for job in jobs if any(all(map(fnmatchcase, parts(job), pattern)) for pattern in wanted)}


def kind(rule: str) -> str:
    """Return what a rule's name tells that it makes something of: a plan, a baseline, or neither."""
    if rule.startswith("baseline_"):
        return "baseline"
    return "plan" if rule == "bits" or rule.startswith("plan_") or rule.endswith("_plan") else ""


def followers(job: str, jobs: set[str]) -> set[str]:
    """Return the jobs that read what a job makes."""
    model, rule, name = parts(job)
    found = set()
    for source, selectors in FOLLOWS.items():
        _, source_rule, source_name = parts(source)
        if rule == source_rule and fnmatchcase(name, source_name):
            here = {each for each in selected(jobs, selectors) if parts(each)[0] == model}
            same = source_name == "*" and kind(rule)
            found |= {each for each in here if not (same and kind(parts(each)[1]) == same) or parts(each)[2] == name}
    # A cell of a study is a plan that no comparison shows.
    return {each for each in found if not ("." in name and parts(each)[1] == "comparison")}


def rerun(jobs: Iterable[str], first: str) -> set[str]:
    """Return the jobs that have to rerun when those that `first` selects do."""
    jobs = set(jobs)
    waiting, seen = selected(jobs, first), set()
    while waiting:
        job = waiting.pop()
        seen.add(job)
        waiting |= followers(job, jobs) - seen
    return seen


def changed(config: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a configuration with one value changed; None takes an entry out of models, plans or studies."""
    made = copy.deepcopy(dict(config))
    *above, key = path.split(".")
    inner = made
    for name in above:
        inner = inner.setdefault(name, {})
    if value is None and above and above[-1] in ("models", "plans", "studies"):
        del inner[key]
    else:
        inner[key] = value
    return made

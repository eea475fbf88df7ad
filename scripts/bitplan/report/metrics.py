"""The one list of what is reported of a plan or a baseline. The tables, the page, the figures and comparison.json read it.

A new metric is one line here. Its `source` names where its value comes from: a result of `results.py` and the keys inside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

NATS, BITS = "nats per token", "bits per parameter"


@dataclass(frozen=True)
class Metric:
    """A figure of a plan: its key in TSV and JSON, and how tables and axes show it.

    Without a `heading` it stands in TSV and JSON alone. `format` is for `str.format`. `legend` says what it is; `better` is
    "lower", "higher" or "" where neither is.
    """

    key: str
    heading: str
    unit: str
    format: str
    legend: str
    better: str
    source: str

    @property
    def axis(self) -> str:
        """The label of an axis in a figure."""
        return f"{self.legend} ({self.unit})" if self.unit else self.legend


# Of a perplexity.json, which is made twice: of the plan simulated in torch, and of its file in a runtime.
SCORES = (
    Metric("ppl", "PPL", "", "{:.4f}", "perplexity on the evaluation text", "lower", "ppl"),
    Metric("ppl_error", "", "", "{:.4f}", "standard error of PPL over the windows", "lower", "ppl_error"),
    Metric("kl", "KL", NATS, "{:.6f}", "mean KL divergence from the reference", "lower", "kl_mean"),
    Metric("kl_error", "", NATS, "{:.6f}", "standard error of KL over the windows", "lower", "kl_mean_error"),
    Metric("kl_p99", "KL p99", NATS, "{:.4f}", "KL that 99 % of the tokens stay below", "lower", "kl_p99"),
    Metric("top1", "top-1", "", "{:.4f}", "share of tokens with the reference's most likely next token", "higher",
           "top1_agreement"),
)  # fmt: skip


def _simulated(metric: Metric) -> Metric:
    return replace(metric, source=f"scores.{metric.source}")


def _of_file(metric: Metric) -> Metric:
    heading = metric.heading and f"file {metric.heading}"
    legend = f"{metric.legend}, of the file"
    return replace(metric, key=f"file_{metric.key}", heading=heading, legend=legend, source=f"file_{_simulated(metric).source}")  # fmt: skip


METRICS = (
    Metric("avg_bits", "bits", BITS, "{:.3f}", "average bits over all parameters", "lower", "bits.avg_bits"),
    Metric("avg_bits_layers", "layers", BITS, "{:.3f}", "average bits over the quantizable layers", "lower",
           "bits.avg_bits_layers"),
    Metric("avg_bits_file", "file", BITS, "{:.3f}", "size of the file", "lower", "file.avg_bits"),
    Metric("file_bytes", "bytes", "bytes", "{:,}", "size of the file in bytes", "lower", "file.bytes"),
    Metric("target_avg_bits", "", BITS, "{:g}", "target of the average bits", "", "bits.target_avg_bits"),
    Metric("target_missed_by", "", BITS, "{:.3f}", "average bits over the target", "lower", "bits.target_missed_by"),
    *map(_simulated, SCORES),
    *map(_of_file, SCORES),
    Metric("tokens_per_second", "tok/s", "tokens per second", "{:.1f}", "ratio x the reference file's own speed", "higher",
           "speed.tokens_per_second"),
    Metric("ratio_to_reference", "ratio", "", "{:.2f}", "speed over the reference file's in the same rounds, median", "higher",
           "speed.ratio.median"),
    Metric("ratio_min", "min", "", "{:.2f}", "least ratio of a round", "higher", "speed.ratio.min"),
    Metric("ratio_max", "max", "", "{:.2f}", "largest ratio of a round", "", "speed.ratio.max"),
    Metric("speed_stable", "", "", "{}", "whether the speeds of the rounds were alike", "", "speed.stable"),
    Metric("search_evaluations", "", "plans", "{}", "plans that the search evaluated", "lower", "plan.cost.evaluations"),
    Metric("kl_predicted", "", NATS, "{:.6f}", "sum of the layers' KL in the sensitivity table", "lower", "plan.predicted"),
    Metric("search_block_forward_tokens", "", "tokens", "{}", "tokens through blocks during the search", "lower",
           "plan.cost.block_forward_tokens"),
)  # fmt: skip
BY_KEY = {metric.key: metric for metric in METRICS}
SHOWN = tuple(metric for metric in METRICS if metric.heading)


def legend_of(metrics: Iterable[Metric]) -> str:
    """Return what the headings of some metrics mean, as one paragraph; those of files are left to their like."""
    plain = [metric for metric in metrics if not metric.source.startswith("file_")]
    return ". ".join(f"{m.heading}: {m.legend}" for m in plain) + f". KL is in {NATS}."

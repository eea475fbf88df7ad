"""The genetic search, under the name of the W4 + A4/A8 document's module."""

from bitplan.search.genetic.algorithm import GeneticResult, GeneticSettings, search
from bitplan.search.knapsack.choices import Choices

__all__ = ["Choices", "GeneticResult", "GeneticSettings", "search"]

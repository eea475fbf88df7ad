"""The genetic search, under the name of the W4 + A4/A8 document's module."""

from bitplan.search.choices import Choices
from bitplan.search.genetic import GeneticResult, GeneticSettings, search

__all__ = ["Choices", "GeneticResult", "GeneticSettings", "search"]

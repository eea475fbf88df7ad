"""What a user may hand to a command by mistake: broken models, plans, texts, tables and files, each made when it is asked for."""

from tests.broken import files, models, plans
from tests.broken.making import BUILDERS, Shelf

BUILDERS.update(models.BY_NAME | plans.BY_NAME)
__all__ = ["Shelf", "files"]

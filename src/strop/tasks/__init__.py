"""Problems whose answers can be checked. Importing this registers the built-in tasks."""

from strop.tasks import arithmetic, gsm8k, rewrite
from strop.tasks.base import judge, register, task, task_names, validate

__all__ = ["arithmetic", "gsm8k", "judge", "register", "rewrite", "task", "task_names", "validate"]

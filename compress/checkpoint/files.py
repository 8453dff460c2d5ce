"""Names of files that several parts of a checkpoint know."""

from __future__ import annotations

RECIPE_FILE = "recipe.yaml"
RESOLVED_RECIPE_FILE = "recipe.resolved.yaml"
REPORT_FILE = "report.json"

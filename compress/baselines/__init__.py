"""What LookupFFN is measured against at equal cost: the same student without its tables.

Each baseline is what it sets in a recipe's `lookup` section; fit, distillation and storage are the same for all.
"""

BASELINES: dict[str, dict[str, int]] = {
    "pruned neurons": {"tables": 0, "rank": 0},  # the most important neurons, refitted
    "pruned neurons and a low-rank path": {"tables": 0},
}

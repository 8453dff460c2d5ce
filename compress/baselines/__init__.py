"""What LookupFFN is measured against at equal cost."""

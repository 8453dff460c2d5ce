"""Convert pretrained dense transformers into LookupFFN models that run fast on a CPU."""

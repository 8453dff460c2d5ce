"""The method: LookupFFN, its parts, its closed-form start and its packed form, in pure PyTorch."""

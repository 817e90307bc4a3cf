"""Malformed and awkward inputs by class, and a runner that counts how many klball answers well."""

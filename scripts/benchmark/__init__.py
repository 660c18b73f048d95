"""What the scripts that time share: conditions, timing, peers, ceilings, results as data, and one module a suite."""

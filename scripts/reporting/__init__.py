"""What scripts/report.py is made of: reading results, tables, figures as data, drawing them."""

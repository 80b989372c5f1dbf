"""What runs are worth: compared, told in tables, plots and a page, and put beside what was published."""

"""Instructions that multiply and add groups of narrow operands, as a table: `schedules.instructions.products.table`."""

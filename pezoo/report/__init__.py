"""What people look at: tables, figures and TensorBoard logs, all made from results alone."""

"""Extensions that change what a query may attend to, or how sharply."""
